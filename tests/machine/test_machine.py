"""A machine: built as configured, and each op given its effect."""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.invariants import Invariant
from mmulab.kvm.spte import shadow_format
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig, MachineConfig, SlotConfig
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, Outcome, OutcomeKind
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.x86.regs import CpuModel
from tests.kvm.guest import DATA, GVA, MIB, MODES, Guest

SLOT = SlotConfig(0, 0, 4 * MIB, 0, 0)
FLAT = ops.SetSregs(0x11, 0, 0, 0)


@contextmanager
def collector_off() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def machine_of(**config: object) -> Machine:
    return Machine(MachineConfig(**{"backing_bytes": 8 * MIB, "slots": (SLOT,), "table_frames": 64} | config))


def test_it_is_built_as_configured() -> None:
    slots = (SLOT, SlotConfig(1, 16 * MIB, 2 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 4 * MIB))
    cpu = CpuModel(vendor="intel", maxphyaddr=36)
    machine = machine_of(slots=slots, vcpus=3, cpu=cpu, manual_dirty=3, disable_nx_huge_pages=True, thp=True)
    base = machine.memory.backing
    shown = [
        SlotConfig(slot.id, slot.base_gfn << 12, slot.npages << 12, slot.flags, slot.base_frame - base << 12)
        for slot in machine.kvm.slots[0].slots
    ]
    assert tuple(shown) == slots
    assert [vcpu.id for vcpu in machine.kvm.vcpus] == [0, 1, 2]
    assert all(vcpu.cpu is cpu for vcpu in machine.kvm.vcpus)
    assert machine.kvm.manual_dirty_log_protect == 3
    assert machine.kvm.disable_nx_huge_pages
    assert [slot.host_level for slot in machine.kvm.slots[0].slots] == [2, 2]
    assert machine.kvm.slots[0].slots[1].base_frame == machine.memory.backing + (4 * MIB >> 12)


@pytest.mark.parametrize(
    ("host", "decode", "mmio"),
    [
        (HostConfig(), False, shadow_format(40).mmio_value),
        (HostConfig(vendor="intel", phys_bits=46), True, shadow_format(46).mmio_value),
        (HostConfig(vendor="intel", tdp=True), True, 6),
        (HostConfig(tdp=True), False, shadow_format(40).mmio_value),
        (HostConfig(decode_assists=True), True, shadow_format(40).mmio_value),
    ],
)
def test_the_hosts_parameters_reach_kvm(host: HostConfig, decode: bool, mmio: int) -> None:
    kvm = machine_of(host=host).kvm
    assert kvm.config.decode_assists is decode
    assert kvm.fmt.mmio_value == mmio
    for name in ("vendor", "tdp", "tdp_mmu", "flush_on_reuse", "mmio_caching", "nx_huge_pages", "la57"):
        assert getattr(kvm.config, name) == getattr(host, name)


def test_building_reports_nothing() -> None:
    seen: list[ev.Event] = []
    machine = machine_of()
    machine.emit = seen.append
    assert machine.emit is not None
    assert seen == []
    machine.execute(FLAT)
    machine.execute(ops.Read(Mode.SUPERVISOR, 4, 0))
    assert seen


def test_without_a_sink_the_outcome_is_the_same() -> None:
    outcomes = []
    for sink in (None, [].append):
        machine = machine_of()
        machine.emit = sink
        machine.execute(FLAT)
        outcomes.append(machine.execute(ops.Write(Mode.SUPERVISOR, 4, 0x5000, 7)))
    assert outcomes[0] == outcomes[1]


def test_the_op_sink_gets_each_op_with_its_outcome() -> None:
    machine = machine_of()
    seen: list[tuple[Op, Outcome]] = []
    machine.op_sink = lambda op, outcome: seen.append((op, outcome))
    read = ops.Read(Mode.SUPERVISOR, 4, 0x5000)
    outcomes = [machine.execute(op) for op in (FLAT, read)]
    assert seen == [(FLAT, outcomes[0]), (read, outcomes[1])]


def test_statistics_are_the_vms_and_the_sum_of_the_vcpus() -> None:
    machine = machine_of(vcpus=2)
    for vcpu in (0, 1):
        machine.execute(ops.SetSregs(0x11, 0, 0, 0, vcpu=vcpu))
        machine.execute(ops.Read(Mode.SUPERVISOR, 4, 0x5000 + 0x40000 * vcpu, vcpu=vcpu))
    assert machine.stats["pf_fixed"] == 2
    assert machine.stats["pages_4k"] == 16
    assert machine.kvm.vcpus[1].stat["pf_fixed"] == 1


