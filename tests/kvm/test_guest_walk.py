"""KVM's walk of the guest's tables: what it reads and reports, and the bits that it sets."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.guest_walk import gva_to_gpa, kvm_read_guest, kvm_write_guest, read_pdptrs, walk_addr_generic
from mmulab.machine import op as ops
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from mmulab.x86.pferr import (
    ACC_ALL,
    ACC_WRITE_MASK,
    PFERR_FETCH_MASK,
    PFERR_IMPLICIT_ACCESS,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.regs import X86_CR4_SMAP
from mmulab.x86.walk import Walk
from tests.kvm.guest import DATA, GVA, HOLE, MIB, PAGE, TABLE, A, D, Guest, P, U, W, cr4


def walk(guest: Guest, gva: int = GVA, access: int = 0) -> Walk:
    found = walk_addr_generic(guest.vcpu, guest.vcpu.mmu, gva, access)
    assert (found.fault is None) == (found.walk.error is None)
    return found.walk


def test_a_walk_reports_every_entry_from_the_root_down(paged: Guest) -> None:
    with paged.watch() as seen:
        assert walk(paged, GVA | 0x123).pa == DATA | 0x123
    top = paged.mode.root_level
    assert seen[0] == ev.kvm_mmu_pagetable_walk(GVA | 0x123, 0)
    assert seen[1:] == [
        ev.kvm_mmu_paging_element(paged.load(paged.entry(GVA, level)), level) for level in range(top, 0, -1)
    ]


def test_a_fault_is_reported_where_it_lies(paged: Guest) -> None:
    paged.poke(paged.entry(GVA), 0)
    with paged.watch() as seen:
        w = walk(paged, access=PFERR_WRITE_MASK | PFERR_USER_MASK)
    assert w.error == PFERR_WRITE_MASK | PFERR_USER_MASK
    assert w.level == 1
    assert seen[-1] == ev.kvm_mmu_walker_error(w.error)


def test_the_pdpte_is_the_register_not_the_memory() -> None:
    guest = Guest("pae").map(GVA, DATA)
    guest.poke(guest.root, 0)
    with guest.watch() as seen:
        assert walk(guest).pa == DATA
    assert seen[1] == ev.kvm_mmu_paging_element(guest.vcpu.mmu.pdptrs[0], 3)


@pytest.mark.parametrize("write", [False, True])
def test_a_and_d_are_set_from_the_root_down_after_the_walk(paged: Guest, write: bool) -> None:
    plain = P | W | U
    paged.map(GVA, DATA, plain)
    levels = range(paged.mode.root_level - paged.mode.has_pdptes, 0, -1)
    for level in levels:
        at = paged.entry(GVA, level)
        paged.poke(at, paged.load(at) & ~A)
    with paged.watch() as seen:
        w = walk(paged, access=PFERR_WRITE_MASK if write else 0)
    marks = [e for e in seen if not isinstance(e, ev.kvm_mmu_paging_element)][1:]
    wanted: list[ev.Event] = [ev.kvm_mmu_set_accessed_bit(paged.entry(GVA, level)) for level in levels]
    wanted += [ev.kvm_mmu_set_dirty_bit(paged.entry(GVA))] if write else []
    assert marks == wanted
    assert all(paged.load(paged.entry(GVA, level)) & A for level in levels)
    assert bool(paged.load(paged.entry(GVA)) & D) == write
    assert bool(w.pte_access & ACC_WRITE_MASK) == write


def test_a_walk_that_fails_sets_nothing(paged: Guest) -> None:
    """The processor would set A on its way; KVM sets it when the walk has succeeded."""
    paged.map(GVA, DATA, 0)
    at = paged.entry(GVA, 2)
    paged.poke(at, paged.load(at) & ~A)
    with paged.watch() as seen:
        assert walk(paged).error == 0
    assert not paged.load(at) & A
    assert not any(isinstance(e, ev.kvm_mmu_set_accessed_bit) for e in seen)


def test_a_table_used_at_two_levels_changes_under_its_own_walk() -> None:
    """Its entry gets A as a directory, so the leaf is no longer what was read: the walk is repeated."""
    guest = Guest("64")
    guest.map(GVA, DATA)
    table = guest.table(GVA)
    gva = 0
    for level in (4, 3):
        guest.poke(guest.entry(gva, level), guest.load(guest.entry(GVA, level)))
    guest.poke(guest.entry(gva, 2), table | TABLE)
    guest.poke(table, table | P | W | U)
    with guest.watch() as seen:
        w = walk(guest, gva)
    assert w.pa == table
    leaf_reads = [e for e in seen if isinstance(e, ev.kvm_mmu_paging_element) and e.level == 1]
    assert [bool(e.pte & A) for e in leaf_reads] == [False]
    directory = guest.table(gva, 2)
    guest.poke(directory, directory | P | W | U)
    with guest.watch() as seen:
        walk(guest, gva)
    assert sum(isinstance(e, ev.kvm_mmu_set_accessed_bit) for e in seen) == 2
    assert sum(isinstance(e, ev.kvm_mmu_pagetable_walk) for e in seen) == 1
    assert [e.level for e in seen if isinstance(e, ev.kvm_mmu_paging_element)] == [4, 3, 2, 1, 4, 3, 2, 1]


def test_entries_in_a_read_only_slot_stay_as_they_are() -> None:
    """The bits are reported and not set, in each walk again."""
    guest = Guest("64")
    guest.map(GVA, DATA, P | W | U)
    guest.machine.execute(ops.DeleteMemslot(0))
    for id, gpa, size, flags in (
        (0, 0, guest.table(GVA), 0),
        (1, guest.table(GVA), 0x1000, KVM_MEM_READONLY),
    ):
        guest.machine.execute(ops.SetMemslot(id, gpa, size, flags, gpa))
    for _ in range(2):
        with guest.watch() as seen:
            assert walk(guest, access=PFERR_WRITE_MASK).pa == DATA
        assert ev.kvm_mmu_set_dirty_bit(guest.entry(GVA)) in seen
    assert not guest.load(guest.entry(GVA)) & (A | D)


@pytest.mark.parametrize("level", [1, 2])
def test_a_table_in_a_hole_is_not_present(guest: Guest, level: int) -> None:
    guest.poke(guest.entry(GVA, level + 1), HOLE | TABLE)
    assert walk(guest, access=PFERR_USER_MASK).error == PFERR_USER_MASK


def test_reserved_bits_come_before_rights(guest: Guest) -> None:
    guest.poke(guest.entry(GVA), DATA | PAGE & ~U | 1 << 45)
    error = PFERR_RSVD_MASK | PFERR_PRESENT_MASK | PFERR_USER_MASK
    assert walk(guest, access=PFERR_USER_MASK).error == error


def test_implicit_accesses_are_not_exempt_from_smap() -> None:
    guest = Guest("64", on=cr4(X86_CR4_SMAP)).map(GVA, DATA)
    guest.vcpu.ac = True
    assert walk(guest).error is None
    assert walk(guest, access=PFERR_IMPLICIT_ACCESS).error == PFERR_PRESENT_MASK
    guest.vcpu.ac = False
    assert walk(guest).error == PFERR_PRESENT_MASK
    with guest.watch() as seen:
        walk(guest, access=PFERR_IMPLICIT_ACCESS)
    assert seen[0] == ev.kvm_mmu_pagetable_walk(GVA, 0)


def test_without_paging_there_is_no_walk() -> None:
    guest = Guest("np")
    with guest.watch() as seen:
        assert gva_to_gpa(guest.vcpu, guest.vcpu.walk_mmu, 0x1234, PFERR_FETCH_MASK) == (0x1234, None)
    assert seen == []


def test_a_translation_tells_the_fault(guest: Guest) -> None:
    assert gva_to_gpa(guest.vcpu, guest.vcpu.walk_mmu, GVA | 5, 0) == (DATA | 5, None)
    gpa, fault = gva_to_gpa(guest.vcpu, guest.vcpu.walk_mmu, GVA + 0x1000, PFERR_WRITE_MASK)
    assert gpa is None
    assert fault is not None
    assert (fault.error_code, fault.address) == (PFERR_WRITE_MASK, GVA + 0x1000)
    assert not fault.nested_page_fault


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", [0, 4, 5])
def test_guest_memory_is_read_and_written_through_the_slots(guest: Guest, size: int, offset: int) -> None:
    value = 0x8877665544332211 & ((1 << 8 * size) - 1)
    assert kvm_write_guest(guest.vcpu, DATA + offset, size, value)
    assert kvm_read_guest(guest.vcpu, DATA + offset, size) == value == guest.load(DATA + offset, size)
    assert kvm_read_guest(guest.vcpu, HOLE, size) is None
    assert not kvm_write_guest(guest.vcpu, HOLE, size, value)


def test_a_read_only_slot_takes_no_write_and_a_logged_one_notes_it(guest: Guest) -> None:
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))
    guest.machine.execute(ops.SetMemslot(1, HOLE, 0x1000, KVM_MEM_READONLY, DATA))
    assert not kvm_write_guest(guest.vcpu, HOLE, 4, 1)
    assert kvm_read_guest(guest.vcpu, HOLE, 4) == 0
    assert kvm_write_guest(guest.vcpu, DATA, 4, 1)
    assert guest.slot.dirty_bitmap is not None
    assert [i for i, dirty in enumerate(guest.slot.dirty_bitmap) if dirty] == [DATA >> 12]


@pytest.mark.parametrize("bit", [1, 2, 5, 8, 40, 63])
def test_pdptes_with_reserved_bits_are_refused(bit: int) -> None:
    """SDM 3, table 4-8: only if they are present."""
    guest = Guest("pae").map(GVA, DATA)
    entries = [guest.load(guest.root + 8 * i) for i in range(4)]
    assert read_pdptrs(guest.vcpu, guest.root) == entries
    guest.poke(guest.root + 8, 1 << bit)
    assert read_pdptrs(guest.vcpu, guest.root) is not None
    guest.poke(guest.root + 8, 1 << bit | P)
    assert read_pdptrs(guest.vcpu, guest.root) is None
    assert read_pdptrs(guest.vcpu, HOLE) is None


def test_pdptes_lie_on_32_bytes() -> None:
    guest = Guest("pae")
    guest.poke(guest.root + 0x20, DATA | P)
    assert read_pdptrs(guest.vcpu, guest.root | 0x3F) == [DATA | P, 0, 0, 0]


def test_rights_of_the_path_are_kept_for_each_level(guest: Guest) -> None:
    """``pt_access`` per level (b1bd5cba3306): those above, without the entry's own."""
    at = guest.entry(GVA, 2)
    guest.poke(at, guest.load(at) & ~W)
    w = walk(guest)
    assert [w.pt_access[level] for level in (4, 3, 2, 1)] == [ACC_ALL] * 3 + [ACC_ALL & ~ACC_WRITE_MASK]
    assert w.pte_access == ACC_ALL & ~ACC_WRITE_MASK
