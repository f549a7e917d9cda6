"""The TDP MMU: direct maps for two-dimensional paging, outside the shadow page cache.

Its pages are not hashed and have no reverse maps: a gfn's place in the tables
is known. Every change of an entry goes through one function, which reports it
and follows a table that is cut off.

Source: Linux 6.1 ``arch/x86/kvm/mmu/tdp_mmu.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mmulab import events as ev
from mmulab.kvm.assertions import bug_on, kvm_bug_on, warn_on
from mmulab.kvm.dirty import mark_page_dirty_in_slot
from mmulab.kvm.flush import kvm_flush_remote_tlbs_range
from mmulab.kvm.memslot import KVM_MAX_HUGEPAGE_LEVEL, KvmMemslot
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT, KVM_PAGES_PER_HPAGE
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.nx_huge_page import is_nx_huge_page_enabled, unaccount_nx_huge_page
from mmulab.kvm.roles.design import role_facts, role_of_child
from mmulab.kvm.spte import (
    REMOVED_SPTE,
    SPTE_ENT_PER_PAGE,
    SPTE_TDP_AD_MASK,
    can_split_huge_spte,
    check_spte_writable_invariants,
    is_accessed_spte,
    is_large_pte,
    is_last_spte,
    is_mmio_spte,
    is_shadow_present_pte,
    is_writable_pte,
    kvm_mark_spte_for_access_track,
    make_huge_page_split_spte,
    make_nonleaf_spte,
    spte_to_pfn,
)
from mmulab.kvm.stat import PAGES_STAT
from mmulab.kvm.state import Kvm, spte_at, sptep_to_sp
from mmulab.kvm.tdp_iter import PT64_ROOT_MAX_LEVEL, TdpEntry, for_each_tdp_pte
from mmulab.kvm.trace import trace, trace_page
from mmulab.x86.mode import PT_WRITABLE_MASK
from mmulab.x86.pferr import ACC_EXEC_MASK
from mmulab.x86.regs import PG_LEVEL_1G

ENOMEM = 12


def roots(kvm: Kvm, as_id: int | None = None, *, only_valid: bool = False) -> Iterator[ShadowPage]:
    """Yield the roots, newest first."""
    for frame in reversed(list(kvm.tdp_mmu_roots)):
        root = kvm.pages[frame]
        if (as_id is None or root.smm == as_id) and not (only_valid and root.invalid):
            yield root


def _max_gfn(kvm: Kvm) -> int:
    return 1 << kvm.config.host_phys_bits - 12


def tdp_mmu_alloc_sp(kvm: Kvm, gfn: int, role: int) -> ShadowPage:
    """Make an empty page."""
    frame = kvm.memory.alloc_frame(kvm.fmt.nonpresent)
    sp = ShadowPage(frame, gfn, role, role_facts(kvm.config.kernel.design, role), 0)
    sp.tdp_mmu_page = True
    kvm.pages[frame] = sp
    trace_page(kvm, ev.kvm_mmu_get_page, sp, True)
    return sp


def tdp_mmu_alloc_child(kvm: Kvm, entry: TdpEntry) -> ShadowPage:
    """Make the table below an entry."""
    parent = sptep_to_sp(kvm, entry.sptep)
    role = role_of_child(kvm.config.kernel.design, parent.role, direct=True, access=parent.access, quadrant=0)
    sp = tdp_mmu_alloc_sp(kvm, entry.gfn, role)
    sp.ptep = entry.sptep
    return sp


def kvm_tdp_mmu_get_vcpu_root(kvm: Kvm, role: int) -> int:
    """Return the host-physical address of the root of this role, taking it into use."""
    for root in roots(kvm):
        if root.role == role:
            root.root_count += 1
            return root.frame << 12
    root = tdp_mmu_alloc_sp(kvm, 0, role)
    # One hold is the vCPU's, one stays until the root is invalidated.
    root.root_count = 2
    kvm.tdp_mmu_roots[root.frame] = None
    return root.frame << 12


def kvm_tdp_mmu_put_root(kvm: Kvm, root: ShadowPage) -> None:
    """Give a hold on a root back; the last one frees it."""
    root.root_count -= 1
    if not root.root_count:
        kvm_bug_on(kvm, "tdp_mmu.c:kvm_tdp_mmu_put_root:valid", not root.tdp_mmu_page or not root.invalid)
        del kvm.tdp_mmu_roots[root.frame]
        _free_sp(kvm, root)


def _free_sp(kvm: Kvm, sp: ShadowPage) -> None:
    del kvm.pages[sp.frame]
    kvm.memory.free_frame(sp.frame)


def handle_changed_spte(
    kvm: Kvm, as_id: int, gfn: int, old: int, new: int, level: int, *, dirty_log: bool = True
) -> None:
    """Report a change of an entry and do what follows from it: statistics, dirty log, a lost table."""
    _assert_change(kvm, gfn, old, new, level)
    if old != new:
        trace(kvm, ev.kvm_tdp_mmu_spte_changed, as_id, gfn, level, old, new)
        _account_change(kvm, old, new, level)
    changed = not is_writable_pte(old) or spte_to_pfn(old) != spte_to_pfn(new)
    if dirty_log and level == 1 and changed and is_writable_pte(new):
        slot = kvm.slots[as_id].lookup(gfn)
        if slot is not None:
            mark_page_dirty_in_slot(kvm, slot, gfn)


def is_removed_spte(kvm: Kvm, spte: int) -> bool:
    """Whether the entry is being taken apart."""
    return spte == REMOVED_SPTE | kvm.fmt.nonpresent


def _assert_change(kvm: Kvm, gfn: int, old: int, new: int, level: int) -> None:
    low, high = level < 1, level > PT64_ROOT_MAX_LEVEL
    unaligned = gfn & KVM_PAGES_PER_HPAGE[level] - 1 != 0 if not low else False
    was_leaf = is_shadow_present_pte(old) and is_last_spte(old, level)
    is_leaf = is_shadow_present_pte(new) and is_last_spte(new, level)
    replaced = was_leaf and is_leaf and spte_to_pfn(old) != spte_to_pfn(new)
    if low or high or unaligned or replaced or kvm.assertion_counts is not None:
        warn_on(kvm, "tdp_mmu.c:__handle_changed_spte:high", high)
        warn_on(kvm, "tdp_mmu.c:__handle_changed_spte:low", low)
        warn_on(kvm, "tdp_mmu.c:__handle_changed_spte:gfn", unaligned)
        bug_on(kvm, "tdp_mmu.c:__handle_changed_spte:pfn", replaced)


def _account_change(kvm: Kvm, old: int, new: int, level: int) -> None:
    was_present, is_present = is_shadow_present_pte(old), is_shadow_present_pte(new)
    was_leaf = was_present and is_last_spte(old, level)
    is_leaf = is_present and is_last_spte(new, level)
    if is_leaf:
        check_spte_writable_invariants(kvm, new)
    if not was_present and not is_present:
        special = is_mmio_spte(kvm.fmt, old) or is_mmio_spte(kvm.fmt, new) or is_removed_spte(kvm, new)
        if not special or kvm.assertion_counts is not None:
            warn_on(kvm, "tdp_mmu.c:__handle_changed_spte:nonpresent", not special)
        return
    if is_leaf != was_leaf:
        kvm.stat[PAGES_STAT[level]] += 1 if is_leaf else -1
    if was_present and not was_leaf and (is_leaf or not is_present or _other_table(kvm, old, new)):
        _handle_removed_pt(kvm, kvm.pages[spte_to_pfn(old)])


def _other_table(kvm: Kvm, old: int, new: int) -> bool:
    """Whether an entry that points to a table is made to point to another, which should not be."""
    changed = spte_to_pfn(old) != spte_to_pfn(new)
    return warn_on(kvm, "tdp_mmu.c:__handle_changed_spte:table", changed)


def _handle_removed_pt(kvm: Kvm, sp: ShadowPage) -> None:
    """Take apart a table that was cut off."""
    trace_page(kvm, ev.kvm_mmu_prepare_zap_page, sp)
    unaccount_nx_huge_page(kvm, sp)
    base = sp.frame * SPTE_ENT_PER_PAGE
    shared, frozen = kvm.mmu_lock_shared, REMOVED_SPTE | kvm.fmt.nonpresent
    for index in range(SPTE_ENT_PER_PAGE):
        old = kvm.memory.words[base + index]
        if not shared and not is_shadow_present_pte(old):
            continue
        kvm.memory.store64((base + index) << 3, frozen)
        gfn = sp.gfn + (index << KVM_HPAGE_GFN_SHIFT[sp.level])
        handle_changed_spte(kvm, sp.smm, gfn, old, frozen, sp.level)
    _free_sp(kvm, sp)


def _assert_not_removed(kvm: Kvm, old: int, new: int) -> None:
    removed = is_removed_spte(kvm, old) or is_removed_spte(kvm, new)
    warn_on(kvm, "tdp_mmu.c:__tdp_mmu_set_spte:removed", removed)


def tdp_mmu_set_spte(kvm: Kvm, entry: TdpEntry, new: int, *, dirty_log: bool = True) -> None:
    """Change the entry at hand."""
    _assert_not_removed(kvm, entry.old_spte, new)
    kvm.memory.store64(entry.sptep, new)
    handle_changed_spte(kvm, entry.as_id, entry.gfn, entry.old_spte, new, entry.level, dirty_log=dirty_log)
    entry.old_spte = new


def tdp_mmu_set_spte_atomic(kvm: Kvm, entry: TdpEntry, new: int) -> None:
    """Change the entry as under the lock held for reading: its dirty log is the caller's."""
    warn_on(kvm, "tdp_mmu.c:tdp_mmu_set_spte_atomic:removed", is_removed_spte(kvm, entry.old_spte))
    shared, kvm.mmu_lock_shared = kvm.mmu_lock_shared, True
    kvm.memory.store64(entry.sptep, new)
    handle_changed_spte(kvm, entry.as_id, entry.gfn, entry.old_spte, new, entry.level, dirty_log=False)
    kvm.mmu_lock_shared = shared


