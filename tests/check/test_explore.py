"""The explorer: shortest first, each state once, and free only where everything was tried."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest

from mmulab.check.explore import TABLE_FRAMES, World, explore
from mmulab.check.explored import Bounds, Explored, Progress
from mmulab.check.finding import Finding, FindingKind
from mmulab.check.hunt import Job, hunt
from mmulab.check.oracle import Oracle
from mmulab.check.scope import steps
from mmulab.check.scopes import find_scope
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.kvm.roles.derivation import DERIVATIONS
from mmulab.kvm.roles.design import DESIGNS
from mmulab.machine.machine import Machine
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.grammar import Step, format_step
from mmulab.scenario.runner import Result, Runner


def searched(name: str, kernel: str = "6.1", depth: int | None = None, *, first: bool = True) -> Explored:
    scope = find_scope(name)
    scope = scope if depth is None else scope.with_(depth=depth)
    return explore(scope, find_kernel(kernel), [Oracle], Bounds(first=first))


FOUND = [
    ("B1", "behind-64", "RMAP", 3),
    ("B5", "leaf-behind-64", "RMAP", 3),
    ("B7", "smm-64", "UNSYNC", 3),
    ("B8", "smm-device", "page-not-reached", 3),
    ("B10", "rights-64", "fault-reached", 3),
    ("B11", "rights-64", "fault-not-reached", 3),
    ("B12", "rights-64", "fault-reached", 3),
    ("B13", "upper-paths-64", "fault-reached", 4),
    ("B14", "large-64", "fault-reached", 3),
    ("B16", "npt-la57", "page-reached", 6),
    ("B17", "halves-32", "QUADRANT", 1),
    ("B19", "npt-two-pae-64", "page-not-reached", 4),
    ("B24", "linked-64", "LINK_SYNC", 3),
]


@pytest.mark.parametrize(("bug", "name", "what", "ops"), FOUND, ids=[row[0] for row in FOUND])
def test_a_fix_that_is_taken_back_is_found_by_a_shortest_sequence(bug, name, what, ops):
    explored = searched(name, f"6.1+{bug}")
    assert [(found.finding.name, len(found.choices)) for found in explored.found] == [(what, ops)]
    assert not explored.complete
    # One op less leaves the whole scope free: nothing shorter leads there.
    assert ops == 1 or not searched(name, f"6.1+{bug}", ops - 1).found
    # It is the bug's, not the kernel's.
    assert not replayed(explored, "6.1")
    assert replayed(explored, f"6.1+{bug}")


@pytest.mark.parametrize(
    ("changed", "name", "what", "ops"),
    [
        ({"derivation": DERIVATIONS["copied"]}, "halves-32", "QUADRANT", 1),
        ({"design": DESIGNS["pre_fix"]}, "npt-la57", "page-reached", 6),
        ({"design": DESIGNS["cr4_pae"]}, "npt-la57", "page-reached", 6),
        ({"design": DESIGNS["glevels"]}, "rights-64", "fault-reached", 3),
    ],
    ids=["copied", "pre_fix", "cr4_pae", "glevels"],
)
def test_a_wrong_design_has_a_counterexample(changed, name, what, ops):
    kernel = LINUX_6_1.with_(**changed)
    explored = explore(find_scope(name), kernel, [Oracle], Bounds(first=True))
    assert [(found.finding.name, len(found.choices)) for found in explored.found] == [(what, ops)]


def replayed(explored: Explored, kernel: str) -> bool:
    """Whether the same choices end in the same finding, one op after another, without going back."""
    (found,) = explored.found
    world = World(explored.scope, find_kernel(kernel), [Oracle])
    for at, choice in enumerate(found.choices):
        step = explored.scope.ops[choice]
        finding = world.step(at, step) or world.wrong(at, step)
        if finding is not None:
            return at + 1 == len(found.choices) and finding.name == found.finding.name
    return False


@pytest.mark.parametrize("name", ["upper-paths-64", "behind-64", "linked-64", "npt-la57", "smm-device"])
def test_the_right_kernel_is_free(name):
    explored = searched(name)
    assert explored.complete
    assert explored.depth == explored.scope.depth
    assert explored.found == ()
    assert "free up to depth" in str(explored)


class Trace:
    """Says at the third write what came before: a finding that depends on the way, not on the machine."""

    def __init__(self, machine: Machine) -> None:
        self.writes = 0

    def after(self, result: Result) -> Finding | None:
        self.writes += result.text.startswith("wr")
        if self.writes < 3:
            return None
        return Finding(FindingKind.OUTCOME, "third", result.index, result.text, "it is the third write")

    def save(self) -> int:
        return self.writes

    def restore(self, saved: int) -> None:
        self.writes = saved

    def key(self) -> int:
        return self.writes


def test_what_a_watcher_remembers_goes_back_with_the_machine():
    scope = replace(find_scope("moved-64"), ops=steps("rd s 4 40000000", "wr s 4 40000000 1"), depth=5)
    explored = explore(scope, LINUX_6_1, [Trace])
    assert [found.choices for found in explored.found] == [(1, 1, 1)]
    # Untouched; read; written once, and twice: of a page that is mapped for both, a read leaves no trace.
    assert explored.states == 4
    assert explored.closed


def test_an_op_runs_once_in_each_state_of_the_machine(monkeypatch):
    """Where only a watcher remembers something else, the machine is put where the op is known to lead."""
    executed = []
    step = Runner.step

    def counted(self: Runner, index: int, which: Step) -> Iterator[Result]:
        executed.append(format_step(which))
        return step(self, index, which)

    scope = replace(find_scope("moved-64"), ops=steps("rd s 4 40000000", "wr s 4 40000000 1"), depth=5)
    monkeypatch.setattr(Runner, "step", counted)
    explored = explore(scope, LINUX_6_1, [Trace])
    # Untouched, read, written: three states of the machine, two ops. Written twice is none of its own.
    assert len(executed) - len(scope.scenario.steps) == 6
    assert explored.tries == 8
    (found,) = explored.found
    assert found.finding.op == len(scope.scenario.steps) + 2


def test_garbage_is_collected_as_before_when_a_search_ends():
    before = gc.get_threshold()
    assert explore(find_scope("rights-64"), LINUX_6_1, [], progress=interrupting(5)).interrupted == "Ctrl-C"
    assert gc.get_threshold() == before


def test_an_interrupted_scope_ends_the_hunt(monkeypatch):
    """Ctrl-C ends the search that runs, not only the place that it is at."""

    def interrupted(*args: object, **named: object) -> Explored:
        return explore(find_scope("rights-64"), LINUX_6_1, [], progress=interrupting(5))

    monkeypatch.setattr("mmulab.check.hunt.explore", interrupted)
    hunted = hunt(Job(LINUX_6_1, None, ("rights-64", "moved-64"), 0, 600.0, 1), lambda: False)
    assert hunted.interrupted
    assert hunted.place == "rights-64"


class Secretive:
    """Remembers, and cannot say what."""

    def __init__(self, machine: Machine) -> None:
        self.seen: list[Result] = []

    def after(self, result: Result) -> Finding | None:
        self.seen.append(result)
        return None


def test_a_watcher_whose_state_cannot_be_taken_is_refused():
    with pytest.raises(InputError, match="cannot save seen of Secretive"):
        explore(find_scope("moved-64"), LINUX_6_1, [Secretive])


def outcomes(name: str, depth: int) -> Iterator[tuple[tuple[int, ...], str]]:
    """Each sequence run from the beginning, and how its last op ended."""
    scope = find_scope(name)
    for choices in product(range(len(scope.ops)), repeat=depth):
        scenario = scope.taken(choices)
        config = replace(machine_config(scenario), table_frames=TABLE_FRAMES)
        results = list(Runner(scenario, config=config).results())
        yield choices, repr(results[-2].outcome)


def test_a_search_visits_what_all_sequences_visit():
    """The outcomes of last ops that the search saw are those of all sequences, run one by one."""
    scope = find_scope("roots-32").with_(depth=3)
    seen: set[tuple[int, str]] = set()
    scope_index = {format_step(step): at for at, step in enumerate(scope.ops)}

    class Outcomes:
        def __init__(self, machine: Machine) -> None:
            pass

        def after(self, result: Result) -> Finding | None:
            if result.index >= 0:
                seen.add((scope_index[result.text], repr(result.outcome)))
            return None

    explored = explore(scope, LINUX_6_1, [Outcomes])
    assert explored.complete
    wanted = {
        (choices[-1], outcome) for depth in (1, 2, 3) for choices, outcome in outcomes("roots-32", depth)
    }
    assert seen == wanted


def interrupting(at: int) -> Callable[[Progress], None]:
    def progress(now: Progress) -> None:
        if now.states >= at:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_search_keeps_what_it_has():
    scope = find_scope("rights-64")
    explored = explore(scope, find_kernel("6.1+B10"), [Oracle], progress=interrupting(600))
    assert explored.interrupted == "Ctrl-C"
    assert not explored.complete
    assert explored.states >= 600
    assert "fault-reached" in [found.finding.name for found in explored.found]


def test_bounds_end_a_search_and_it_says_so():
    explored = explore(find_scope("moved-64"), LINUX_6_1, [Oracle], Bounds(states=50))
    assert (explored.complete, explored.interrupted) == (False, "states")
    assert "interrupted (states)" in str(explored)


def test_the_same_search_finds_the_same():
    one, other = (searched("linked-64", "6.1+B24", 3, first=False) for _ in range(2))
    assert (one.states, one.tries, [c.choices for c in one.found]) == (
        other.states,
        other.tries,
        [c.choices for c in other.found],
    )


def test_an_op_that_is_not_modelled_is_passed_over_and_leaves_no_trace():
    """L1 asks for the exits of I/O, which VMRUN refuses; and may do so again, with nothing new."""
    ops = steps("?vmrun a000", "?hw 4 a00c 8000000", "!vmmcall")
    scope = replace(find_scope("nested-logged-npt"), ops=ops, depth=3)
    explored = explore(scope, LINUX_6_1, [Oracle])
    # Untouched; L2; asked; back from L2, and then L2 anew, or asked.
    assert (explored.states, explored.tries, explored.refused) == (6, 7, 1)
    assert explored.complete
    assert "of 3 ops, 1 not modelled" in str(explored)
