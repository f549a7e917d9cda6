"""Ops that do nothing: skipped where they are known to, and no search is the poorer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab.check.explore import World, explore
from mmulab.check.explored import Explored
from mmulab.check.finding import Finding, FindingKind
from mmulab.check.hunt import IN_SCOPES
from mmulab.check.known import DEVIATIONS, Beyond
from mmulab.check.quiet import Quiet
from mmulab.check.scope import Scope, steps
from mmulab.check.scopes import find_scope
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.machine.machine import Machine
from mmulab.scenario.grammar import Step, format_step
from mmulab.scenario.runner import Result, Runner

Levels = dict[bytes, int]


def levels(scope: Scope, kernel: str, *, skips: bool) -> tuple[Levels, Explored]:
    """Return each state's key with the depth at which it was met first, and what the search came to."""
    met: Levels = {}
    key = World.key

    def noted(self: World, state: object) -> bytes:
        name = key(self, state)
        met.setdefault(name, len(state.choices))
        return name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "key", noted)
        if not skips:
            patch.setattr(Quiet, "known", lambda *_: False)
        explored = explore(scope, find_kernel(kernel), IN_SCOPES)
    return met, explored


def findings(explored: Explored) -> list[tuple[Finding, tuple[int, ...]]]:
    return [(found.finding, found.choices) for found in explored.found]


@pytest.mark.parametrize(
    ("name", "kernel", "depth", "fewer"),
    [
        ("paths-64", "6.1", 3, True),
        ("rights-64", "6.1+B10", 3, True),
        ("linked-64", "6.1+B24", 3, True),
        ("hosts-64", "6.1", 2, True),
        ("behind-64", "6.1+B1", 3, True),
        ("npt-hosts-legacy", "6.1", 2, True),
        ("npt-la57", "6.1+B16", 6, False),
        ("nested-shadow-64-64", "6.1", 2, False),
    ],
)
def test_a_search_that_skips_meets_the_same_states_at_the_same_depths(name, kernel, depth, fewer):
    scope = find_scope(name).with_(depth=depth)
    (every, plain), (met, skipping) = (levels(scope, kernel, skips=skips) for skips in (False, True))
    assert met == every
    assert findings(skipping) == findings(plain)
    assert (skipping.tries < plain.tries) == fewer


_MORE = {
    "roots-32": ("rd u 4 40000000", "wr u 4 40001000 1", "xc s 40000800", "cr4 10"),
    "moved-64": ("rd u 4 40000000", "wr u 4 40080000 1", "hw 8 80000 0", "age 80000 1000"),
    "npt-hosts-legacy": ("rd u 4 40000000", "xc s 40000800", "cr3 10000"),
    "ept0-rights-64": ("invlpg 40000000", "hinval 80000 2000", "wr s 4 40000000 7700"),
}


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_any_few_ops_meet_the_same_states(data):
    scope = find_scope(data.draw(st.sampled_from(sorted(_MORE))))
    pool = dict.fromkeys((*scope.ops, *steps(*_MORE[scope.name])))
    ops = tuple(data.draw(st.lists(st.sampled_from(list(pool)), min_size=3, max_size=3, unique=True)))
    small = replace(scope, ops=ops, depth=4)
    (every, plain), (met, skipping) = (levels(small, "6.1", skips=skips) for skips in (False, True))
    assert met == every
    assert findings(skipping) == findings(plain)
    assert skipping.tries <= plain.tries


def executed(monkeypatch: pytest.MonkeyPatch, scope: Scope) -> list[str]:
    """Search, and return the ops that a machine executed for it, behind the scope's beginning."""
    found = []
    step = Runner.step

    def counted(self: Runner, index: int, which: Step) -> Iterator[Result]:
        found.append(format_step(which))
        return step(self, index, which)

    monkeypatch.setattr(Runner, "step", counted)
    assert explore(scope, LINUX_6_1, IN_SCOPES).closed
    return found[len(scope.scenario.steps) :]


def test_a_read_of_what_is_mapped_is_not_done_again_when_another_page_is(monkeypatch):
    near, far = ops = "rd s 4 40000000", "rd s 4 40001000"
    found = executed(monkeypatch, replace(find_scope("hosts-64"), ops=steps(*ops), depth=6))
    # Nothing is mapped: both. Either: it again, and the other one. Both are, in one order or the other:
    # nothing, for each read the words that it read when only it was mapped.
    assert found == [near, far, near, far, near, far]


def test_an_op_that_looks_at_the_reverse_maps_is_done_in_each_state(monkeypatch):
    ops = "rd s 4 40000000", "age 81000 1000"
    found = executed(monkeypatch, replace(find_scope("hosts-64"), ops=steps(*ops), depth=6))
    assert found == [ops[0], ops[1], ops[0], ops[1]]


class Complaining:
    """Has something to say of each op."""

    def __init__(self, machine: Machine) -> None:
        pass

    def after(self, result: Result) -> Finding | None:
        return Finding(FindingKind.OUTCOME, "fault-reached", result.index, result.text, "it ran")


def test_an_op_whose_finding_was_passed_over_is_looked_at_again(monkeypatch):
    """A known deviation is told by the machine, which may be another one the next time."""
    monkeypatch.setattr("mmulab.check.known.deviation_of", lambda *_: DEVIATIONS[0])
    scope = replace(find_scope("hosts-64"), ops=steps("rd s 4 40000000", "rd s 4 40001000"), depth=6)
    counts: dict[str, int] = {}
    explored = explore(scope, LINUX_6_1, [partial(Beyond, make=Complaining, met=counts)])
    begun = 1 + len(scope.scenario.steps)  # with `init`
    assert explored.tries == 2 * explored.states
    assert counts == {DEVIATIONS[0].name: explored.tries + begun}