def tdp_mmu_zap_spte_atomic(kvm: Kvm, entry: TdpEntry) -> None:
    """Remove what the entry maps, flush, and only then leave it empty."""
    empty = kvm.fmt.nonpresent
    if not kvm.behaviours.zap_flushes_before_children:
        tdp_mmu_set_spte_atomic(kvm, entry, REMOVED_SPTE | empty)
        kvm_flush_remote_tlbs_range(kvm, entry.gfn, KVM_PAGES_PER_HPAGE[entry.level])
        kvm.memory.store64(entry.sptep, empty)
        return
    kvm_flush_remote_tlbs_range(kvm, entry.gfn, KVM_PAGES_PER_HPAGE[entry.level])
    tdp_mmu_set_spte_atomic(kvm, entry, empty)


def tdp_mmu_link_sp(kvm: Kvm, entry: TdpEntry, sp: ShadowPage, *, shared: bool) -> None:
    """Let the entry point to a new table."""
    spte = make_nonleaf_spte(kvm.fmt, sp.frame, ad_disabled=not kvm.fmt.ad_enabled)
    if shared:
        tdp_mmu_set_spte_atomic(kvm, entry, spte)
    else:
        tdp_mmu_set_spte(kvm, entry, spte)


def _zap_root(kvm: Kvm, root: ShadowPage, zap_level: int, *, shared: bool) -> None:
    empty = kvm.fmt.nonpresent
    for entry in for_each_tdp_pte(kvm, root, 0, _max_gfn(kvm), zap_level):
        if is_shadow_present_pte(entry.old_spte) and entry.level <= zap_level:
            if shared:
                tdp_mmu_set_spte_atomic(kvm, entry, empty)
            else:
                tdp_mmu_set_spte(kvm, entry, empty)


