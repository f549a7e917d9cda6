"""Memslots changing under a running guest, the dirty log, and the host unmapping memory."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.memory_region import (
    kvm_clear_dirty_log,
    kvm_delete_memslot,
    kvm_get_dirty_log,
    kvm_set_memory_region,
)
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.spte import MMIO_SPTE_GEN_MASK
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import OutcomeKind
from mmulab.memory.memslots import KVM_ADDRESS_SPACE_NUM, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from tests.kvm.guest import DATA, GVA, HOLE, MIB, Guest, W

EINVAL, EEXIST, ENOENT = -22, -17, -2
LOG, ROM = KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
MMU_WRITABLE = 1 << 10


def region(guest: Guest, id: int, gpa: int, size: int, flags: int = 0, offset: int = 0) -> int:
    slot = KvmMemslot(id, gpa >> 12, size >> 12, guest.machine.memory.backing + (offset >> 12), flags=flags)
    return kvm_set_memory_region(guest.kvm, slot)


def log(guest: Guest, on: bool = True) -> int:
    return region(guest, 0, 0, guest.slot.npages << 12, LOG if on else 0)


# Slots --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "result"),
    [
        ((1, HOLE, 0x1000), 0),
        ((1, HOLE, 0), EINVAL),
        ((1, HOLE, 0x1000, 4), EINVAL),
        ((1, 0x7FF000, 0x2000), EEXIST),
        ((0, 0, 4 * MIB), EINVAL),
        ((0, 0, 8 * MIB, ROM), EINVAL),
        ((0, 0, 8 * MIB, 0, 0x1000), EINVAL),
        ((0, 0, 8 * MIB), 0),
        ((0, HOLE, 8 * MIB), 0),
    ],
)
def test_what_a_slot_may_become(guest: Guest, args: tuple[int, ...], result: int) -> None:
    """``__kvm_set_memory_region``: size, backing and read-only of an old slot stay."""
    before = [(s.base_gfn, s.npages, s.flags) for s in guest.kvm.slots[0].slots]
    assert region(guest, *args) == result
    if result:
        assert [(s.base_gfn, s.npages, s.flags) for s in guest.kvm.slots[0].slots] == before


@pytest.mark.parametrize(
    ("op", "result"),
    [
        (ops.SetMemslot(1, HOLE, 0x1000, 0, 0), 0),
        (ops.SetMemslot(1, HOLE, 0x1000, 4, 0), EINVAL),
        (ops.SetMemslot(1, HOLE + 0x800, 0x1000, 0, 0), EINVAL),
        (ops.SetMemslot(1, HOLE, 0x1800, 0, 0), EINVAL),
        (ops.SetMemslot(1, HOLE, 0x1000, 0, 0x800), EINVAL),
        (ops.SetMemslot(0x7FFC, HOLE, 0x1000, 0, 0), EINVAL),
        (ops.SetMemslot(0x7FFB, HOLE, 0x1000, 0, 0), 0),
        (ops.SetMemslot(2 << 16, HOLE, 0x1000, 0, 0), EINVAL),
        (ops.SetMemslot(1, (1 << 64) - 0x1000, 0x1000, 0, 0), EINVAL),
        (ops.SetMemslot(1, 1 << 52, 0x1000, 0, 0), EINVAL),
        (ops.SetMemslot(1, (1 << 52) - 0x1000, 0x1000, 0, 0), 0),
        (ops.SetMemslot(1, 0, 0, 0, 0), EINVAL),
        (ops.SetMemslot(0, 0, 0, 0, 0), 0),
        (ops.GetDirtyLog(0x7FFC), EINVAL),
        (ops.ClearDirtyLog(5, 1, 1), EINVAL),
        (ops.ClearDirtyLog(5, 64, 1), ENOENT),
    ],
)
def test_what_the_vmm_may_ask_for(guest: Guest, op: ops.Op, result: int) -> None:
    """Alignment, numbers and the highest gfn; a size of 0 deletes (``__kvm_set_memory_region``)."""
    assert guest.machine.execute(op).result == result


def test_a_slot_that_cannot_move_comes_back_without_its_pages(guest: Guest) -> None:
    """The old slot is made invalid first, and valid again (``kvm_set_memslot``)."""
    guest.read(GVA)
    generation = guest.kvm.slots[0].generation
    with guest.watch() as seen:
        assert guest.machine.execute(ops.SetMemslot(0, 1 << 52, 8 * MIB, 0, 0)).result == EINVAL
    assert [type(event).__name__ for event in seen][:1] == ["kvm_mmu_zap_all_fast"]
    assert guest.kvm.slots[0].generation == generation + 4
    assert not guest.slot.invalid
    assert guest.read(GVA).kind is OutcomeKind.OK


def test_a_new_slot_zaps_nothing_but_is_another_generation(guest: Guest) -> None:
    guest.read(GVA)
    generation = guest.kvm.slots[0].generation
    with guest.watch() as seen:
        region(guest, 1, HOLE, 0x1000)
    assert seen == []
    assert guest.kvm.slots[0].generation == generation + 2
    region(guest, 1, HOLE, 0x1000)
    assert guest.kvm.slots[0].generation == generation + 2


def test_deleting_a_slot_ends_all_pages(guest: Guest) -> None:
    region(guest, 1, HOLE, 0x1000, 0, DATA)
    guest.map(GVA + 0x40000, HOLE)
    guest.read(GVA + 0x40000)
    generation, valid = guest.kvm.slots[0].generation, guest.kvm.mmu_valid_gen
    with guest.watch() as seen:
        assert kvm_delete_memslot(guest.kvm, 1) == 0
    assert isinstance(seen[0], ev.kvm_mmu_zap_all_fast)
    assert guest.kvm.mmu_valid_gen == valid ^ 1
    assert guest.kvm.slots[0].generation == generation + 4
    assert kvm_delete_memslot(guest.kvm, 1) == EINVAL
    assert guest.read(GVA + 0x40000).mmio
    assert guest.read(GVA).kind is OutcomeKind.OK


def test_a_moved_slot_shows_the_same_memory_elsewhere(guest: Guest) -> None:
    region(guest, 1, HOLE, 0x1000, 0, DATA)
    guest.map(GVA + 0x40000, HOLE).map(GVA + 0x50000, HOLE + MIB)
    guest.write(GVA + 0x40000, 77)
    assert region(guest, 1, HOLE + MIB, 0x1000, 0, DATA) == 0
    assert guest.read(GVA + 0x40000).mmio
    assert guest.read(GVA + 0x50000).rax == 77
    assert violations(guest.kvm) == []


def test_slots_do_not_share_what_is_kept_of_gfns(guest: Guest) -> None:
    guest.read(GVA)
    old = guest.slot
    kvm_delete_memslot(guest.kvm, 0)
    region(guest, 0, 0, 8 * MIB)
    assert guest.slot is not old
    assert not guest.slot.gfn_track
    assert guest.read(GVA).kind is OutcomeKind.OK
    assert violations(guest.kvm) == []


# The dirty log ---------------------------------------------------------------------------------


def test_logging_protects_every_page_and_a_write_unprotects_its_own() -> None:
    guest = Guest("64").map(GVA, DATA).map(GVA + 0x40000, DATA + 0x40000)
    guest.write(GVA)
    guest.write(GVA + 0x40000)
    with guest.watch() as seen:
        log(guest)
    assert seen == [ev.kvm_flush_remote_tlbs()]
    assert not guest.spte(GVA) & W
    assert guest.spte(GVA) & MMU_WRITABLE
    guest.write(GVA)
    assert guest.spte(GVA) & W
    assert not guest.spte(GVA + 0x40000) & W
    assert kvm_get_dirty_log(guest.kvm, 0) == (0, [DATA >> 12])


def test_reading_the_log_protects_again_and_cleans() -> None:
    guest = Guest("64").map(GVA, DATA)
    log(guest)
    guest.write(GVA)
    with guest.watch() as seen:
        assert kvm_get_dirty_log(guest.kvm, 0) == (0, [DATA >> 12])
    assert seen == [ev.kvm_flush_remote_tlbs()]
    assert not guest.spte(GVA) & W
    with guest.watch() as seen:
        assert kvm_get_dirty_log(guest.kvm, 0) == (0, [])
    assert seen == []
    guest.write(GVA)
    assert kvm_get_dirty_log(guest.kvm, 0)[1] == [DATA >> 12]


def test_what_kvm_writes_is_logged_too() -> None:
    """A and D of the guest's entries, and emulated stores."""
    guest = Guest("64").map(GVA, DATA, 7)
    log(guest)
    guest.read(GVA)
    guest.store(DATA + 0x5000, 1)
    assert kvm_get_dirty_log(guest.kvm, 0)[1] == [(DATA >> 12) + 5, guest.table(GVA) >> 12]


