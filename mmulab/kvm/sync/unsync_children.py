"""Out-of-sync pages: marking them, and finding them again under a parent.

A level-1 page may let the guest write its table freely; every parent, up to the
roots, then knows through a count and a bitmap that something below is stale.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``mark_unsync``, ``__mmu_unsync_walk``,
``mmu_try_to_unsync_pages``, ``mmu_sync_children``); the design is Avi Kivity's answer to
the 2008 patches (4731d4c7a077).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.flush import kvm_flush_remote_tlbs
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.rmap import pte_list_iter
from mmulab.kvm.spte import SPTE_ENT_PER_PAGE, is_large_pte, is_shadow_present_pte, spte_to_pfn
from mmulab.kvm.state import Kvm, Vcpu, spte_index, sptep_to_sp
from mmulab.kvm.sync.page import kvm_sync_page, kvm_vcpu_write_protect_gfn, sync_transiently
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.unsync import kvm_unlink_unsync_page, kvm_unsync_page, unsync_pages
from mmulab.kvm.zap import InvalidList, kvm_mmu_prepare_zap_page, kvm_mmu_remote_flush_or_zap

KVM_PAGE_ARRAY_NR = 16


def mark_unsync(kvm: Kvm, sptep: int) -> None:
    """Note at the parent's entry `sptep`, and above, that an unsync page is below."""
    sp = sptep_to_sp(kvm, sptep)
    bit = 1 << spte_index(sptep)
    if sp.unsync_child_bitmap & bit:
        return
    sp.unsync_child_bitmap |= bit
    sp.unsync_children += 1
    if sp.unsync_children > 1:
        return
    kvm_mmu_mark_parents_unsync(kvm, sp)


def kvm_mmu_mark_parents_unsync(kvm: Kvm, sp: ShadowPage) -> None:
    """Note at every parent of `sp` that an unsync page is below."""
    for sptep in pte_list_iter(sp.parent_ptes):
        mark_unsync(kvm, sptep)


def clear_unsync_child_bit(kvm: Kvm, sp: ShadowPage, index: int) -> None:
    """Forget that something unsync is below entry `index`."""
    sp.unsync_children -= 1
    warn_on(kvm, "mmu.c:clear_unsync_child_bit:negative", sp.unsync_children < 0)
    sp.unsync_child_bitmap &= ~(1 << index)


class UnsyncStep:
    """One page of an unsync walk: the page, and the path of (parent, index) above it."""

    __slots__ = ("path", "sp")

    def __init__(self, sp: ShadowPage, path: list[tuple[ShadowPage, int]]) -> None:
        self.sp = sp
        self.path = path

    def clear_parents(self, kvm: Kvm) -> None:
        """Clear the bits that led here, upwards until a parent still has others."""
        for parent, index in reversed(self.path):
            clear_unsync_child_bit(kvm, parent, index)
            if parent.unsync_children:
                return


class _Vector:
    """``struct kvm_mmu_pages``: at most 16 pages, inner ones included."""

    __slots__ = ("count", "seen", "steps")

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[int] = []
        self.steps: list[UnsyncStep] = []

    def add(self, sp: ShadowPage, path: list[tuple[ShadowPage, int]]) -> bool:
        """Add a page; return whether the vector is full now. An unsync page is added once."""
        if sp.unsync:
            if sp.frame in self.seen:
                return False
            self.seen.append(sp.frame)
            self.steps.append(UnsyncStep(sp, list(path)))
        self.count += 1
        return self.count == KVM_PAGE_ARRAY_NR


def _unsync_walk(kvm: Kvm, sp: ShadowPage, vector: _Vector, path: list[tuple[ShadowPage, int]]) -> int:
    """Collect below `sp`; return the number of unsync leaves found, -1 when full."""
    found = 0
    bits = sp.unsync_child_bitmap
    words = kvm.memory.words
    while bits:
        index = (bits & -bits).bit_length() - 1
        bits &= bits - 1
        spte = words[sp.frame * 512 + index]
        if not is_shadow_present_pte(spte) or is_large_pte(spte):
            clear_unsync_child_bit(kvm, sp, index)
            continue
        child = kvm.pages[spte_to_pfn(spte)]
        path.append((sp, index))
        if child.unsync_children:
            below = -1 if vector.add(child, path) else _unsync_walk(kvm, child, vector, path)
            if below < 0:
                return -1
            if below:
                found += below
            else:
                clear_unsync_child_bit(kvm, sp, index)
        elif child.unsync:
            found += 1
            if vector.add(child, path):
                return -1
        else:
            clear_unsync_child_bit(kvm, sp, index)
        path.pop()
    return found


