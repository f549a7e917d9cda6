"""Roots: allocated, kept for later, synced, freed."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu import (
    INVALID_PAE_ROOT,
    INVALID_PAGE,
    KVM_MMU_ROOT_CURRENT,
    KVM_MMU_ROOTS_ALL,
    RootInfo,
    root_previous,
)
from mmulab.kvm.roots import (
    fast_pgd_switch,
    is_unsync_root,
    kvm_mmu_free_roots,
    kvm_mmu_new_pgd,
    kvm_mmu_reset_context,
    kvm_mmu_sync_prev_roots,
    kvm_mmu_unload,
    pae_root_entry,
)
from mmulab.kvm.state import Request
from mmulab.kvm.zap import kvm_mmu_zap_all_fast
from mmulab.machine.config import HostConfig
from mmulab.machine.op import OutcomeKind
from tests.kvm.guest import DATA, GVA, HOLE, Guest, P

WINDOW = GVA + 0x100000


def with_roots(count: int, mode: str = "64", **config: object) -> tuple[Guest, list[int]]:
    """A guest with `count` roots that map the same page."""
    guest = Guest(mode, **config).map(GVA, DATA)
    roots = [guest.root]
    for _ in range(count - 1):
        roots.append(guest.new_table())
        guest.map(GVA, DATA, root=roots[-1])
    return guest, roots


def kept(guest: Guest) -> list[int]:
    """Return the guest roots of the current and the previous roots, in order."""
    mmu = guest.vcpu.mmu
    return [mmu.root_pgd] + [pgd for pgd, hpa in mmu.prev_roots if hpa != INVALID_PAGE]


# Allocating -----------------------------------------------------------------------------


def test_a_root_is_a_page_and_held_once(guest: Guest) -> None:
    with guest.watch() as seen:
        guest.read(GVA)
    root = guest.page(GVA, 4)
    assert guest.vcpu.mmu.root_hpa == root.frame << 12
    assert (root.gfn, root.root_count) == (guest.root >> 12, 1)
    assert [type(e).__name__ for e in seen[:3]] == [
        "kvm_mmu_load",
        "kvm_mmu_get_page",
        "kvm_mmu_sync_roots",
    ]


def test_a_32_bit_guest_has_four_quadrants_of_one_table() -> None:
    guest = Guest("32").map(GVA, DATA)
    guest.read(GVA)
    mmu = guest.vcpu.mmu
    assert mmu.root_hpa == mmu.pae_root << 12
    entries = [pae_root_entry(guest.kvm, mmu, i) for i in range(4)]
    pages = [guest.kvm.pages[entry >> 12] for entry in entries]
    assert [sp.quadrant for sp in pages] == [0, 1, 2, 3]
    assert {sp.gfn for sp in pages} == {guest.root >> 12}
    assert all(entry & 0xFFF == P for entry in entries)


def test_a_pae_guest_has_a_page_for_each_present_directory() -> None:
    guest = Guest("pae").map(GVA, DATA).map(GVA + (2 << 30), DATA)
    guest.read(GVA)
    entries = [pae_root_entry(guest.kvm, guest.vcpu.mmu, i) for i in range(4)]
    assert [bool(entry) for entry in entries] == [True, False, True, False]
    assert guest.kvm.pages[entries[2] >> 12].gfn == guest.table(GVA + (2 << 30), 2) >> 12
    assert entries[1] == INVALID_PAE_ROOT


def test_without_paging_four_direct_pages_cover_4_gib() -> None:
    guest = Guest("np")
    guest.read(DATA)
    pages = [guest.kvm.pages[pae_root_entry(guest.kvm, guest.vcpu.mmu, i) >> 12] for i in range(4)]
    assert [(sp.gfn, sp.direct) for sp in pages] == [(i << 18, True) for i in range(4)]


@pytest.mark.parametrize("mode", ["32", "64"])
def test_a_root_in_a_hole_is_a_triple_fault(mode: str) -> None:
    """``mmu_check_root``; the guest shuts down instead of being entered."""
    guest = Guest(mode).map(GVA, DATA)
    guest.regs = (guest.regs[0], HOLE, *guest.regs[2:])
    guest.reset()
    assert guest.read(GVA).kind is OutcomeKind.SHUTDOWN


def test_so_is_a_directory_of_pae_in_a_hole() -> None:
    guest = Guest("pae").map(GVA, DATA)
    guest.poke(guest.root + 8, HOLE | P)
    guest.reset()
    assert guest.read(GVA).kind is OutcomeKind.SHUTDOWN


# Keeping -------------------------------------------------------------------------------


def test_the_last_three_roots_are_kept_and_found_again() -> None:
    guest, roots = with_roots(5)
    for root in roots:
        guest.cr3(root)
    assert kept(guest) == roots[:0:-1]
    with guest.watch() as seen:
        guest.cr3(roots[1])
    assert not any(isinstance(e, ev.kvm_mmu_load | ev.kvm_mmu_get_page) for e in seen)
    assert kept(guest) == [roots[1], roots[4], roots[3], roots[2]]
    assert violations(guest.kvm) == []


def test_the_least_recent_root_makes_room() -> None:
    guest, roots = with_roots(5)
    for root in roots[:4]:
        guest.cr3(root)
    with guest.watch() as seen:
        guest.cr3(roots[4])
    # What was least recent is in hand after the swaps and let go.
    assert ev.kvm_mmu_free_roots(KVM_MMU_ROOT_CURRENT) in seen
    assert roots[0] not in kept(guest)
    assert guest.pages(roots[0] >> 12)[0].root_count == 0
    with guest.watch() as seen:
        guest.cr3(roots[0])
    assert [e.created for e in seen if isinstance(e, ev.kvm_mmu_get_page)] == [False]


def test_special_roots_are_not_kept() -> None:
    guest, roots = with_roots(2, "32")
    guest.cr3(roots[1])
    guest.cr3(roots[0])
    assert kept(guest) == [roots[0]]
    assert all(entry.hpa == INVALID_PAGE for entry in guest.vcpu.mmu.prev_roots)


def test_a_root_of_another_role_does_not_count() -> None:
    guest, roots = with_roots(2)
    guest.cr3(roots[1])
    mmu = guest.vcpu.mmu
    assert fast_pgd_switch(guest.kvm, mmu, roots[0])
    mmu.root_role ^= 1 << 13
    assert not fast_pgd_switch(guest.kvm, mmu, roots[1])


def test_a_kept_root_is_taken_where_there_is_none() -> None:
    guest, roots = with_roots(3)
    for root in roots:
        guest.cr3(root)
    mmu = guest.vcpu.mmu
    kvm_mmu_free_roots(guest.kvm, mmu, KVM_MMU_ROOT_CURRENT)
    assert fast_pgd_switch(guest.kvm, mmu, roots[0])
    assert mmu.root_pgd == roots[0]
    assert [pgd for pgd, hpa in mmu.prev_roots if hpa != INVALID_PAGE] == [roots[1]]
    assert violations(guest.kvm) == []


def test_a_free_place_tells_which_root_it_had() -> None:
    """``KVM_MMU_ROOT_INFO_INVALID`` before its first use; after that only the page is forgotten."""
    guest, roots = with_roots(3)
    mmu = guest.vcpu.mmu
    unused = RootInfo(INVALID_PAGE, INVALID_PAGE)
    assert mmu.prev_roots == [unused] * 3
    for root in roots:
        guest.cr3(root)
    kvm_mmu_free_roots(guest.kvm, mmu, root_previous(0))
    assert mmu.prev_roots[0] == RootInfo(roots[1], INVALID_PAGE)
    assert mmu.prev_roots[2] == unused


def test_a_root_taken_where_there_is_none_leaves_the_last_places_root_behind() -> None:
    """``cached_root_find_without_current``: places move up, the last one loses its page alone."""
    guest, roots = with_roots(4)
    for root in roots:
        guest.cr3(root)
    mmu = guest.vcpu.mmu
    kvm_mmu_free_roots(guest.kvm, mmu, KVM_MMU_ROOT_CURRENT)
    assert fast_pgd_switch(guest.kvm, mmu, roots[1])
    assert [pgd for pgd, _ in mmu.prev_roots] == [roots[2], roots[0], roots[0]]
    assert mmu.prev_roots[2].hpa == INVALID_PAGE
    kvm_mmu_free_roots(guest.kvm, mmu, KVM_MMU_ROOT_CURRENT)
    mmu.prev_roots[2], mmu.prev_roots[1] = mmu.prev_roots[1], RootInfo(roots[3])
    assert fast_pgd_switch(guest.kvm, mmu, roots[0])
    assert mmu.prev_roots[2] == RootInfo(0, INVALID_PAGE)  # what the current root had


def test_flush_on_reuse_asks_for_a_sync() -> None:
    requests = []
    for reuse in (False, True):
        guest, roots = with_roots(2, host=HostConfig(flush_on_reuse=reuse))
        for root in roots:
            guest.cr3(root)
        guest.vcpu.requests = 0
        kvm_mmu_new_pgd(guest.vcpu, roots[0])
        requests.append(guest.vcpu.requests)
    assert requests == [
        Request.LOAD_MMU_PGD,
        Request.LOAD_MMU_PGD | Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT,
    ]


# Freeing ------------------------------------------------------------------------------------


def test_freeing_lets_go_but_pages_stay(paged: Guest) -> None:
    paged.read(GVA)
    pages = len(paged.kvm.pages)
    with paged.watch() as seen:
        kvm_mmu_unload(paged.vcpu)
    assert seen == [ev.kvm_mmu_free_roots(KVM_MMU_ROOTS_ALL)] * 2
    assert paged.vcpu.mmu.root_hpa == INVALID_PAGE
    assert len(paged.kvm.pages) == pages
    assert not any(sp.root_count for sp in paged.kvm.pages.values())
    with paged.watch() as seen:
        paged.read(GVA)
    assert not any(e.created for e in seen if isinstance(e, ev.kvm_mmu_get_page))


def test_a_reset_frees_all_roots_and_configures_anew(guest: Guest) -> None:
    guest.read(GVA)
    with guest.watch() as seen:
        kvm_mmu_reset_context(guest.vcpu)
    assert [type(e).__name__ for e in seen] == ["kvm_mmu_reset_context"] + ["kvm_mmu_free_roots"] * 2


@pytest.mark.parametrize("mode", ["np", "32", "pae", "64", "57"])
def test_obsolete_roots_are_freed_at_the_next_entry(mode: str) -> None:
    guest = Guest(mode)
    if mode != "np":
        guest.map(GVA, DATA)
    guest.enter()
    old = list(guest.kvm.pages)
    kvm_mmu_zap_all_fast(guest.kvm)
    # The roots, and nothing else, wait for the vCPU: invalid, and of the old generation.
    assert all(sp.invalid and sp.root_count for sp in guest.kvm.pages.values())
    with guest.watch() as seen:
        guest.enter()
    assert ev.kvm_mmu_free_roots(KVM_MMU_ROOT_CURRENT) in seen
    created = [e for e in seen if isinstance(e, ev.kvm_mmu_get_page)]
    assert created
    assert all(e.created and e.mmu_valid_gen == 1 for e in created)
    assert len(guest.kvm.pages) <= len(old)


def test_previous_roots_that_are_obsolete_go_too() -> None:
    guest, roots = with_roots(3)
    for root in roots:
        guest.cr3(root)
    kvm_mmu_zap_all_fast(guest.kvm)
    with guest.watch() as seen:
        guest.enter()
    assert ev.kvm_mmu_free_roots(0b111) in seen
    assert kept(guest) == [roots[2]]


# Syncing ----------------------------------------------------------------------------------


def test_a_load_of_cr3_syncs_the_root_it_turns_to() -> None:
    guest, roots = with_roots(2)
    guest.map(WINDOW, guest.table(GVA))
    guest.map(WINDOW, guest.table(GVA), root=roots[1])
    guest.read(GVA)
    guest.write(WINDOW + 0xFF0)
    assert is_unsync_root(guest.kvm, guest.vcpu.mmu.root_hpa)
    with guest.watch() as seen:
        guest.cr3(roots[1])
    assert not any(isinstance(e, ev.kvm_mmu_sync_page) for e in seen)
    with guest.watch() as seen:
        guest.cr3(roots[0])
    assert [e.gfn for e in seen if isinstance(e, ev.kvm_mmu_sync_page)] == [guest.table(GVA) >> 12]
    assert not is_unsync_root(guest.kvm, guest.vcpu.mmu.root_hpa)


def test_previous_roots_with_something_unsync_are_dropped() -> None:
    guest, roots = with_roots(2)
    guest.map(WINDOW, guest.table(GVA))
    guest.read(GVA)
    guest.write(WINDOW + 0xFF0)
    guest.cr3(roots[1])
    with guest.watch() as seen:
        kvm_mmu_sync_prev_roots(guest.vcpu)
    assert seen == [ev.kvm_mmu_sync_prev_roots(), ev.kvm_mmu_free_roots(2)]
    assert kept(guest) == [roots[1]]
    with guest.watch() as seen:
        kvm_mmu_sync_prev_roots(guest.vcpu)
    assert seen == [ev.kvm_mmu_sync_prev_roots(), ev.kvm_mmu_free_roots(0)]
