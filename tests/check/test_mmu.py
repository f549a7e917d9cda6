"""The whole check names what it finds and where; the watcher finds it at the op, or at the next survey."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from mmulab.check.finding import Finding, FindingKind
from mmulab.check.mmu import Invariants
from mmulab.check.trial import make_bench
from mmulab.conform.recording import find_recordings, read_recording
from mmulab.events import mark_mmio_spte
from mmulab.kvm.invariants import Invariant, check, violations
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.spte import make_mmio_spte
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op, Outcome, OutcomeKind
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.text import parse_scenario, read_scenario
from tests.kvm.guest import DATA, GVA, Guest

DATA_DIR = Path(__file__).resolve().parents[2] / "data"
SAMPLE = ("sh", "tdp0", "tdp1", "ept1-pml", "ept1-host-noad", "nested48", "nested57", "nested-ept")
RECORDINGS = ("conformance/6.1.192", "conformance/6.12.117", "conformance-more/6.1.192")
NOTHING = Result(0, "nop", ops.Nop(), Outcome(OutcomeKind.OK), [], {})


def two_pages() -> Guest:
    guest = Guest("64").map(GVA, DATA).map(GVA + 0x1000, DATA + 0x1000)
    guest.write(GVA)
    guest.read(GVA + 0x1000)
    return guest


def test_a_right_state_has_no_violation() -> None:
    guest = two_pages()
    found = check(guest.kvm)
    assert found
    assert found.status is Invariant.VALID
    assert repr(found) == "<Check VALID, 0 violations>"


def test_a_violation_has_its_objects() -> None:
    guest = two_pages()
    del guest.slot.rmap[1][DATA >> 12]
    guest.kvm.stat["pages_4k"] += 1
    found = check(guest.kvm)
    assert not found
    assert found.status is Invariant.RMAP | Invariant.STATISTICS
    missing, count = found.violations
    assert (missing.flag, missing.page, missing.sptep, missing.gfn) == (
        Invariant.RMAP,
        guest.page(GVA),
        guest.sptep(GVA),
        DATA >> 12,
    )
    assert (count.flag, count.page, count.sptep) == (Invariant.STATISTICS, None, None)
    assert [str(violation) for violation in found.violations] == violations(guest.kvm)
    assert repr(missing) == f"<{missing}>"
    assert repr(found).splitlines()[0] == "<Check RMAP|STATISTICS, 2 violations>"


def at_once(guest: Guest, watcher: Invariants) -> str:
    """Return what the watcher finds in an op that changed nothing more."""
    found = watcher.after(NOTHING)
    assert found is None or found.kind is FindingKind.INVARIANT
    return "" if found is None else found.name


def test_a_changed_entry_and_a_turned_page_are_told_at_once() -> None:
    guest = two_pages()
    watcher = Invariants(guest.machine)
    assert at_once(guest, watcher) == ""
    guest.machine.memory.store64(guest.sptep(GVA), guest.spte(GVA) + 0x1000)
    assert at_once(guest, watcher) == "FRAME"
    guest = two_pages()
    guest.map(GVA + 0x2000, guest.table(GVA))
    guest.write(GVA + 0x2FF8, 0)
    watcher = Invariants(guest.machine)
    guest.page(GVA).unsync = False
    assert at_once(guest, watcher) == "WRITE_PROTECTION"


def test_the_books_are_read_by_the_next_survey() -> None:
    guest = two_pages()
    watcher = Invariants(guest.machine, full_every=3)
    guest.kvm.stat["pages_4k"] += 1
    assert [at_once(guest, watcher) for _ in range(4)] == ["", "", "STATISTICS", ""]


class Watched:
    """A guest whose ops a watcher of every change sees."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.watcher = Invariants(guest.machine, full_every=1)

    def execute(self, op: Op) -> Finding | None:
        first = len(self.guest.events)
        outcome = self.guest.machine.execute(op)
        return self.watcher.after(Result(7, "op", op, outcome, self.guest.events[first:], {}))


def linked_by_a_second_root(guest: Guest) -> Finding | None:
    """Let a table go out of sync below one root, then take its directories into another one."""
    guest.map(GVA, DATA).map(GVA + 0x1000, guest.table(GVA))
    other = guest.new_table()
    guest.poke(other, guest.load(guest.entry(GVA, 4)), 8)
    watched = Watched(guest)
    steps: list[Op] = [
        ops.Read(Mode.SUPERVISOR, 4, GVA),
        ops.Write(Mode.SUPERVISOR, 8, GVA + 0x1FF8, 0),
        ops.WriteCr(3, other),
    ]
    for op in steps:
        assert watched.execute(op) is None
    unsync = [sp for sp in guest.kvm.pages.values() if sp.unsync]
    assert len(unsync) == 1
    return watched.execute(ops.Read(Mode.SUPERVISOR, 4, GVA))


