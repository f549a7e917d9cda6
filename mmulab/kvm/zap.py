"""Zapping: taking shadow pages out of use, in two steps.

``prepare`` unlinks a page and puts it on an invalid list; ``commit`` flushes
once and frees what is on the list. A root in use cannot be freed yet: it stays
behind as *invalid*.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``__kvm_mmu_prepare_zap_page``,
``kvm_mmu_commit_zap_page``, ``kvm_mmu_zap_all_fast``, ``make_mmu_pages_available``,
``set_nx_huge_pages``).
"""

from __future__ import annotations

import errno

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.flush import kvm_flush_remote_tlbs
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.nx_huge_page import is_dirty_tracked, unaccount_nx_huge_page
from mmulab.kvm.page_track import unaccount_shadowed
from mmulab.kvm.rmap import drop_spte, kvm_pte_list_remove
from mmulab.kvm.spte import (
    SPTE_ENT_PER_PAGE,
    SPTE_MMU_PRESENT_MASK,
    is_last_spte,
    is_mmio_spte,
    spte_to_pfn,
)
from mmulab.kvm.state import Kvm, KvmRunError, Request, Vcpu, is_obsolete_sp, spte_at
from mmulab.kvm.sync.unsync import gfn_sps_with_gptes, kvm_unlink_unsync_page
from mmulab.kvm.tdp_mmu import (
    kvm_tdp_mmu_invalidate_all_roots,
    kvm_tdp_mmu_zap_all,
    kvm_tdp_mmu_zap_invalidated_roots,
    kvm_tdp_mmu_zap_sp,
)
from mmulab.kvm.trace import trace, trace_page

KVM_MIN_ALLOC_MMU_PAGES = 64
KVM_MIN_FREE_MMU_PAGES = 5
KVM_REFILL_PAGES = 25

InvalidList = list[int]
"""Frames of pages that wait for ``kvm_mmu_commit_zap_page``, last added first."""


def drop_parent_pte(kvm: Kvm, sp: ShadowPage, parent_pte: int) -> None:
    """Unlink `sp` from the entry at `parent_pte`."""
    kvm_pte_list_remove(kvm, sp.parent_ptes, parent_pte)
    kvm.memory.store64(parent_pte, kvm.fmt.nonpresent)


def mmu_page_zap_pte(kvm: Kvm, sp: ShadowPage, sptep: int, invalid: InvalidList | None) -> int:
    """Clear one entry of `sp`, leaf, link or MMIO; return the number of child pages zapped with it.

    A child of an L2 table that is left without parents is zapped too, because
    nobody is likely to look for it again.
    """
    spte = spte_at(kvm, sptep)
    if spte & SPTE_MMU_PRESENT_MASK:
        if is_last_spte(spte, sp.level):
            drop_spte(kvm, sptep)
            return 0
        child = kvm.pages[spte_to_pfn(spte)]
        drop_parent_pte(kvm, child, sptep)
        in_use = child.root_count and not kvm.bugs.B4
        orphan = not in_use and not child.parent_ptes
        if kvm.config.tdp and invalid is not None and child.guest_mode and orphan:
            return int(kvm_mmu_prepare_zap_page(kvm, child, invalid))
    elif is_mmio_spte(kvm.fmt, spte):
        kvm.memory.store64(sptep, kvm.fmt.nonpresent)
    return 0


def _unlink_children(kvm: Kvm, sp: ShadowPage, invalid: InvalidList) -> int:
    zapped, base = 0, sp.frame * SPTE_ENT_PER_PAGE
    for index in kvm.memory.words_but(sp.frame, kvm.fmt.nonpresent):
        zapped += mmu_page_zap_pte(kvm, sp, (base + index) << 3, invalid)
    return zapped


