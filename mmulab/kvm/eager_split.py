"""Eager page splitting: huge pages are split when dirty logging begins, so that no fault has to.

The TDP MMU splits its own (:mod:`mmulab.kvm.tdp_mmu`). This file is about the
sptes with reverse maps: with the TDP MMU on, those are in pages that shadow a
nested guest's tables; with it off nothing is split, except by the series' first
version (:data:`mmulab.kvm.kernel.EAGER_SPLIT`). A split spte keeps the rights of the huge one; who
called protects it afterwards.

Each split takes the huge spte out of its reverse map, which is then read from
its beginning again. In 6.1.192 putting the new table in place always flushes;
6.1 itself flushed only if part of a table that was found lay unmapped. Three
results are reported besides success: ``-ENOSPC``, no shadow page to spare;
``-EAGAIN``, the kernel dropped its lock, to fill the caches for splitting up or because
another task waits for the CPU, and begins the reverse map again; ``-ENOMEM``, the host had
nothing for the caches. The TDP MMU has no caches, and no word for being scheduled.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_slot_try_split_huge_pages``,
``kvm_mmu_try_split_huge_pages``, ``shadow_mmu_*``, ``topup_split_caches``); the
series is 20220516232138.1783324-1.
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.memslot import KVM_MAX_HUGEPAGE_LEVEL, KvmMemslot, PteList
from mmulab.kvm.mmu_page import ShadowPage, kvm_mmu_page_get_gfn
from mmulab.kvm.nx_huge_page import is_nx_huge_page_enabled
from mmulab.kvm.rmap import (
    PTE_LIST_EXT,
    for_each_rmap_spte,
    gfn_to_rmap,
    kvm_mmu_page_get_access,
    mmu_spte_set,
    rmap_add,
    slot_handle_level_range,
)
from mmulab.kvm.shadow_page import kvm_mmu_child_role, kvm_mmu_get_shadow_page, link_shadow_page
from mmulab.kvm.spte import (
    SPTE_ENT_PER_PAGE,
    can_split_huge_spte,
    is_large_pte,
    is_shadow_present_pte,
    make_huge_page_split_spte,
)
from mmulab.kvm.state import Kvm, spte_at, spte_index, sptep_to_sp
from mmulab.kvm.tdp_mmu import ENOMEM, kvm_tdp_mmu_try_split_huge_pages, take_split_tables
from mmulab.kvm.trace import trace
from mmulab.kvm.zap import KVM_MIN_FREE_MMU_PAGES, kvm_mmu_available_pages
from mmulab.x86.pferr import ACC_EXEC_MASK
from mmulab.x86.regs import PG_LEVEL_4K

EAGAIN = 11
ENOSPC = 28
KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE = 40
SPLIT_DESC_CACHE_MIN_NR_OBJECTS = SPTE_ENT_PER_PAGE + 1
"""Reverse-map descriptors that one split may need: one an entry, and one for the link."""
SPLIT_DESC_CACHE_CAPACITY = SPLIT_DESC_CACHE_MIN_NR_OBJECTS + KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE


def kvm_mmu_slot_try_split_huge_pages(kvm: Kvm, slot: KvmMemslot) -> None:
    """Split all huge pages of a slot whose writes are about to be logged."""
    start, end = slot.base_gfn, slot.base_gfn + slot.npages
    _try_split_huge_pages(kvm, slot, start, end, shared=True)


def kvm_mmu_try_split_huge_pages(kvm: Kvm, slot: KvmMemslot, start: int, end: int) -> None:
    """Split the huge pages over gfns from `start` to below `end`.

    The caller in 6.1 gives its last gfn for `end`. Where that is `start` too and
    begins a huge page, the TDP MMU then splits nothing, while a shadow page's entry
    is split, because the kernel's iteration over reverse maps visits its first one in any case.
    """
    _try_split_huge_pages(kvm, slot, start, end, shared=False)


def _try_split_huge_pages(kvm: Kvm, slot: KvmMemslot, start: int, end: int, *, shared: bool) -> None:
    tdp_mmu = kvm.config.uses_tdp_mmu
    if not tdp_mmu and kvm.config.kernel.eager_split != "shadow":
        return
    if not tdp_mmu or kvm.shadow_root_allocated:
        _shadow_mmu_try_split_huge_pages(kvm, slot, start, max(start, end - 1))
    if tdp_mmu:
        kvm_tdp_mmu_try_split_huge_pages(kvm, slot.as_id, start, end, PG_LEVEL_4K, shared=shared)


def _shadow_mmu_try_split_huge_pages(kvm: Kvm, slot: KvmMemslot, first: int, last: int) -> None:
    """Go from the largest pages down, so that what the first pass makes is split by the next."""

    def split(gfn: int, level: int) -> bool:
        _split_rmap(kvm, slot, gfn, level)
        return False

    for level in range(KVM_MAX_HUGEPAGE_LEVEL, PG_LEVEL_4K, -1):
        slot_handle_level_range(slot, range(level, level + 1), first, last, split)


def _split_rmap(kvm: Kvm, slot: KvmMemslot, gfn: int, level: int) -> None:
    """Split every huge spte of one reverse map, until one cannot be split."""
    while (sptep := _first_to_split(kvm, gfn_to_rmap(slot, gfn, level))) is not None:
        if _try_split_huge_page(kvm, slot, sptep) not in (0, -EAGAIN):
            return


def _first_to_split(kvm: Kvm, head: PteList | None) -> int | None:
    all_of_them = kvm.config.kernel.eager_split == "shadow"
    for sptep in for_each_rmap_spte(kvm, head):
        sp = sptep_to_sp(kvm, sptep)
        # A role without guest_mode cannot show that the page is a nested guest's. A derivation
        # that needs the faulting address has none for 4-byte entries.
        lost = not (sp.guest_mode or all_of_them)
        if warn_on(kvm, "mmu.c:shadow_mmu_try_split_huge_pages:guest_mode", lost):
            continue
        small = not is_large_pte(spte_at(kvm, sptep))
        if warn_on(kvm, "mmu.c:shadow_mmu_try_split_huge_pages:large", small):
            continue
        if warn_on(kvm, "mmu.c:shadow_mmu_try_split_huge_pages:unsync", sp.unsync) or sp.invalid:
            continue
        if sp.has_4_byte_gpte and not kvm.config.kernel.derivation.splits_4_byte:
            continue
        return sptep
    return None


def _try_split_huge_page(kvm: Kvm, slot: KvmMemslot, huge_sptep: int) -> int:
    """Split one huge spte, report it, and return 0 or a negative errno."""
    huge_sp = sptep_to_sp(kvm, huge_sptep)
    gfn = kvm_mmu_page_get_gfn(huge_sp, spte_index(huge_sptep))
    huge_spte = spte_at(kvm, huge_sptep)
    result = 0
    if kvm_mmu_available_pages(kvm) <= KVM_MIN_FREE_MMU_PAGES:
        result = -ENOSPC
    elif kvm.need_resched or _need_topup(kvm):
        kvm.need_resched = False
        result = _topup_split_caches(kvm) or -EAGAIN
    else:
        _split_huge_page(kvm, slot, huge_sptep, huge_spte)
    trace(kvm, ev.kvm_mmu_split_huge_page, gfn, huge_spte, huge_sp.level, result)
    return result


def _need_topup(kvm: Kvm) -> bool:
    """Whether a cache has less than one split may take."""
    return kvm.split_desc_cache < SPLIT_DESC_CACHE_MIN_NR_OBJECTS or not kvm.split_page_header_cache


def _topup_split_caches(kvm: Kvm) -> int:
    """Fill each cache that has less than one split may take; 0, or a negative errno if the host has nothing.

    Only tables take whole pages. What the host gives is kept even if it is less than a cache holds.
    """
    if kvm.split_desc_cache < SPLIT_DESC_CACHE_MIN_NR_OBJECTS:
        kvm.split_desc_cache = SPLIT_DESC_CACHE_CAPACITY
    if not kvm.split_page_header_cache:
        kvm.split_page_header_cache = take_split_tables(kvm, KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE)
    return 0 if kvm.split_page_header_cache else -ENOMEM


def _get_sp_for_split(kvm: Kvm, huge_sptep: int) -> ShadowPage:
    """Find or create the direct page that maps the same memory with smaller pages."""
    huge_sp, index = sptep_to_sp(kvm, huge_sptep), spte_index(huge_sptep)
    access = kvm_mmu_page_get_access(huge_sp, index)
    role = kvm_mmu_child_role(kvm, huge_sptep, direct=True, access=access)
    missed = kvm.stat["mmu_cache_miss"]
    sp = kvm_mmu_get_shadow_page(kvm, None, kvm_mmu_page_get_gfn(huge_sp, index), role)
    kvm.split_page_header_cache -= kvm.stat["mmu_cache_miss"] - missed
    return sp


def _split_huge_page(kvm: Kvm, slot: KvmMemslot, huge_sptep: int, huge_spte: int) -> None:
    """Put a table in the place of a huge spte.

    Entries that a page found has already map the same frames, since it is direct.
    One that points to a table may lead to less than the huge page mapped.
    """
    sp = _get_sp_for_split(kvm, huge_sptep)
    executable = bool(sp.access & ACC_EXEC_MASK) and is_nx_huge_page_enabled(kvm)
    for index in range(SPTE_ENT_PER_PAGE):
        sptep = sp.frame << 12 | index << 3
        if is_shadow_present_pte(spte_at(kvm, sptep)):
            continue
        spte = 0
        if can_split_huge_spte(kvm, huge_spte):
            spte = make_huge_page_split_spte(kvm.fmt, huge_spte, sp.level, index, executable=executable)
        mmu_spte_set(kvm, sptep, spte)
        gfn = kvm_mmu_page_get_gfn(sp, index)
        kvm.split_desc_cache -= _takes_descriptor(gfn_to_rmap(slot, gfn, sp.level))
        rmap_add(kvm, slot, sptep, gfn, sp.access)
    kvm.split_desc_cache -= _takes_descriptor(sp.parent_ptes)
    link_shadow_page(kvm, huge_sptep, sp)


def _takes_descriptor(head: PteList | None) -> bool:
    """Whether adding to the list takes a descriptor: a second entry, or one behind full blocks.

    A list that shrank to one entry still has its descriptor in the kernel; here
    it counts as having none.
    """
    if not head:
        return False
    alone = len(head) == 1 and len(head[0]) == 1
    return alone or all(len(block) == PTE_LIST_EXT for block in head)
