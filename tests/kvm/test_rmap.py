"""Reverse maps: the kernel's list of blocks, and what is kept in step with the sptes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.assertions import HostDiedError
from mmulab.kvm.invariants import violations
from mmulab.kvm.memslot import KvmMemslot, PteList
from mmulab.kvm.rmap import (
    PTE_LIST_EXT,
    drop_spte,
    kvm_mmu_page_get_access,
    kvm_mmu_page_get_gfn,
    kvm_mmu_slot_gfn_write_protect,
    kvm_zap_all_rmap_sptes,
    mmu_spte_update,
    pte_list_add,
    pte_list_iter,
    pte_list_remove,
    rmap_remove,
    rmap_write_protect,
    slot_handle_level_range,
)
from mmulab.kvm.state import spte_index
from mmulab.machine import op as ops
from tests.kvm.guest import DATA, GVA, MIB, A, D, Guest, P, U, W


class PteListDesc:
    """``struct pte_list_desc`` and its list, written as the C is: arrays, counts and links."""

    def __init__(self) -> None:
        self.sptes = [0] * PTE_LIST_EXT
        self.count = 0
        self.more: PteListDesc | None = None

    def add(self, spte: int) -> int:
        """``pte_list_add`` on a list that has a first block."""
        desc, count = self, 0
        while desc.count == PTE_LIST_EXT:
            count += PTE_LIST_EXT
            if desc.more is None:
                desc.more = PteListDesc()
            desc = desc.more
        count += desc.count
        desc.sptes[desc.count] = spte
        desc.count += 1
        return count

    def remove(self, spte: int) -> PteListDesc | None:
        """``pte_list_remove``; returns the list's first block."""
        desc: PteListDesc | None = self
        previous: PteListDesc | None = None
        while desc is not None:
            for i in range(desc.count):
                if desc.sptes[i] == spte:
                    desc.count -= 1
                    desc.sptes[i] = desc.sptes[desc.count]
                    if desc.count:
                        return self
                    if previous is None:
                        return desc.more
                    previous.more = desc.more
                    return self
            previous, desc = desc, desc.more
        raise AssertionError(f"{spte} is not there")

    def blocks(self) -> list[list[int]]:
        own = [self.sptes[: self.count]] if self.count else []
        return own + (self.more.blocks() if self.more else [])


@given(st.lists(st.integers(0, 99), max_size=120))
def test_the_list_is_the_kernels(picks: list[int]) -> None:
    """A pick removes an entry where there is one of that number, else it adds a new one."""
    head: PteList = []
    first: PteListDesc | None = None
    kept: list[int] = []
    for number, pick in enumerate(picks):
        if pick < len(kept) and pick % 3 == 0:
            gone = kept.pop(pick)
            assert first is not None
            pte_list_remove(head, gone)
            first = first.remove(gone)
        else:
            kept.append(8 * number)
            first = first or PteListDesc()
            assert pte_list_add(head, kept[-1]) == first.add(kept[-1])
        assert head == (first.blocks() if first else [])
        assert sorted(pte_list_iter(head)) == sorted(kept)