def test_an_op_that_is_not_modelled_is_refused_by_name() -> None:
    @dataclass(frozen=True, slots=True)
    class Levitate(Op):
        """An op of the future."""

    with pytest.raises(NotImplementedError, match="the op Levitate is not modelled yet"):
        machine_of().execute(Levitate())


# Host ops -------------------------------------------------------------------------------------


def test_a_host_write_is_seen_by_the_guest_and_by_nobody_else() -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    with guest.watch() as seen:
        guest.machine.execute(ops.HostWrite(4, DATA, 0x12345678))
    assert seen == []
    assert guest.read(GVA).rax == 0x12345678


def test_a_store_by_physical_address_goes_through_write_tracking() -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.read(GVA)
    with guest.watch() as seen:
        guest.machine.execute(ops.GuestStore(8, guest.entry(GVA, 2), 0))
    assert isinstance(seen[0], ev.kvm_mmu_pte_write)
    assert guest.spte(GVA, 2) == 0


def test_a_slots_number_has_the_address_space_in_its_high_half() -> None:
    machine = machine_of()
    assert machine.execute(ops.SetMemslot(1 << 16 | 5, 0, MIB, 0, 0)).result == 0
    (slot,) = machine.kvm.slots[1].slots
    assert (slot.id, slot.as_id) == (5, 1)
    assert len(machine.kvm.slots[0].slots) == 1


def test_results_of_host_ops_are_the_ioctls() -> None:
    machine = machine_of()
    results = [
        machine.execute(op).result
        for op in (
            ops.SetMemslot(1, 2 * MIB, MIB, 0, 0),
            ops.DeleteMemslot(7),
            ops.GetDirtyLog(0),
            ops.SetMemslot(0, 0, 4 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0),
            ops.GetDirtyLog(0),
            ops.ClearDirtyLog(0, 1, 64),
            ops.SetNrMmuPages(10),
            ops.SetNrMmuPages(70),
        )
    ]
    assert results == [-17, -22, -2, 0, 0, -22, -22, 0]
    assert machine.kvm.n_requested_mmu_pages == 70


@pytest.mark.parametrize(
    ("gpa", "length", "ranges"),
    [
        (2 * MIB, 2 * MIB, [(0x200, 0x3FF)] * 2),
        (2 * MIB + 0x3000, 0x1000, [(0x200, 0x3FF), (0x203, 0x203), (0x203, 0x203)]),
        (2 * MIB, 0x1000, [(0x200, 0x3FF), (0x200, 0x200), (0x200, 0x200)]),
        (MIB, 2 * MIB, [(0, 0x1FF), (0x200, 0x3FF), (0x100, 0x2FF), (0x100, 0x2FF)]),
    ],
)
def test_changing_protection_invalidates_the_ends_first(
    gpa: int, length: int, ranges: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_of(thp=True)
    called: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mmulab.machine.host_memory.kvm_unmap_hva_range",
        lambda kvm, first, last: called.append((first, last)),
    )
    machine.execute(ops.InvalidateHva(gpa, length))
    base = machine.memory.backing
    ends = [(first - base, last - base) for first, last in called]
    # The block of an end that lies in the one split before is not split again.
    assert ends[-2:] == ranges[-2:]
    assert set(ends) == set(ranges)


@pytest.mark.parametrize("gpa", [2 * MIB, 4 * MIB])
def test_each_page_that_the_host_has_is_aged_once(gpa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_of(thp=True)
    machine.execute(ops.InvalidateHva(2 * MIB, 0x1000))  # splits that huge page
    called: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mmulab.machine.machine.kvm_age_hva", lambda kvm, first, last: called.append((first, last))
    )
    assert machine.execute(ops.Age(gpa, 2 * MIB)).result == 0
    base, first = machine.memory.backing, gpa >> 12
    small = [(base + first + i, base + first + i) for i in range(512)]
    assert called == (small if gpa == 2 * MIB else [(base + first, base + first + 511)])


def test_the_host_is_asked_for_whole_pages() -> None:
    machine = machine_of(thp=True)
    assert machine.execute(ops.Age(0x10, 0x1000)).result == -errno.EINVAL
    with pytest.raises(InputError, match="part of a 2 MiB page"):
        machine.execute(ops.Age(0x1000, 0x1000))