def tdp_mmu_zap_root(kvm: Kvm, root: ShadowPage, *, shared: bool) -> None:
    """Empty a root: parts of it first, so that no step takes long, then from the top."""
    warn_on(kvm, "tdp_mmu.c:tdp_mmu_zap_root:count", root.root_count == 0)
    first = 1 if kvm.behaviours.zap_root_level_by_level else PG_LEVEL_1G
    for level in range(first, PG_LEVEL_1G + 1):
        _zap_root(kvm, root, level, shared=shared)
    _zap_root(kvm, root, root.level, shared=shared)


def kvm_tdp_mmu_zap_all(kvm: Kvm) -> None:
    """Empty every root, because the VM ends."""
    for root in list(roots(kvm)):
        tdp_mmu_zap_root(kvm, root, shared=False)


def kvm_mmu_uninit_tdp_mmu(kvm: Kvm) -> None:
    """Empty and free what the TDP MMU has, at the end of the VM."""
    kvm_tdp_mmu_invalidate_all_roots(kvm)
    kvm_tdp_mmu_zap_invalidated_roots(kvm)
    left = any(sp.tdp_mmu_page and sp.ptep for sp in kvm.pages.values())
    warn_on(kvm, "tdp_mmu.c:kvm_mmu_uninit_tdp_mmu:pages", left)
    warn_on(kvm, "tdp_mmu.c:kvm_mmu_uninit_tdp_mmu:roots", bool(kvm.tdp_mmu_roots))


