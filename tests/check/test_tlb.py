"""A right kernel lets no processor keep what does harm; without one of its flushes the adversary finds it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from mmulab.check.finding import Finding, FindingKind
from mmulab.check.tlb import Adversary
from mmulab.conform.recording import find_recordings, read_recording
from mmulab.kvm.state import Kvm, Request
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import Mode, Op, OutcomeKind
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.runner import Result, Runner
from tests.kvm.guest import DATA, GVA, MIB, TABLE, Guest

DATA_DIR = Path(__file__).resolve().parents[2] / "data"
SAMPLE = (
    "conformance/6.1.192/sh",
    "conformance/6.1.192/tdp1",
    "conformance/6.1.192/ept1-pml",
    "conformance/6.1.192/nested48",
    "conformance/6.1.192/nested-ept",
    "conformance/6.12.117/sh",
    "conformance-more/6.1.192/smp",
    "conformance-more/6.1.192/tdpf1",
)
OTHER = GVA + 0x200000
"""An address under another directory entry."""
HOSTS = {
    "shadow": HostConfig(),
    "npt": HostConfig(tdp=True, tdp_mmu=False),
    "npt-tdp-mmu": HostConfig(tdp=True, tdp_mmu=True),
    "ept": HostConfig(vendor="intel", tdp=True, tdp_mmu=False),
}


class Watched:
    """A guest with one page that was written, and the adversary that watches it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest.map(GVA, DATA)
        self.adversary = Adversary(guest.machine)
        assert self.execute(ops.Write(Mode.SUPERVISOR, 4, GVA, 1)) is None

    def execute(self, op: Op) -> Finding | None:
        first = len(self.guest.events)
        outcome = self.guest.machine.execute(op)
        return self.adversary.after(Result(3, "op", op, outcome, self.guest.events[first:], {}))


def make_it_a_table(watched: Watched) -> Finding | None:
    """Use the page that was written as a table."""
    guest = watched.guest
    guest.poke(guest.entry(OTHER, 2), DATA | TABLE)
    return watched.execute(ops.Read(Mode.SUPERVISOR, 4, OTHER))


def invalidate(watched: Watched) -> Finding | None:
    return watched.execute(ops.InvalidateHva(DATA, 0x1000))


def log_writes(watched: Watched) -> Finding | None:
    return watched.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))


def delete_slot(watched: Watched) -> Finding | None:
    return watched.execute(ops.DeleteMemslot(0))


SEEDED: list[tuple[Callable[[Watched], Finding | None], str, tuple[str, ...]]] = [
    (make_it_a_table, "WRITABLE_TABLE", ("shadow",)),
    (invalidate, "TAKEN", tuple(HOSTS)),
    (log_writes, "CLEAN", tuple(HOSTS)),
    (delete_slot, "FREED_TABLE", ("shadow", "npt", "ept")),
]


@pytest.mark.parametrize(
    ("step", "name", "host"),
    [(step, name, host) for step, name, hosts in SEEDED for host in hosts],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_flush_that_is_left_out_is_found(
    step: Callable[[Watched], Finding | None], name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert step(Watched(Guest("64", host=HOSTS[host]))) is None
    watched = Watched(Guest("64", host=HOSTS[host]))
    ask = Kvm.make_all_cpus_request

    def ask_for_no_flush(kvm: Kvm, request: int) -> None:
        # Nor for roots to be dropped: a root that is loaded anew is flushed.
        ask(kvm, request & ~(Request.TLB_FLUSH | Request.MMU_FREE_OBSOLETE_ROOTS))

    monkeypatch.setattr(Kvm, "make_all_cpus_request", ask_for_no_flush)
    found = step(watched)
    assert found is not None
    assert (found.kind, found.name, found.op) == (FindingKind.STALE, name, 3)
    assert "vCPU 0 may" in found.said


def test_one_site_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmulab.kvm.mmu_notifier.kvm_flush_remote_tlbs", lambda kvm: None)
    found = invalidate(Watched(Guest("64")))
    assert found is not None
    assert found.name == "TAKEN"
    assert found.said.endswith("which the host has invalidated")


def test_what_is_kept_goes_with_the_flush() -> None:
    watched = Watched(Guest("64"))
    assert watched.adversary.kept(0) == []
    assert invalidate(watched) is None
    (kept,) = watched.adversary.kept(0)
    assert kept.gfn == DATA >> 12
    assert list(kept.frames) == [watched.guest.hpa(DATA) >> 12]
    assert watched.guest.vcpu.requests & Request.TLB_FLUSH
    assert watched.execute(ops.Nop()) is None
    assert watched.adversary.kept(0) == []


def test_a_vcpu_that_never_ran_keeps_nothing() -> None:
    guest = Guest("64", vcpus=2)
    guest.reset(vcpu=1)
    watched = Watched(guest)
    assert invalidate(watched) is None
    assert watched.adversary.kept(0)
    assert watched.adversary.kept(1) == []


def test_a_translation_that_was_not_used_is_not_kept() -> None:
    guest = Guest("64")
    watched = Watched(guest)
    sptep = guest.sptep(GVA)
    guest.machine.memory.store64(sptep, guest.spte(GVA) & ~guest.kvm.fmt.accessed)
    assert watched.execute(ops.HostWrite(4, DATA + 0x3000, 0)) is None
    held = len(watched.adversary.kept(0))
    guest.machine.memory.store64(sptep, 0)
    assert watched.execute(ops.HostWrite(4, DATA + 0x3000, 0)) is None
    assert len(watched.adversary.kept(0)) == held


def test_an_adversary_keeps_no_machine_alive_nor_itself() -> None:
    watched = Watched(Guest("64"))
    machine, adversary = weakref.ref(watched.guest.machine), weakref.ref(watched.adversary)
    gc.disable()
    try:
        del watched
        assert machine() is None
        assert adversary() is None
    finally:
        gc.enable()


def first_harm(path: Path) -> str:
    """Run a recording's scenario under the adversary and return what it finds."""
    runner = Runner(read_recording(path).scenario)
    adversary = Adversary(runner.machine)
    found = (adversary.after(result) for result in runner.results())
    return next((f"{path}: {finding}" for finding in found if finding is not None), "")


@pytest.mark.parametrize("folder", SAMPLE)
def test_a_recording_has_no_harm(folder: str) -> None:
    assert first_harm(find_recordings([str(DATA_DIR / folder)])[-1]) == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conformance", "conformance-more"])
@pytest.mark.parametrize("kernel", ["6.1.192", "6.12.117"])
def test_recordings_have_no_harm(kind: str, kernel: str) -> None:
    paths = find_recordings([str(DATA_DIR / kind / kernel)])
    assert len(paths) > 100
    assert [said for path in paths[::8] if (said := first_harm(path))] == []


def test_a_machine_runs_on_without_its_adversary() -> None:
    guest = Guest("64").map(GVA, DATA)
    adversary = Adversary(guest.machine)
    del adversary
    assert guest.write(GVA).kind is OutcomeKind.OK
