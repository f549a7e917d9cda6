"""Zapping: the order of what goes, roots in use, generations, limits and reclaim."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Request
from mmulab.kvm.zap import (
    KVM_MIN_ALLOC_MMU_PAGES,
    KVM_REFILL_PAGES,
    kvm_mmu_available_pages,
    kvm_mmu_commit_zap_page,
    kvm_mmu_prepare_zap_page,
    kvm_mmu_remote_flush_or_zap,
    kvm_mmu_unprotect_page,
    kvm_mmu_zap_all,
    kvm_mmu_zap_all_fast,
    kvm_mmu_zap_oldest_mmu_pages,
    make_mmu_pages_available,
    mmu_page_zap_pte,
    prepare_zap_page,
)
from mmulab.machine import op as ops
from tests.kvm.guest import DATA, GVA, HOLE, MIB, Guest

SPAN = 2 * MIB


def wide(pages: int, mode: str = "64", **config: object) -> Guest:
    """A guest with `pages` leaf tables, none used yet."""
    guest = Guest(mode, **config)
    for i in range(pages):
        guest.map(GVA + i * SPAN, DATA)
    return guest


def zapped(events: list[ev.Event]) -> list[tuple[int, int]]:
    """Return (gfn, level) of the zapped pages in order."""
    return [(e.gfn, e.role & 15) for e in events if isinstance(e, ev.kvm_mmu_prepare_zap_page)]


def test_a_page_is_unlinked_first_and_freed_by_the_commit(guest: Guest) -> None:
    guest.read(GVA)
    kvm, page, parent = guest.kvm, guest.page(GVA, 2), guest.sptep(GVA, 3)
    leaf = guest.page(GVA)
    invalid: list[int] = []
    with guest.watch() as seen:
        assert prepare_zap_page(kvm, page, invalid) == (False, 1)
    assert zapped(seen) == [(page.gfn, 2)]
    assert kvm.memory.words[parent >> 3] == 0
    assert page.invalid
    assert page.role & 0x800
    assert not page.parent_ptes
    assert leaf.parent_ptes == []
    assert page.frame in kvm.pages
    assert invalid == [page.frame]
    with guest.watch() as seen:
        kvm_mmu_commit_zap_page(kvm, invalid)
    assert seen == [ev.kvm_flush_remote_tlbs()]
    assert page.frame not in kvm.pages
    assert invalid == []
    assert violations(kvm) == []
    with guest.watch() as seen:
        kvm_mmu_commit_zap_page(kvm, invalid)
    assert seen == []


def test_children_stay_for_whoever_looks_for_them_again(guest: Guest) -> None:
    """``mmu_page_zap_pte`` zaps an orphan only if it is L2's."""
    guest.read(GVA)
    leaf = guest.page(GVA)
    guest.store(guest.entry(GVA, 2), guest.load(guest.entry(GVA, 2)))
    assert leaf.frame in guest.kvm.pages
    with guest.watch() as seen:
        guest.read(GVA)
    assert [e.created for e in seen if isinstance(e, ev.kvm_mmu_get_page)] == [False]
    assert guest.page(GVA) is leaf


def test_unsync_children_go_with_their_parent() -> None:
    guest = wide(2)
    window = GVA + 0x100000
    for i in range(2):
        guest.map(window + i * 0x1000, guest.table(GVA + i * SPAN))
        guest.read(GVA + i * SPAN)
        guest.write(window + i * 0x1000 + 0xFF0)
    invalid: list[int] = []
    with guest.watch() as seen:
        unstable, count = prepare_zap_page(guest.kvm, guest.page(GVA, 2), invalid)
    assert (unstable, count) == (True, 3)
    assert [level for _, level in zapped(seen)] == [2, 1, 1]
    assert sum(isinstance(e, ev.kvm_mmu_sync_page) for e in seen) == 2
    assert guest.kvm.stat["mmu_unsync"] == 0
    kvm_mmu_commit_zap_page(guest.kvm, invalid)
    assert violations(guest.kvm) == []


def test_a_root_in_use_becomes_invalid_and_goes_when_it_is_let_go(guest: Guest) -> None:
    guest.read(GVA)
    kvm, root = guest.kvm, guest.page(GVA, 4)
    invalid: list[int] = []
    assert kvm_mmu_prepare_zap_page(kvm, root, invalid) == 0
    assert invalid == []
    assert root.invalid
    assert root.frame not in kvm.active_mmu_pages
    assert root.frame in kvm.pages
    assert guest.vcpu.requests & Request.MMU_FREE_OBSOLETE_ROOTS
    with guest.watch() as seen:
        guest.enter()
    assert (root.gfn, 4) in zapped(seen)
    assert ev.kvm_mmu_free_roots(1) in seen
    assert root.frame not in kvm.pages or kvm.pages[root.frame] is not root
    assert violations(kvm) == []


@pytest.mark.parametrize("kind", ["leaf", "link", "mmio", "nothing"])
def test_one_entry_is_cleared(guest: Guest, kind: str) -> None:
    guest.map(GVA + 0x1000, HOLE)
    guest.read(GVA)
    guest.read(GVA + 0x1000)
    level = 2 if kind == "link" else 1
    gva = {"mmio": GVA + 0x1000, "nothing": GVA + 0x80000}.get(kind, GVA)
    page, sptep = guest.page(gva, level), guest.sptep(gva, level)
    assert bool(guest.spte(gva, level)) == (kind != "nothing")
    with guest.watch() as seen:
        assert mmu_page_zap_pte(guest.kvm, page, sptep, None) == 0
    assert guest.kvm.memory.words[sptep >> 3] == 0
    assert any(isinstance(e, ev.drop_spte) for e in seen) == (kind == "leaf")
    assert violations(guest.kvm) == []