def test_there_is_no_log_without_the_flag(guest: Guest) -> None:
    assert kvm_get_dirty_log(guest.kvm, 0) == (ENOENT, [])
    assert kvm_clear_dirty_log(guest.kvm, 0, 0, 64) == ENOENT


def test_ending_the_log_forgets_it_and_pages_may_be_huge_again() -> None:
    """``kvm_mmu_zap_collapsible_sptes``: only direct pages, whose size is KVM's own choice."""
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2)
    log(guest)
    guest.write(GVA)
    assert guest.page(GVA).direct
    with guest.watch() as seen:
        log(guest, on=False)
    assert seen == [ev.kvm_flush_remote_tlbs()]
    assert guest.slot.dirty_bitmap is None
    assert guest.spte(GVA) == 0
    assert violations(guest.kvm) == []
    guest.write(GVA)
    assert guest.path(GVA).keys() == {4, 3, 2}


def test_small_guest_pages_stay_when_the_log_ends() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB)
    log(guest)
    guest.write(GVA)
    with guest.watch() as seen:
        log(guest, on=False)
    assert seen == []
    assert guest.spte(GVA)


# Manual protection --------------------------------------------------------------------------------


def manual(argument: int, **config: object) -> Guest:
    guest = Guest("64", manual_dirty=argument, **config).map(GVA, DATA)
    guest.write(GVA)
    log(guest)
    return guest