def prepare_zap_page(kvm: Kvm, sp: ShadowPage, invalid: InvalidList) -> tuple[bool, int]:
    """Take `sp` out of use (``__kvm_mmu_prepare_zap_page``).

    Returns
    -------
    list_unstable : bool
        Other pages of the active list were zapped too.
    nr_zapped : int
        Pages zapped, `sp` itself included unless it is a root in use.
    """
    trace_page(kvm, ev.kvm_mmu_prepare_zap_page, sp)
    kvm.stat["mmu_shadow_zapped"] += 1
    nr_zapped = kvm.sync.zap_below(kvm, sp, invalid)
    nr_zapped += _unlink_children(kvm, sp, invalid)
    while sp.parent_ptes:
        drop_parent_pte(kvm, sp, sp.parent_ptes[0][0])
    list_unstable = nr_zapped > 0
    if not sp.invalid and sp.has_gptes:
        unaccount_shadowed(kvm, sp)
    if sp.unsync:
        kvm_unlink_unsync_page(kvm, sp)
    kvm.sync.zapped(kvm, sp)
    zapped_root = False
    if not sp.root_count:
        nr_zapped += 1
        if not sp.invalid:
            del kvm.active_mmu_pages[sp.frame]
        invalid.insert(0, sp.frame)
        kvm.n_used_mmu_pages -= 1
    else:
        del kvm.active_mmu_pages[sp.frame]
        zapped_root = not is_obsolete_sp(kvm, sp)
    unaccount_nx_huge_page(kvm, sp)
    sp.invalid = True
    sp.role = kvm.config.kernel.design.invalidated(sp.role)
    if zapped_root:
        kvm.make_all_cpus_request(Request.MMU_FREE_OBSOLETE_ROOTS)
    return list_unstable, nr_zapped


def kvm_mmu_prepare_zap_page(kvm: Kvm, sp: ShadowPage, invalid: InvalidList) -> int:
    """Take `sp` out of use; return the number of pages zapped."""
    return prepare_zap_page(kvm, sp, invalid)[1]


def kvm_mmu_commit_zap_page(kvm: Kvm, invalid: InvalidList) -> None:
    """Flush and free the pages on the list."""
    if not invalid:
        return
    kvm_flush_remote_tlbs(kvm)
    for frame in invalid:
        sp = kvm.pages[frame]
        used = not sp.invalid or sp.root_count > 0
        if used or kvm.assertion_counts is not None:
            warn_on(kvm, "mmu.c:kvm_mmu_commit_zap_page:invalid", used)
        _free_shadow_page(kvm, frame)
    invalid.clear()


def _free_shadow_page(kvm: Kvm, frame: int) -> None:
    sp = kvm.pages.pop(frame)
    bucket = kvm.page_hash[sp.gfn]
    bucket.remove(frame)
    if not bucket:
        del kvm.page_hash[sp.gfn]
    kvm.memory.free_frame(frame)


def kvm_mmu_remote_flush_or_zap(kvm: Kvm, invalid: InvalidList, remote_flush: bool) -> bool:
    """Commit the list, which flushes, or flush alone if that is needed."""
    if invalid:
        kvm_mmu_commit_zap_page(kvm, invalid)
        return True
    if remote_flush:
        kvm_flush_remote_tlbs(kvm)
    return remote_flush


def kvm_mmu_unprotect_page(kvm: Kvm, gfn: int) -> bool:
    """Zap every page that shadows `gfn`, so that the guest may write it; return if there was one."""
    trace(kvm, ev.kvm_mmu_unprotect_page, gfn)
    invalid: InvalidList = []
    pages = [sp for sp in gfn_sps_with_gptes(kvm, gfn) if kvm.sync.may_zap(kvm, sp)]
    for sp in pages:
        if not is_obsolete_sp(kvm, sp):
            kvm_mmu_prepare_zap_page(kvm, sp, invalid)
    kvm_mmu_commit_zap_page(kvm, invalid)
    return bool(pages)


def kvm_mmu_zap_oldest_mmu_pages(kvm: Kvm, nr_to_zap: int) -> int:
    """Zap the oldest pages that are not roots in use, until `nr_to_zap` are gone."""
    total = 0
    invalid: InvalidList = []
    restart = True
    while restart:
        restart = False
        for frame in list(kvm.active_mmu_pages):
            sp = kvm.pages[frame]
            if sp.root_count or not kvm.sync.may_zap(kvm, sp):
                continue
            unstable, zapped = prepare_zap_page(kvm, sp, invalid)
            total += zapped
            if total >= nr_to_zap:
                break
            if unstable:
                restart = True
                break
    kvm_mmu_commit_zap_page(kvm, invalid)
    kvm.stat["mmu_recycled"] += total
    return total


def kvm_mmu_available_pages(kvm: Kvm) -> int:
    """Return how many more shadow pages the VM may have."""
    return max(0, kvm.n_max_mmu_pages - kvm.n_used_mmu_pages)