def kvm_tdp_mmu_invalidate_all_roots(kvm: Kvm) -> None:
    """Make every root unusable; :func:`kvm_tdp_mmu_zap_invalidated_roots` empties them later."""
    for root in roots(kvm, only_valid=True):
        root.tdp_mmu_scheduled_root_to_zap = True
        root.invalid = True
        root.role = kvm.config.kernel.design.invalidated(root.role)


def kvm_tdp_mmu_zap_invalidated_roots(kvm: Kvm) -> None:
    """Empty the roots that were invalidated and give their standing hold back."""
    for root in list(roots(kvm)):
        if root.tdp_mmu_scheduled_root_to_zap:
            root.tdp_mmu_scheduled_root_to_zap = False
            kvm_bug_on(kvm, "tdp_mmu.c:kvm_tdp_mmu_zap_invalidated_roots:valid", not root.invalid)
            tdp_mmu_zap_root(kvm, root, shared=True)
            kvm_tdp_mmu_put_root(kvm, root)


def kvm_tdp_mmu_zap_leafs(kvm: Kvm, as_id: int | None, start: int, end: int) -> bool:
    """Drop the leaf entries of gfns from `start` to below `end`; return whether there was one."""
    flush = False
    only_valid = kvm.behaviours.zap_leafs_skips_invalid_roots
    for root in list(roots(kvm, as_id, only_valid=only_valid)):
        for entry in for_each_tdp_pte(kvm, root, start, min(end, _max_gfn(kvm))):
            if is_shadow_present_pte(entry.old_spte) and is_last_spte(entry.old_spte, entry.level):
                tdp_mmu_set_spte(kvm, entry, kvm.fmt.nonpresent)
                flush = True
    return flush