def test_a_link_to_what_is_not_synced_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert linked_by_a_second_root(Guest("64")) is None
    monkeypatch.setattr("mmulab.kvm.sync.unsync_children.mmu_sync_children", lambda vcpu, sp: None)
    found = linked_by_a_second_root(Guest("64"))
    assert found is not None
    assert (found.kind, found.name, found.op) == (FindingKind.INVARIANT, "LINK_SYNC", 7)


TWO_LINKS = """mmulab-scenario 1
host amd
mode 64
sregs 80010031 10000 20 d00
mem 60000
slot 0 0 50000 0 0
m8 10000 12067
m8 12000 13067
m8 13000 14067
m8 10008 15067
m8 12008 16067
m8 12010 17067
m8 15008 16065
m8 16008 19067
m8 19000 42067
m8 19008 200067
m8 14008 1067
m8 14090 12067
m8 140b8 17067
m8 140c8 19067
ops
rd s 4 8040201000
rd s 4 40200000
rd s 8 19000
wr s 8 17000 19067
rd s 4 80001000
hw 8 17000 19065
wr s 8 12000 17067
rd s 4 80000000
end
"""


def test_a_table_that_is_linked_below_in_the_same_fault_may_be_unsync() -> None:
    """The upper link is made first; the lower one then goes to another page of the same table."""
    trial = make_bench(parse_scenario(TWO_LINKS), LINUX_6_1, [Invariants]).run(())
    assert (trial.finding, trial.refused, trial.ops) == (None, None, 10)


KEPT = DATA_DIR / "sequences/reachable/mmio-refreshed.mmu"


def test_an_mmio_entry_may_be_made_current_by_a_sync_alone() -> None:
    """Linux asks for no slot there; the same entry by any other way is found."""
    runner = Runner(read_scenario(KEPT))
    kvm, watcher, synced = runner.machine.kvm, Invariants(runner.machine, full_every=1), False
    for result in runner.results():
        assert watcher.after(result) is None
        synced |= any(isinstance(event, mark_mmio_spte) for event in result.events) and result.index > 0
        if result.index < len(runner.scenario.steps):
            stale = check(kvm).status is Invariant.MMIO
            assert stale is synced
    assert synced


def test_an_mmio_entry_that_no_sync_made_current_is_found() -> None:
    runner = Runner(read_scenario(KEPT))
    kvm, watcher, sptep = runner.machine.kvm, Invariants(runner.machine), 0
    for result in runner.results():
        assert watcher.after(result) is None
        marked = [event.sptep for event in result.events if isinstance(event, mark_mmio_spte)]
        sptep = marked[0] if marked else sptep
        if isinstance(result.op, ops.SetMemslot) and result.index >= 0:
            break
    spte = make_mmio_spte(kvm.fmt, 0x200, 7, kvm.slots[0].generation)
    kvm.memory.store64(sptep, spte)
    finding = watcher.after(NOTHING)
    assert finding is not None
    assert (finding.kind, finding.name) == (FindingKind.INVARIANT, "MMIO")


def test_a_watcher_keeps_no_machine_alive() -> None:
    guest = two_pages()
    watcher = Invariants(guest.machine)
    assert at_once(guest, watcher) == ""
    gone = weakref.ref(guest.machine)
    gc.disable()
    try:
        del guest
        assert gone() is None
    finally:
        gc.enable()


def first_violation(path: Path, full_every: int) -> str:
    """Run a recording's scenario under the watcher and return what it finds."""
    runner = Runner(read_recording(path).scenario)
    watcher = Invariants(runner.machine, full_every=full_every)
    found = (watcher.after(result) for result in runner.results())
    return next((f"{path}: {finding}" for finding in found if finding is not None), "")


@pytest.mark.parametrize("folder", SAMPLE)
def test_a_recording_is_free_of_violations(folder: str) -> None:
    path = find_recordings([str(DATA_DIR / "conformance/6.1.192" / folder)])[-1]
    assert first_violation(path, 1) == ""


@pytest.mark.slow
@pytest.mark.parametrize("folder", RECORDINGS)
def test_recordings_are_free_of_violations(folder: str) -> None:
    """Every sixteenth, in the order of their names: the scenarios of one kind stand together."""
    paths = find_recordings([str(DATA_DIR / folder)])
    assert len(paths) > 100
    assert [said for path in paths[::16] if (said := first_violation(path, 8))] == []