def test_a_hole_is_filled_from_the_end_of_its_own_block() -> None:
    head: PteList = []
    for spte in range(16):
        pte_list_add(head, spte)
    pte_list_remove(head, 2)
    assert head == [[0, 1, 13, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [14, 15]]
    assert pte_list_add(head, 99) == 13
    assert head[0][-1] == 99


def test_removing_what_is_not_there_is_a_bug() -> None:
    with pytest.raises(KeyError, match="0x40"):
        pte_list_remove([[8]], 0x40)


# With a guest -------------------------------------------------------------------


def test_each_mapping_of_a_gfn_is_listed(paged: Guest) -> None:
    paged.map(GVA + 0x40000, DATA)
    paged.read(GVA)
    assert paged.rmap(DATA >> 12) == [paged.sptep(GVA)]
    paged.read(GVA + 0x40000)
    assert paged.rmap(DATA >> 12) == [paged.sptep(GVA), paged.sptep(GVA + 0x40000)]
    assert paged.kvm.stat["pages_4k"] == 2


def test_dropping_an_entry_takes_it_off_the_list(guest: Guest) -> None:
    guest.read(GVA)
    sptep, spte = guest.sptep(GVA), guest.spte(GVA)
    with guest.watch() as seen:
        drop_spte(guest.kvm, sptep)
    assert seen == [ev.drop_spte(sptep, spte)]
    assert guest.spte(GVA) == 0
    assert guest.rmap(DATA >> 12) == []
    assert guest.kvm.stat["pages_4k"] == 0
    with guest.watch() as seen:
        drop_spte(guest.kvm, sptep)
    assert seen == []
    with pytest.raises(HostDiedError, match=r"BUG\(the reverse map is empty\)"):
        rmap_remove(guest.kvm, sptep)


def test_an_entry_knows_what_it_shadows(guest: Guest) -> None:
    guest.map(GVA + 0x40000, DATA + 0x1000, P | U | A | D)
    guest.read(GVA + 0x40000)
    sp, index = guest.page(GVA + 0x40000), spte_index(guest.sptep(GVA + 0x40000))
    assert kvm_mmu_page_get_gfn(sp, index) == (DATA >> 12) + 1
    assert kvm_mmu_page_get_access(sp, index) == 5


def test_a_direct_page_needs_no_record() -> None:
    guest = Guest("np")
    guest.read(DATA)
    sp, index = guest.page(DATA), spte_index(guest.sptep(DATA))
    assert not sp.shadowed_translation
    assert kvm_mmu_page_get_gfn(sp, index) == DATA >> 12
    assert kvm_mmu_page_get_access(sp, index) == 7


def test_too_many_mappings_of_a_gfn_are_all_zapped() -> None:
    """``RMAP_RECYCLE_THRESHOLD`` is 1000; prefetch fills eight entries at a time."""
    guest = Guest("64")
    for i in range(1100):
        guest.map(GVA + i * 0x1000, DATA)
    for i in range(0, 1000, 8):
        guest.read(GVA + i * 0x1000)
    assert len(guest.rmap(DATA >> 12)) == 1000
    with guest.watch() as seen:
        guest.read(GVA + 1000 * 0x1000)
    assert ev.kvm_flush_remote_tlbs() in seen
    assert guest.kvm.stat["max_mmu_rmap_size"] == 1001
    assert len(guest.rmap(DATA >> 12)) == 8
    assert violations(guest.kvm) == []


def entry(*bits: int) -> int:
    return sum(bits, 1 << 11)


MMU_WRITABLE = 1 << 10


@pytest.mark.parametrize(
    ("old", "new", "flush"),
    [
        (entry(P, W, A, D, MMU_WRITABLE), entry(P, A, MMU_WRITABLE), True),
        (entry(P, A, MMU_WRITABLE), entry(P, A), True),
        (entry(P, A), entry(P, A, W, MMU_WRITABLE), False),
        (entry(P, A), entry(P), True),
        (entry(P, W, A, D, MMU_WRITABLE), entry(P, W, A, MMU_WRITABLE), True),
        (entry(P, W, A, D, MMU_WRITABLE), entry(P, W, A, D), False),
        (0, entry(P, W), False),
        (1 << 51 | P | W, entry(P), False),
    ],
)
def test_a_flush_is_owed_when_a_right_is_lost(guest: Guest, old: int, new: int, flush: bool) -> None:
    """``mmu_spte_update``: MMU-writable without W, A lost, D lost; an absent entry owes nothing."""
    guest.read(GVA)
    sptep = guest.sptep(GVA)
    guest.machine.memory.store64(sptep, old)
    assert mmu_spte_update(guest.kvm, sptep, new) is flush
    assert guest.spte(GVA) == new


def test_protection_for_the_log_leaves_mmu_writable(guest: Guest) -> None:
    """A fast fault may give W back then, but not where the page is a guest table."""
    guest.write(GVA)
    head = guest.slot.rmap[1][DATA >> 12]
    before = guest.spte(GVA)
    assert rmap_write_protect(guest.kvm, head, pt_protect=False)
    assert guest.spte(GVA) == before & ~W
    assert not rmap_write_protect(guest.kvm, head, pt_protect=False)
    assert rmap_write_protect(guest.kvm, head, pt_protect=True)
    assert guest.spte(GVA) == before & ~W & ~MMU_WRITABLE
    assert not rmap_write_protect(guest.kvm, None, pt_protect=True)


def test_a_gfn_is_protected_in_huge_pages_too() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2)
    guest.write(GVA)
    assert guest.spte(GVA, 2) & W
    assert kvm_mmu_slot_gfn_write_protect(guest.kvm, guest.slot, (4 * MIB >> 12) + 77, 1)
    assert not guest.spte(GVA, 2) & (W | MMU_WRITABLE)