def kvm_tdp_mmu_zap_sp(kvm: Kvm, sp: ShadowPage) -> None:
    """Cut one table off."""
    if warn_on(kvm, "tdp_mmu.c:kvm_tdp_mmu_zap_sp:root", not sp.ptep):
        return
    linked = is_shadow_present_pte(spte_at(kvm, sp.ptep))
    if warn_on(kvm, "tdp_mmu.c:kvm_tdp_mmu_zap_sp:present", not linked):
        return
    entry = TdpEntry(sp.level + 1, sp.gfn, sp.ptep, spte_at(kvm, sp.ptep), sp.smm)
    tdp_mmu_set_spte(kvm, entry, kvm.fmt.nonpresent)


def _leaves(kvm: Kvm, root: ShadowPage, start: int, end: int, min_level: int = 1) -> Iterator[TdpEntry]:
    for entry in for_each_tdp_pte(kvm, root, start, end, min_level):
        if is_shadow_present_pte(entry.old_spte) and is_last_spte(entry.old_spte, entry.level):
            yield entry


def kvm_tdp_mmu_age_gfn_range(kvm: Kvm, as_id: int, start: int, end: int) -> bool:
    """Make the leaf entries of gfns from `start` to below `end` old ones; return whether one was young."""
    young = False
    for root in roots(kvm, as_id):
        for entry in _leaves(kvm, root, start, end):
            if is_accessed_spte(kvm.fmt, entry.old_spte):
                tdp_mmu_set_spte(kvm, entry, kvm_mark_spte_for_access_track(kvm, entry.old_spte))
                young = True
    return young


def kvm_tdp_mmu_wrprot_slot(kvm: Kvm, slot: KvmMemslot, min_level: int) -> None:
    """Write-protect the slot's pages from `min_level` up, to learn of the next write."""
    bug_on(kvm, "tdp_mmu.c:wrprot_gfn_range:level", min_level > KVM_MAX_HUGEPAGE_LEVEL)
    for root in roots(kvm, slot.as_id, only_valid=True):
        for entry in _leaves(kvm, root, slot.base_gfn, slot.base_gfn + slot.npages, min_level):
            if entry.old_spte & PT_WRITABLE_MASK:
                tdp_mmu_set_spte_atomic(kvm, entry, entry.old_spte & ~PT_WRITABLE_MASK)


def kvm_tdp_mmu_write_protect_gfn(kvm: Kvm, as_id: int, gfn: int, min_level: int) -> bool:
    """Write-protect one gfn because a nested guest's table lies there; return if a flush is needed."""
    bug_on(kvm, "tdp_mmu.c:write_protect_gfn:level", min_level > KVM_MAX_HUGEPAGE_LEVEL)
    changed = False
    for root in roots(kvm, as_id):
        for entry in _leaves(kvm, root, gfn, gfn + 1, min_level):
            new = entry.old_spte & ~(PT_WRITABLE_MASK | kvm.fmt.mmu_writable)
            if new == entry.old_spte:
                break
            tdp_mmu_set_spte(kvm, entry, new)
            changed = True
    return changed


def _cleaned(kvm: Kvm, spte: int, *, wrprot: bool) -> int:
    """Return the entry ready for another round of dirty logging: without W, or without D."""
    if wrprot or (not kvm.fmt.ad_enabled if kvm.bugs.B33 else spte & SPTE_TDP_AD_MASK):
        return spte & ~PT_WRITABLE_MASK
    return spte & ~kvm.fmt.dirty


def kvm_tdp_mmu_clear_dirty_slot(kvm: Kvm, slot: KvmMemslot) -> None:
    """Clear D in the slot's entries, or W where there is no D."""
    for root in roots(kvm, slot.as_id, only_valid=True):
        for entry in _leaves(kvm, root, slot.base_gfn, slot.base_gfn + slot.npages):
            new = _cleaned(kvm, entry.old_spte, wrprot=False)
            if new != entry.old_spte:
                tdp_mmu_set_spte_atomic(kvm, entry, new)