@pytest.mark.parametrize(
    ("gpa", "length", "result", "blocks"),
    [
        (2 * MIB, 2 * MIB, 0, [1]),
        (MIB, 6 * MIB, 0, [1, 2]),
        (2 * MIB, 4 * MIB - 1, 0, [1, 2]),  # the length is rounded up to whole pages
        (2 * MIB, 0x1000, 0, []),
        (MIB, 0x1000, -errno.EINVAL, []),
        (2 * MIB + 8, 2 * MIB, -errno.EINVAL, []),
    ],
)
def test_whole_blocks_become_huge_pages(
    gpa: int, length: int, result: int, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_of()
    called: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mmulab.machine.machine.kvm_unmap_hva_range", lambda kvm, first, last: called.append((first, last))
    )
    assert machine.execute(ops.Collapse(gpa, length)).result == result
    base = machine.memory.backing
    assert called == [(base + 512 * block, base + 512 * block + 511) for block in blocks]
    machine.execute(ops.Collapse(gpa, length))
    assert len(called) == len(blocks)  # what is huge already stays as it is


def test_a_backing_of_huge_pages_is_left_alone() -> None:
    machine = machine_of(thp=True)
    machine.execute(ops.InvalidateHva(2 * MIB, 0x1000))
    assert machine.execute(ops.Collapse(2 * MIB, 2 * MIB)).result == -errno.EINVAL


@pytest.mark.parametrize("host", [HostConfig(), HostConfig(tdp=True, tdp_mmu=True)], ids=["shadow", "tdp"])
def test_a_collapsed_block_is_mapped_huge_until_it_is_split(host: HostConfig) -> None:
    guest = Guest("np", host=host)
    guest.write(2 * MIB, 0x1234)
    with guest.watch() as seen:
        guest.machine.execute(ops.Collapse(2 * MIB, 2 * MIB))
    assert (type(seen[0]), seen[-1]) == (ev.kvm_unmap_hva_range, ev.kvm_flush_remote_tlbs())
    assert guest.spte(2 * MIB) == 0
    assert guest.read(2 * MIB).rax == 0x1234
    assert guest.kvm.stat["pages_2m"] == 1
    guest.machine.execute(ops.InvalidateHva(2 * MIB, 0x1000))
    guest.read(2 * MIB)
    assert guest.kvm.stat["pages_2m"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_at_the_end_nothing_is_left(mode: str) -> None:
    guest = Guest(mode)
    if mode != "np":
        guest.map(GVA, DATA)
    guest.read(GVA)
    with guest.watch() as seen:
        done = guest.machine.execute(ops.Teardown())
    assert done.kind is OutcomeKind.HOST
    assert seen[0] == ev.kvm_unmap_hva_range()
    zapped = [e for e in seen if isinstance(e, ev.kvm_mmu_prepare_zap_page)]
    assert zapped
    assert not guest.kvm.pages
    assert not guest.kvm.page_hash
    assert guest.kvm.n_used_mmu_pages == 0
    assert not any(guest.slot.rmap)


@pytest.mark.parametrize(
    "op",
    [
        ops.HostWrite(8, 8 * MIB - 4, 1),
        ops.SetMemslot(1, 0x1000000, 0x2000, 0, 8 * MIB - 0x1000),
        ops.InvalidateHva(8 * MIB, 0x1000),
        ops.Age(8 * MIB, 0x1000),
        ops.Collapse(8 * MIB, 2 * MIB),
    ],
    ids=lambda op: type(op).__name__,
)
def test_what_the_guest_has_no_memory_for_is_refused(op: Op) -> None:
    """Behind the backing lies nothing of the guest's; the last bytes of it are in order."""
    guest = Guest("64")
    with pytest.raises(InputError, match="do not lie in the 0x800000 bytes of the guest's backing"):
        guest.machine.execute(op)
    assert guest.machine.execute(ops.HostWrite(8, 8 * MIB - 8, 1)).kind is OutcomeKind.HOST


def test_a_machine_checks_itself() -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.write(GVA)
    machine = guest.machine
    assert machine.check()
    assert machine.check().status is Invariant.VALID
    machine.memory.store64(guest.sptep(GVA), guest.spte(GVA) + 0x1000)
    found = machine.check()
    assert not found
    assert Invariant.FRAME in found.status
    assert {violation.sptep for violation in found.violations} == {guest.sptep(GVA)}
    assert "<td>FRAME</td>" in found._repr_html_()


def test_a_machine_goes_at_once() -> None:
    machine = machine_of()
    machine.kvm.emit = lambda event: None
    gone = weakref.ref(machine), weakref.ref(machine.kvm.emit)  # the VM alone holds its observer
    with collector_off():
        del machine
        assert [ref() for ref in gone] == [None, None]


def seen_on(machine: Machine, event: ev.Event) -> None:
    """An observer that knows the machine."""


def test_an_observer_that_holds_its_machine_does_not_keep_it() -> None:
    machine = machine_of()
    machine.kvm.emit = partial(seen_on, machine)
    gone = weakref.ref(machine)
    del machine
    gc.collect()
    assert gone() is None
