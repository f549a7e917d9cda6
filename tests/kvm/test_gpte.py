"""Guest entries read one at a time."""

from __future__ import annotations

import pytest

from mmulab.kvm.gpte import (
    get_level1_sp_gpa,
    gpte_access,
    gpte_to_gfn,
    prefetch_gpte,
    prefetch_invalid_gpte,
    protect_clean_gpte,
)
from mmulab.kvm.spte import is_shadow_present_pte
from mmulab.machine import op as ops
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from mmulab.x86.paging import Paging
from mmulab.x86.pferr import ACC_ALL, ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK
from tests.kvm.guest import DATA, GVA, HOLE, MIB, NX, PAGE, A, D, Guest, P, U, W


def paging_of(guest: Guest) -> Paging:
    found = guest.vcpu.mmu.paging
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("entry", "access"),
    [
        (P, ACC_EXEC_MASK),
        (P | W | U, ACC_ALL),
        (P | U | NX, ACC_USER_MASK),
        (P | W | NX, ACC_WRITE_MASK),
    ],
)
def test_an_entrys_rights(guest: Guest, entry: int, access: int) -> None:
    assert gpte_access(paging_of(guest), entry) == access


def test_an_entrys_gfn_leaves_the_ignored_bits_out() -> None:
    assert gpte_to_gfn(NX | 0x7FF << 52 | 0x12345 << 12 | 0xFFF) == 0x12345


def test_a_clean_page_is_not_mapped_writable(guest: Guest) -> None:
    paging = paging_of(guest)
    assert protect_clean_gpte(paging, ACC_ALL, P | A) == ACC_ALL & ~ACC_WRITE_MASK
    assert protect_clean_gpte(paging, ACC_ALL, P | A | D) == ACC_ALL


def test_a_page_shadows_the_half_of_a_4_byte_table_that_its_quadrant_says() -> None:
    guest = Guest("32").map(GVA, DATA).map(GVA + 2 * MIB, DATA)
    guest.read(GVA)
    guest.read(GVA + 2 * MIB)
    table = guest.table(GVA)
    assert guest.table(GVA + 2 * MIB) == table
    low, high = guest.page(GVA), guest.page(GVA + 2 * MIB)
    assert (low.quadrant, high.quadrant) == (0, 1)
    assert get_level1_sp_gpa(low, 4) == table
    assert get_level1_sp_gpa(high, 4) == table + 0x800 == guest.entry(GVA + 2 * MIB)
    assert get_level1_sp_gpa(low, 8) == table


@pytest.mark.parametrize("entry", [0, DATA | W | A, DATA | P | W | D, DATA | PAGE | 1 << 45])
def test_an_unusable_entry_loses_its_spte(guest: Guest, entry: int) -> None:
    """``FNAME(prefetch_invalid_gpte)``: not present, never accessed, or with a reserved bit."""
    guest.read(GVA)
    assert prefetch_invalid_gpte(guest.vcpu, guest.sptep(GVA), entry, paging_of(guest))
    assert guest.spte(GVA) == 0
    assert guest.rmap(DATA >> 12) == []


def test_a_usable_entry_keeps_it(guest: Guest) -> None:
    guest.read(GVA)
    assert not prefetch_invalid_gpte(guest.vcpu, guest.sptep(GVA), DATA | P | A, paging_of(guest))
    assert is_shadow_present_pte(guest.spte(GVA))


def prefetch(guest: Guest, entry: int, *, no_dirty_log: bool = True) -> int | None:
    """Prefetch `entry` beside the mapped page; return the spte, None if that stops the prefetch."""
    sptep = guest.sptep(GVA + 0x3000)
    goes_on = prefetch_gpte(guest.vcpu, guest.page(GVA), sptep, entry, no_dirty_log=no_dirty_log)
    return guest.spte(GVA + 0x3000) if goes_on else None


def test_prefetch_maps_without_accessed(guest: Guest) -> None:
    guest.read(GVA)
    spte = prefetch(guest, DATA + 0x1000 | PAGE)
    assert spte is not None
    assert spte & (P | W | U | D) == P | W | U | D
    assert not spte & A


def test_prefetch_stops_at_what_it_may_not_map(guest: Guest) -> None:
    guest.read(GVA)
    guest.machine.execute(ops.SetMemslot(1, 0x2000000, 0x1000, KVM_MEM_READONLY, DATA))
    guest.read(GVA)
    assert prefetch(guest, HOLE | PAGE) is None
    assert prefetch(guest, 0x2000000 | PAGE) is None
    assert prefetch(guest, 0) is None


def test_prefetch_does_not_make_logged_pages_writable(guest: Guest) -> None:
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))
    guest.read(GVA)
    assert prefetch(guest, DATA + 0x1000 | PAGE) is None
    assert prefetch(guest, DATA + 0x1000 | PAGE & ~W) is not None
    assert guest.slot.dirty_bitmap is not None
    assert not guest.slot.dirty_bitmap[(DATA >> 12) + 1]
    guest.store(guest.entry(GVA + 0x3000), 0)
    assert prefetch(guest, DATA + 0x1000 | PAGE, no_dirty_log=False)
    assert guest.slot.dirty_bitmap[(DATA >> 12) + 1]