def make_mmu_pages_available(vcpu: Vcpu) -> None:
    """Zap old pages if the limit is near, so that at least one page is free.

    Raises
    ------
    KvmRunError
        No page can be made free: -ENOSPC, with which ``KVM_RUN`` ends.
    """
    kvm = vcpu.kvm
    available = kvm_mmu_available_pages(kvm)
    if available >= KVM_MIN_FREE_MMU_PAGES:
        return
    kvm_mmu_zap_oldest_mmu_pages(kvm, KVM_REFILL_PAGES - available)
    if not kvm_mmu_available_pages(kvm):
        raise KvmRunError(errno.ENOSPC)


def kvm_mmu_change_mmu_pages(kvm: Kvm, goal: int) -> None:
    """Set the limit of shadow pages, zapping the oldest down to it."""
    if kvm.n_used_mmu_pages > goal:
        kvm_mmu_zap_oldest_mmu_pages(kvm, kvm.n_used_mmu_pages - goal)
        goal = kvm.n_used_mmu_pages
    kvm.n_max_mmu_pages = goal


def kvm_recover_nx_huge_pages(kvm: Kvm, ratio: int) -> None:
    """Zap a `ratio`-th of the pages that alone stand in the way of NX huge pages, oldest first.

    One pass of the worker; nothing is at the same time, so it never yields.
    """
    invalid: InvalidList = []
    flush = False
    for _ in range(-(-kvm.stat["nx_lpage_splits"] // ratio)):
        first = next(iter(kvm.possible_nx_huge_pages), None)
        if first is None:  # some went with another
            break
        sp = kvm.pages[first]
        warn_on(kvm, "mmu.c:kvm_recover_nx_lpages:before", not sp.lpage_disallowed)
        if kvm.behaviours.nx_recovery_spares_logged and is_dirty_tracked(kvm, sp):
            unaccount_nx_huge_page(kvm, sp)
        elif sp.tdp_mmu_page:
            kvm_tdp_mmu_zap_sp(kvm, sp)
            flush = True
        else:
            kvm_mmu_prepare_zap_page(kvm, sp, invalid)
            warn_on(kvm, "mmu.c:kvm_recover_nx_lpages:after", sp.lpage_disallowed)
    kvm_mmu_remote_flush_or_zap(kvm, invalid, flush)


def set_nx_huge_pages(kvm: Kvm, enabled: bool) -> None:
    """Write the module parameter at run time: another value makes every page of every VM obsolete.

    The worker for the recovery is woken too, and sleeps on: its next pass is an op of its own.
    """
    if enabled != kvm.nx_huge_pages:
        kvm.nx_huge_pages = enabled
        kvm_mmu_zap_all_fast(kvm)


def kvm_mmu_zap_all_fast(kvm: Kvm) -> None:
    """Make every page obsolete by turning the generation, then zap them, oldest first."""
    trace(kvm, ev.kvm_mmu_zap_all_fast, kvm.mmu_valid_gen, kvm.n_used_mmu_pages)
    kvm.mmu_valid_gen ^= 1
    kvm.make_all_cpus_request(Request.MMU_FREE_OBSOLETE_ROOTS)
    if kvm.config.uses_tdp_mmu:
        kvm_tdp_mmu_invalidate_all_roots(kvm)
    invalid: InvalidList = []
    restart = True
    while restart:
        restart = False
        for frame in list(kvm.active_mmu_pages):
            sp = kvm.pages[frame]
            if not is_obsolete_sp(kvm, sp):
                break
            if warn_on(kvm, "mmu.c:kvm_zap_obsolete_pages:invalid", sp.invalid):
                continue
            if prepare_zap_page(kvm, sp, invalid)[0]:
                restart = True
                break
    kvm_mmu_commit_zap_page(kvm, invalid)
    if kvm.config.uses_tdp_mmu:
        kvm_tdp_mmu_zap_invalidated_roots(kvm)


def kvm_mmu_zap_all(kvm: Kvm) -> None:
    """Zap every page, newest first, because the VM ends."""
    invalid: InvalidList = []
    restart = True
    while restart:
        restart = False
        for frame in reversed(list(kvm.active_mmu_pages)):
            sp = kvm.pages[frame]
            if warn_on(kvm, "mmu.c:kvm_mmu_zap_all:invalid", sp.invalid):
                continue
            if prepare_zap_page(kvm, sp, invalid)[0]:
                restart = True
                break
    kvm_mmu_commit_zap_page(kvm, invalid)
    if kvm.config.uses_tdp_mmu:
        kvm_tdp_mmu_zap_all(kvm)
