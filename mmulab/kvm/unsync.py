"""Out-of-sync pages: marking them, and finding them again under a parent.

A level-1 page may let the guest write its table freely; every parent, up to the
roots, then knows through a count and a bitmap that something below is stale.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``mark_unsync``, ``__mmu_unsync_walk``,
``mmu_try_to_unsync_pages``); the design is Avi Kivity's answer to the 2008 patches
(4731d4c7a077).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.page_track import kvm_slot_page_track_is_active
from mmulab.kvm.rmap import pte_list_iter
from mmulab.kvm.spte import is_large_pte, is_shadow_present_pte, spte_to_pfn
from mmulab.kvm.state import Kvm, is_obsolete_sp, spte_index, sptep_to_sp

KVM_PAGE_ARRAY_NR = 16


def gfn_sps_with_gptes(kvm: Kvm, gfn: int) -> list[ShadowPage]:
    """Return the usable pages that shadow the table at `gfn`, newest first."""
    frames = kvm.page_hash.get(gfn)
    if not frames:
        return []
    pages = [kvm.pages[f] for f in frames]
    return [sp for sp in pages if sp.has_gptes and not is_obsolete_sp(kvm, sp)]


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


def clear_unsync_child_bit(sp: ShadowPage, index: int) -> None:
    """Forget that something unsync is below entry `index`."""
    sp.unsync_children -= 1
    sp.unsync_child_bitmap &= ~(1 << index)


class UnsyncStep:
    """One page of an unsync walk: the page, and the path of (parent, index) above it."""

    __slots__ = ("path", "sp")

    def __init__(self, sp: ShadowPage, path: list[tuple[ShadowPage, int]]) -> None:
        self.sp = sp
        self.path = path

    def clear_parents(self) -> None:
        """Clear the bits that led here, upwards until a parent still has others."""
        for parent, index in reversed(self.path):
            clear_unsync_child_bit(parent, index)
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
            clear_unsync_child_bit(sp, index)
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
                clear_unsync_child_bit(sp, index)
        elif child.unsync:
            found += 1
            if vector.add(child, path):
                return -1
        else:
            clear_unsync_child_bit(sp, index)
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
    found = _unsync_walk(kvm, sp, vector, [])
    return vector.steps if found else None


def kvm_unsync_page(kvm: Kvm, sp: ShadowPage) -> None:
    """Let `sp` go out of sync."""
    emit = kvm.emit
    if emit is not None:
        emit(ev.kvm_mmu_unsync_page(sp.gfn, sp.role, sp.mmu_valid_gen, sp.root_count, sp.unsync))
    kvm.stat["mmu_unsync"] += 1
    sp.unsync = True
    kvm_mmu_mark_parents_unsync(kvm, sp)


def kvm_unlink_unsync_page(kvm: Kvm, sp: ShadowPage) -> None:
    """End `sp`'s being out of sync."""
    emit = kvm.emit
    if emit is not None:
        emit(ev.kvm_mmu_sync_page(sp.gfn, sp.role, sp.mmu_valid_gen, sp.root_count, sp.unsync))
    sp.unsync = False
    kvm.stat["mmu_unsync"] -= 1


def mmu_try_to_unsync_pages(
    kvm: Kvm, slot: KvmMemslot, gfn: int, *, can_unsync: bool, prefetch: bool
) -> bool:
    """Prepare for a writable mapping of `gfn`.

    Returns
    -------
    bool
        True if every page that shadows `gfn` is (now) out of sync or there is
        none; False if the mapping must stay read-only.
    """
    if kvm_slot_page_track_is_active(kvm, slot, gfn):
        return False
    for sp in gfn_sps_with_gptes(kvm, gfn):
        if not can_unsync:
            return False
        if sp.unsync:
            continue
        if prefetch:
            return False
        kvm_unsync_page(kvm, sp)
    return True
