"""Faults put into the MMU one line at a time: each is noticed by a watcher, and no recording is needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mmulab.check.asserted import Asserted
from mmulab.check.finding import Finding, FindingKind, MakeWatcher
from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.mmu import Invariants
from mmulab.check.oracle import Oracle
from mmulab.check.tlb import Adversary
from mmulab.check.trial import make_bench
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.scenario.grammar import parse_step
from tests.check.changed_line import changed_code, function_at
from tests.check.mutations import MUTATIONS, Mutation

WATCHERS: dict[str, tuple[MakeWatcher, FindingKind]] = {
    "oracle": (Oracle, FindingKind.OUTCOME),
    "adversary": (Adversary, FindingKind.STALE),
    "invariants": (Invariants, FindingKind.INVARIANT),
    "assertions": (Asserted, FindingKind.ASSERTION),
}
"""By the name that a row has: who looks, alone, and the kind of what it finds."""


def finding(mutation: Mutation) -> Finding | None:
    """Return what the row's watcher finds in the row's scenario, all of which can be done."""
    steps = tuple(parse_step(text) for text in mutation.steps.split(";"))
    scenario = replace(plan(GUESTS[mutation.guest]).scenario, steps=steps)
    trial = make_bench(scenario, LINUX_6_1, [WATCHERS[mutation.watcher][0]]).run(())
    assert trial.refused is None
    return trial.finding


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda row: f"{row.function}={row.new}"[:70])
def test_the_changed_line_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding(mutation) is None
    path = f"kvm.{mutation.function}"
    monkeypatch.setattr(function_at(path), "__code__", changed_code(path, mutation.old, mutation.new))
    found = finding(mutation)
    assert found is not None
    assert found.kind is WATCHERS[mutation.watcher][1], str(found)


def test_the_oracle_alone_notices_most() -> None:
    by = Counter(mutation.watcher for mutation in MUTATIONS)
    assert len({(m.function, m.old, m.new) for m in MUTATIONS}) == len(MUTATIONS) >= 70
    assert by["oracle"] >= 50
    assert by["adversary"]
    assert by["invariants"]


def test_a_line_that_is_not_there_is_no_mutation() -> None:
    with pytest.raises(AssertionError, match="has 0 lines"):
        changed_code(f"kvm.{MUTATIONS[0].function}", "return None  # of nothing", "pass")