def test_a_flush_is_paid_by_the_commit_or_alone(guest: Guest) -> None:
    guest.read(GVA)
    kvm = guest.kvm
    with guest.watch() as seen:
        assert not kvm_mmu_remote_flush_or_zap(kvm, [], False)
    assert seen == []
    with guest.watch() as seen:
        assert kvm_mmu_remote_flush_or_zap(kvm, [], True)
    assert seen == [ev.kvm_flush_remote_tlbs()]
    invalid: list[int] = []
    kvm_mmu_prepare_zap_page(kvm, guest.page(GVA), invalid)
    with guest.watch() as seen:
        assert kvm_mmu_remote_flush_or_zap(kvm, invalid, False)
    assert seen == [ev.kvm_flush_remote_tlbs()]


def test_unprotecting_zaps_every_page_of_the_gfn() -> None:
    guest = Guest("32").map(GVA, DATA)
    guest.read(GVA)
    with guest.watch() as seen:
        assert kvm_mmu_unprotect_page(guest.kvm, guest.root >> 12)
    assert seen[0] == ev.kvm_mmu_unprotect_page(guest.root >> 12)
    assert sorted(role >> 5 & 3 for role in (e.role for e in seen[1:] if hasattr(e, "role"))) == [0, 1, 2, 3]
    assert not kvm_mmu_unprotect_page(guest.kvm, DATA >> 12)


def test_a_fast_zap_turns_the_generation_and_takes_the_oldest_first() -> None:
    guest = wide(3)
    for i in range(3):
        guest.read(GVA + i * SPAN)
    created = [(e.gfn, e.role & 15) for e in guest.of(ev.kvm_mmu_get_page) if e.created]
    used = guest.kvm.n_used_mmu_pages
    with guest.watch() as seen:
        kvm_mmu_zap_all_fast(guest.kvm)
    assert seen[0] == ev.kvm_mmu_zap_all_fast(0, used)
    assert zapped(seen) == created
    assert sum(isinstance(e, ev.kvm_flush_remote_tlbs) for e in seen) == 1
    assert guest.kvm.mmu_valid_gen == 1
    guest.read(GVA)
    fresh = [sp for sp in guest.kvm.pages.values() if not sp.invalid]
    assert {sp.mmu_valid_gen for sp in fresh} == {1}
    kvm_mmu_zap_all_fast(guest.kvm)
    assert guest.kvm.mmu_valid_gen == 0


def test_the_end_takes_the_newest_first() -> None:
    guest = wide(3)
    for i in range(3):
        guest.read(GVA + i * SPAN)
    created = [(e.gfn, e.role & 15) for e in guest.of(ev.kvm_mmu_get_page) if e.created]
    with guest.watch() as seen:
        kvm_mmu_zap_all(guest.kvm)
    assert zapped(seen) == created[::-1]


# Limits -------------------------------------------------------------------------------


def test_the_limit_follows_the_memory_until_it_is_set() -> None:
    """20 pages for each thousand, at least 64 (``kvm_arch_commit_memory_region``)."""
    assert Guest("np", mib=8).kvm.n_max_mmu_pages == KVM_MIN_ALLOC_MMU_PAGES == 64
    guest = Guest("np", mib=32)
    assert guest.kvm.n_max_mmu_pages == (32 * MIB >> 12) // 50
    guest.machine.execute(ops.SetNrMmuPages(100))
    guest.machine.execute(ops.DeleteMemslot(0))
    assert guest.kvm.n_max_mmu_pages == 100
    assert guest.machine.execute(ops.SetNrMmuPages(63)).result == -22


def test_the_oldest_pages_make_room_but_roots_in_use_stay() -> None:
    guest = wide(80)
    for i in range(80):
        guest.read(GVA + i * SPAN)
        assert guest.kvm.n_used_mmu_pages <= KVM_MIN_ALLOC_MMU_PAGES
    assert guest.kvm.stat["mmu_recycled"]
    assert guest.page(GVA + 79 * SPAN, 4).root_count == 1
    assert guest.path(GVA + 79 * SPAN)[1]
    assert violations(guest.kvm) == []


def test_room_is_made_before_the_last_five_pages_are_taken() -> None:
    """``KVM_MIN_FREE_MMU_PAGES`` 5, refilled to 25."""
    guest = wide(70)
    guest.read(GVA)
    i = 1
    while kvm_mmu_available_pages(guest.kvm) >= 5:
        guest.read(GVA + i * SPAN)
        i += 1
    assert guest.kvm.stat["mmu_recycled"] == 0
    oldest = next(sp for sp in guest.kvm.pages.values() if not sp.root_count)
    make_mmu_pages_available(guest.vcpu)
    assert kvm_mmu_available_pages(guest.kvm) == KVM_REFILL_PAGES
    assert oldest.frame not in guest.kvm.active_mmu_pages


def test_lowering_the_limit_zaps_at_once() -> None:
    guest = wide(100, mib=32)
    guest.machine.execute(ops.SetNrMmuPages(200))
    for i in range(100):
        guest.read(GVA + i * SPAN)
    assert guest.kvm.n_used_mmu_pages == 103
    with guest.watch() as seen:
        guest.machine.execute(ops.SetNrMmuPages(70))
    assert guest.kvm.n_used_mmu_pages == guest.kvm.n_max_mmu_pages == 70
    assert len(zapped(seen)) == 33
    assert guest.kvm.stat["mmu_recycled"] == 33


def test_reclaim_stops_where_only_roots_are_left(guest: Guest) -> None:
    guest.read(GVA)
    assert kvm_mmu_zap_oldest_mmu_pages(guest.kvm, 50) == 3
    left: list[ShadowPage] = list(guest.kvm.pages.values())
    assert [sp.level for sp in left] == [4]
    assert violations(guest.kvm) == []