def test_manual_protection_waits_for_the_clear() -> None:
    guest = manual(1)
    guest.write(GVA)
    for _ in range(2):
        assert kvm_get_dirty_log(guest.kvm, 0) == (0, [DATA >> 12])
    assert guest.spte(GVA) & W
    with guest.watch() as seen:
        assert kvm_clear_dirty_log(guest.kvm, 0, 0, 64) == 0
    assert seen == [ev.kvm_flush_remote_tlbs()]
    assert not guest.spte(GVA) & W
    assert kvm_get_dirty_log(guest.kvm, 0) == (0, [])


def test_all_pages_may_begin_dirty_and_nothing_be_protected() -> None:
    """``KVM_DIRTY_LOG_INITIALLY_SET``."""
    guest = manual(3)
    assert len(kvm_get_dirty_log(guest.kvm, 0)[1]) == guest.slot.npages
    assert guest.spte(GVA) & W
    kvm_clear_dirty_log(guest.kvm, 0, 0, 64)
    assert not guest.spte(GVA) & W
    assert len(kvm_get_dirty_log(guest.kvm, 0)[1]) == guest.slot.npages - 64


def test_then_huge_pages_are_protected_by_the_clear() -> None:
    guest = Guest("64", thp=True, manual_dirty=3).map(GVA, 4 * MIB, level=2)
    guest.write(GVA)
    log(guest)
    assert guest.spte(GVA, 2) & W
    kvm_clear_dirty_log(guest.kvm, 0, 4 * MIB >> 12, 64)
    assert not guest.spte(GVA, 2) & (W | MMU_WRITABLE)
    guest.write(GVA)
    assert guest.page(GVA).direct
    assert violations(guest.kvm) == []


@pytest.mark.parametrize(
    ("first", "count", "result"),
    [
        (0, 64, 0),
        (64, 128, 0),
        (1, 64, EINVAL),
        (0, 63, EINVAL),
        (1984, 64, 0),
        (1984, 128, EINVAL),
        (2048, 0, 0),
        (4096, 0, EINVAL),
    ],
)
def test_a_clear_is_in_words_of_the_bitmap(guest: Guest, first: int, count: int, result: int) -> None:
    log(guest)
    assert guest.slot.npages == 2048
    assert kvm_clear_dirty_log(guest.kvm, 0, first, count) == result


def test_the_last_word_may_be_short() -> None:
    guest = Guest("64")
    region(guest, 1, HOLE, 0x46000, LOG)
    assert kvm_clear_dirty_log(guest.kvm, 1, 64, 6) == 0
    assert kvm_clear_dirty_log(guest.kvm, 1, 64, 5) == EINVAL


def test_only_dirty_pages_are_protected_by_the_clear() -> None:
    guest = manual(1)
    with guest.watch() as seen:
        assert kvm_clear_dirty_log(guest.kvm, 0, 0, 64) == 0
    assert seen == []


# The generation ------------------------------------------------------------------------------


@pytest.mark.parametrize("tdp", [False, True], ids=["shadow", "tdp"])
def test_an_mmio_spte_is_not_believed_after_its_generation_came_round(tdp: bool) -> None:
    """MMIO sptes hold 19 bits of it, one of them the address space: they last 2**18 changes."""
    guest = Guest("64", host=HostConfig(tdp=tdp))
    guest.map(GVA, HOLE)
    assert guest.read(GVA).mmio
    slots = guest.kvm.slots[0]
    made = slots.generation
    slots.generation += (1 << 19) - 3 * KVM_ADDRESS_SPACE_NUM
    log(guest, True)
    log(guest, False)
    assert region(guest, 1, HOLE, 0x1000) == 0
    assert slots.generation & MMIO_SPTE_GEN_MASK == made
    read = guest.read(GVA)
    assert read.kind is OutcomeKind.OK
    assert not read.mmio


def test_the_wrap_zaps_everything_and_says_so() -> None:
    guest = Guest("64")
    seen: list[ev.Event] = []
    guest.kvm.slots[0].generation = MMIO_SPTE_GEN_MASK - 1
    guest.kvm.emit = seen.append
    log(guest, True)
    assert [type(e) for e in seen].count(ev.kvm_mmu_zap_all_fast) == 1
    seen.clear()
    log(guest, False)
    assert ev.kvm_mmu_zap_all_fast not in [type(e) for e in seen]
