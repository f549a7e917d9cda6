"""Write tracking, and what forbids huge pages."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.page_track import (
    account_shadowed,
    init_lpage_info,
    kvm_slot_page_track_is_active,
    unaccount_shadowed,
    update_gfn_disallow_lpage_count,
)
from mmulab.kvm.zap import kvm_mmu_zap_all
from tests.kvm.guest import DATA, GVA, MIB, Guest, W


def test_upper_tables_are_tracked_and_leaf_tables_are_not(paged: Guest) -> None:
    """``account_shadowed``: a level-1 page may go out of sync instead."""
    paged.read(GVA)
    upper = {paged.page(GVA, level).gfn for level in paged.path(GVA) if level > 1}
    tracked = {gfn for gfn, count in paged.slot.gfn_track.items() if count}
    assert tracked == upper | {paged.root >> 12} - ({paged.root >> 12} if paged.mode.has_pdptes else set())
    assert not kvm_slot_page_track_is_active(paged.kvm, paged.slot, paged.table(GVA) >> 12)
    assert kvm_slot_page_track_is_active(paged.kvm, paged.slot, paged.table(GVA, 2) >> 12)


def test_each_shadow_page_of_a_table_counts() -> None:
    """The four quadrants of a 32-bit directory are four pages of one gfn."""
    guest = Guest("32").map(GVA, DATA)
    guest.read(GVA)
    assert guest.slot.gfn_track[guest.root >> 12] == 4
    assert guest.kvm.indirect_shadow_pages == 5


def test_when_all_is_zapped_nothing_is_tracked(paged: Guest) -> None:
    paged.read(GVA)
    before = dict(paged.slot.disallow_lpage[2])
    assert before
    kvm_mmu_zap_all(paged.kvm)
    assert not any(paged.slot.gfn_track.values())
    assert paged.slot.disallow_lpage[2] == {}
    assert paged.kvm.indirect_shadow_pages == 0


def test_a_page_that_becomes_a_table_loses_its_writable_sptes(guest: Guest) -> None:
    """The second address maps a page that is then used as a table."""
    table = guest.new_table()
    guest.map(GVA + 0x1000, table)
    guest.write(GVA + 0x1000)
    assert guest.spte(GVA + 0x1000) & W
    sp = guest.page(GVA)
    with guest.watch() as seen:
        sp.gfn = table >> 12
        account_shadowed(guest.kvm, sp)
    assert seen == [ev.kvm_flush_remote_tlbs()]
    assert not guest.spte(GVA + 0x1000) & W
    unaccount_shadowed(guest.kvm, sp)
    assert not guest.slot.gfn_track.get(table >> 12)


def test_tracking_counts_in_both_address_spaces(guest: Guest) -> None:
    """A table of SMM's space may be written through the normal one (fixed in 6.1.192)."""
    gfn = DATA >> 12
    smm = KvmMemslot(0, 0, guest.slot.npages, guest.slot.base_frame, as_id=1)
    guest.kvm.slots[1].replace(None, smm)
    assert not kvm_slot_page_track_is_active(guest.kvm, guest.slot, gfn)
    smm.gfn_track[gfn] = 1
    assert kvm_slot_page_track_is_active(guest.kvm, guest.slot, gfn)
    assert kvm_slot_page_track_is_active(guest.kvm, smm, gfn)
    assert not kvm_slot_page_track_is_active(guest.kvm, None, gfn)


def test_reasons_against_huge_pages_are_counted(guest: Guest) -> None:
    kvm, slot = guest.kvm, KvmMemslot(0, 0, 1 << 20, 0)
    update_gfn_disallow_lpage_count(kvm, slot, 0x40001, 1)
    update_gfn_disallow_lpage_count(kvm, slot, 0x40002, 1)
    assert slot.disallow_lpage[2] == {0x200: 2}
    assert slot.disallow_lpage[3] == {1: 2}
    for gfn in (0x40001, 0x40002):
        update_gfn_disallow_lpage_count(kvm, slot, gfn, -1)
    assert slot.disallow_lpage[2:] == [{}, {}]


@pytest.mark.parametrize(
    ("base", "npages", "frame", "level2"),
    [
        (0, 1024, 0, {}),
        (512, 512, 4096, {}),
        (0, 700, 0, {1: 1}),
        (100, 924, 100, {0: 1}),
        (100, 300, 100, {0: 1}),
        (100, 1000, 612, {0: 1, 2: 1}),
        (0, 1024, 1, {0: 1, 1: 1}),
        (1024, 1024, 256, {2: 1, 3: 1}),
    ],
)
def test_huge_pages_over_an_edge_or_out_of_line_are_forbidden(
    base: int, npages: int, frame: int, level2: dict[int, int]
) -> None:
    """``kvm_alloc_memslot_metadata``, Linux 6.1 ``arch/x86/kvm/x86.c``."""
    slot = KvmMemslot(0, base, npages, frame)
    init_lpage_info(slot)
    assert slot.disallow_lpage[2] == level2
    assert slot.disallow_lpage[3]


def test_a_huge_page_shrinks_where_a_table_lies_in_it() -> None:
    """2 MiB at GPA 0 hold the guest's tables, the next 2 MiB do not."""
    guest = Guest("64", thp=True).map(GVA, 0, level=2).map(GVA + 2 * MIB, 2 * MIB, level=2)
    guest.read(GVA)
    guest.read(GVA + 2 * MIB)
    assert guest.page(GVA).direct
    assert 1 not in guest.path(GVA + 2 * MIB)
    assert guest.kvm.stat["pages_2m"] == 1