def kvm_tdp_mmu_clear_dirty_pt_masked(kvm: Kvm, as_id: int, gfns: list[int], *, wrprot: bool) -> None:
    """Clear D or W in the 4 KiB entries of some gfns, ascending, all within 64 pages."""
    wanted = set(gfns)
    for root in roots(kvm, as_id):
        for entry in _leaves(kvm, root, gfns[0], gfns[-1] + 1):
            if entry.level == 1 and entry.gfn in wanted:
                new = _cleaned(kvm, entry.old_spte, wrprot=wrprot)
                if new != entry.old_spte:
                    tdp_mmu_set_spte(kvm, entry, new, dirty_log=False)


def tdp_mmu_split_huge_page(kvm: Kvm, entry: TdpEntry, *, shared: bool) -> ShadowPage:
    """Put a table in the place of a huge page, which maps the same; return it."""
    huge = entry.old_spte
    sp = tdp_mmu_alloc_child(kvm, entry)
    executable = bool(sp.access & ACC_EXEC_MASK) and is_nx_huge_page_enabled(kvm)
    for index in range(SPTE_ENT_PER_PAGE):
        spte = 0
        if can_split_huge_spte(kvm, huge):
            spte = make_huge_page_split_spte(kvm.fmt, huge, sp.level, index, executable=executable)
        kvm.memory.store64((sp.frame * SPTE_ENT_PER_PAGE + index) << 3, spte)
    tdp_mmu_link_sp(kvm, entry, sp, shared=shared)
    kvm.stat[PAGES_STAT[sp.level]] += SPTE_ENT_PER_PAGE
    trace(kvm, ev.kvm_mmu_split_huge_page, entry.gfn, huge, entry.level, 0)
    return sp


def take_split_tables(kvm: Kvm, wanted: int) -> int:
    """Take pages for tables of eager splitting from the host; return how many it had."""
    if kvm.split_tables_left < 0:
        return wanted
    got = min(wanted, kvm.split_tables_left)
    kvm.split_tables_left -= got
    return got


def kvm_tdp_mmu_try_split_huge_pages(
    kvm: Kvm, as_id: int, start: int, end: int, target_level: int, *, shared: bool
) -> None:
    """Split the huge pages of a range before a fault has to (eager page splitting).

    Where the host has no page for a table the splitting ends, with the first huge page that
    stays one; it is not told to the VMM.
    """
    for root in roots(kvm, as_id, only_valid=True):
        if not _split_huge_pages_root(kvm, root, start, end, target_level, shared=shared):
            return


def _split_huge_pages_root(
    kvm: Kvm, root: ShadowPage, start: int, end: int, target_level: int, *, shared: bool
) -> bool:
    for entry in for_each_tdp_pte(kvm, root, start, end, target_level + 1):
        if not is_shadow_present_pte(entry.old_spte) or not is_large_pte(entry.old_spte):
            continue
        if not take_split_tables(kvm, 1):
            trace(kvm, ev.kvm_mmu_split_huge_page, entry.gfn, entry.old_spte, entry.level, -ENOMEM)
            return False
        tdp_mmu_split_huge_page(kvm, entry, shared=shared)
    return True


def kvm_tdp_mmu_zap_collapsible_sptes(
    kvm: Kvm, slot: KvmMemslot, mapping_level: Callable[[int], int]
) -> None:
    """Remove the tables of the slot whose place a huge page may take.

    `mapping_level` returns the largest page size allowed for a gfn.
    """
    start, end = slot.base_gfn, slot.base_gfn + slot.npages
    for root in roots(kvm, slot.as_id, only_valid=True):
        for entry in for_each_tdp_pte(kvm, root, start, end, 2):
            spte = entry.old_spte
            if entry.level > PG_LEVEL_1G or not is_shadow_present_pte(spte):
                continue
            inside = start <= entry.gfn < end and not is_last_spte(spte, entry.level)
            if inside and not kvm.bugs.B34c and mapping_level(entry.gfn) >= entry.level:
                tdp_mmu_zap_spte_atomic(kvm, entry)