def mmu_unsync_walk(kvm: Kvm, sp: ShadowPage) -> list[UnsyncStep] | None:
    """Collect a batch of the unsync pages below `sp`.

    Returns
    -------
    list of UnsyncStep, or None
        None when there is nothing (more) to do. A list may be short because
        inner pages count towards the 16 of a batch.
    """
    if not sp.unsync_children:
        return None
    vector = _Vector()
    vector.count = 1
    warn_on(kvm, "mmu.c:mmu_pages_first:level", sp.level == 1)
    found = _unsync_walk(kvm, sp, vector, [])
    return vector.steps if found else None


def mmu_sync_children(vcpu: Vcpu, parent: ShadowPage) -> None:
    """Sync every unsync page below `parent`, in batches: protect all, flush, sync each."""
    kvm = vcpu.kvm
    invalid: InvalidList = []
    flush = False
    while (steps := mmu_unsync_walk(kvm, parent)) is not None:
        protected = False
        for step in steps:
            protected |= kvm_vcpu_write_protect_gfn(vcpu, step.sp.gfn)
        if protected:
            kvm_mmu_remote_flush_or_zap(kvm, invalid, True)
            flush = False
        for step in steps:
            kvm_unlink_unsync_page(kvm, step.sp)
            flush |= kvm_sync_page(vcpu, step.sp, invalid) > 0
            step.clear_parents(kvm)
    kvm_mmu_remote_flush_or_zap(kvm, invalid, flush)


def mmu_zap_unsync_children(kvm: Kvm, parent: ShadowPage, invalid: InvalidList) -> int:
    """Zap every unsync page below `parent`; return how many."""
    zapped = 0
    if parent.level == 1:
        return 0
    while (steps := mmu_unsync_walk(kvm, parent)) is not None:
        for step in steps:
            kvm_mmu_prepare_zap_page(kvm, step.sp, invalid)
            step.clear_parents(kvm)
            zapped += 1
    return zapped


def _leave(kvm: Kvm, sp: ShadowPage) -> str:
    kvm_unsync_page(kvm, sp)
    kvm_mmu_mark_parents_unsync(kvm, sp)
    return ""


class UnsyncChildren(SyncPolicy):
    """Leaves go out of sync; every parent knows, and a flush descends along the bitmaps."""

    name: ClassVar[str] = "unsync_children"
    summary: ClassVar[str] = "leaves go out of sync; parents know by a bitmap, and a flush descends (merged)"
    source: ClassVar[str] = "4731d4c7a077 (2.6.28), as Linux 6.1 arch/x86/kvm/mmu/mmu.c has it"
    page_bytes: ClassVar[int] = 1 + 4 + SPTE_ENT_PER_PAGE // 8
    """``unsync``, ``unsync_children`` and the bitmap: "512 bits = 64 bytes"."""
    marks_parents: ClassVar[bool] = True

    def try_to_unsync(
        self, kvm: Kvm, slot: KvmMemslot, gfn: int, *, can_unsync: bool, prefetch: bool
    ) -> bool:
        return unsync_pages(self, kvm, slot, gfn, _leave, can_unsync=can_unsync, prefetch=prefetch)

    def meets(self, vcpu: Vcpu, sp: ShadowPage, addr: int | None, invalid: InvalidList) -> bool:
        return not sp.unsync or sync_transiently(vcpu, sp, invalid)

    def meets_other(
        self,
        kvm: Kvm,
        vcpu: Vcpu | None,
        sp: ShadowPage,
        addr: int | None,
        invalid: InvalidList,
        *,
        upper: bool,
    ) -> None:
        """Zap an unsync page that gives way to an upper-level one, which will be write-protected."""
        if not upper or not sp.unsync:
            return
        if kvm.bugs.B27 and vcpu is not None:
            kvm_unlink_unsync_page(kvm, sp)
            if kvm_sync_page(vcpu, sp, invalid) > 0:
                kvm_flush_remote_tlbs(kvm)
        else:
            kvm_mmu_prepare_zap_page(kvm, sp, invalid)

    def linking(self, vcpu: Vcpu, sp: ShadowPage) -> None:
        if sp.unsync_children:
            mmu_sync_children(vcpu, sp)

    def linked(self, kvm: Kvm, sptep: int, sp: ShadowPage) -> None:
        if sp.unsync_children or sp.unsync:
            mark_unsync(kvm, sptep)

    def zap_below(self, kvm: Kvm, sp: ShadowPage, invalid: InvalidList) -> int:
        return mmu_zap_unsync_children(kvm, sp, invalid)

    def sync_roots(self, vcpu: Vcpu, roots: Sequence[ShadowPage], *, everything: bool) -> None:
        for root in roots:
            mmu_sync_children(vcpu, root)

    def is_unsync_root(self, kvm: Kvm, sp: ShadowPage) -> bool:
        return bool(sp.unsync or sp.unsync_children)

    def may_hide_below(self, sp: ShadowPage) -> bool:
        return bool(sp.unsync_children)


unsync_children = UnsyncChildren()