def test_zapping_a_reverse_map_clears_its_sptes(guest: Guest) -> None:
    guest.map(GVA + 0x40000, DATA)
    for gva in (GVA, GVA + 0x40000):
        guest.read(gva)
    assert kvm_zap_all_rmap_sptes(guest.kvm, guest.slot, DATA >> 12, 1)
    assert guest.spte(GVA) == guest.spte(GVA + 0x40000) == 0
    assert violations(guest.kvm) == []
    assert not kvm_zap_all_rmap_sptes(guest.kvm, guest.slot, DATA >> 12, 1)


def test_a_range_is_walked_level_by_level_then_by_gfn() -> None:
    slot = KvmMemslot(0, 0, 4096, 0)
    slot.rmap[1] = {gfn: [[1]] for gfn in (700, 3, 512)}
    slot.rmap[2] = {key: [[1]] for key in (1, 0, 5)}
    visited: list[tuple[int, int]] = []

    def visit(gfn: int, level: int) -> bool:
        visited.append((gfn, level))
        return gfn == 512

    assert slot_handle_level_range(slot, range(1, 4), 3, 600, visit)
    assert visited == [(3, 1), (512, 1), (0, 2), (512, 2)]
    assert not slot_handle_level_range(slot, range(3, 4), 0, 4095, visit)


def test_the_notifier_empties_the_reverse_map(guest: Guest) -> None:
    guest.write(GVA)
    guest.machine.execute(ops.InvalidateHva(DATA, 0x1000))
    assert guest.rmap(DATA >> 12) == []
    assert guest.spte(GVA) == 0


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=120))
def test_with_a_full_tail_only_the_head_has_room(chosen: list[int]) -> None:
    """6.4 and later: 141705b78381; what is added or removed touches the first block alone."""
    head: PteList = []
    known: list[int] = []
    for number, pick in enumerate(chosen):
        sptep = 8 * (number + 1)
        if known and pick % 3 == 0:
            gone = known.pop(pick % len(known))
            tail = [block[:] for block in head[1:]]
            at = next(i for i, block in enumerate(head) if gone in block)
            giver = head[0][-1]
            pte_list_remove(head, gone, keeps_tail_full=True)
            if at and len(tail) == len(head[1:]):
                tail[at - 1][tail[at - 1].index(gone)] = giver
                assert head[1:] == tail
        else:
            assert pte_list_add(head, sptep, keeps_tail_full=True) == len(known)
            known.append(sptep)
            assert head[0][-1] == sptep
        assert sorted(pte_list_iter(head)) == sorted(known)
        assert all(len(block) == PTE_LIST_EXT for block in head[1:])
        assert all(head)


def test_a_full_tail_moves_the_youngest_into_the_gap() -> None:
    head: PteList = []
    for sptep in range(PTE_LIST_EXT + 2):
        pte_list_add(head, sptep, keeps_tail_full=True)
    assert head == [[PTE_LIST_EXT, PTE_LIST_EXT + 1], list(range(PTE_LIST_EXT))]
    pte_list_remove(head, 3, keeps_tail_full=True)
    assert head == [[PTE_LIST_EXT], [0, 1, 2, PTE_LIST_EXT + 1, *range(4, PTE_LIST_EXT)]]
    pte_list_remove(head, 0, keeps_tail_full=True)
    assert head == [[PTE_LIST_EXT, 1, 2, PTE_LIST_EXT + 1, *range(4, PTE_LIST_EXT)]]
