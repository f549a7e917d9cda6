"""Reverse maps: from a gfn to the sptes that map it, and changes of leaf sptes.

The order of a list is the kernel's, blocks of 14 with holes filled from the end
of their own block, because zapping and write-protection report in that order.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``pte_list_*``, ``rmap_*``,
``mmu_spte_*``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mmulab import events as ev
from mmulab.kvm.assertions import bug_on, warn_on
from mmulab.kvm.flush import kvm_flush_remote_tlbs_gfn
from mmulab.kvm.memslot import KVM_MAX_HUGEPAGE_LEVEL, KvmMemslot, PteList
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT
from mmulab.kvm.mmu_page import ShadowPage, kvm_mmu_page_get_gfn
from mmulab.kvm.spte import (
    SPTE_MMU_PRESENT_MASK,
    check_spte_writable_invariants,
    is_accessed_spte,
    is_dirty_spte,
    is_shadow_present_pte,
    is_writable_pte,
    kvm_mark_spte_for_access_track,
    spte_to_pfn,
)
from mmulab.kvm.stat import PAGES_STAT
from mmulab.kvm.state import Kvm, spte_at, spte_index, sptep_to_sp
from mmulab.kvm.tdp_mmu import kvm_tdp_mmu_write_protect_gfn
from mmulab.kvm.trace import trace
from mmulab.x86.mode import PT_WRITABLE_MASK

PTE_LIST_EXT = 14
RMAP_RECYCLE_THRESHOLD = 1000


def pte_list_add(head: PteList, sptep: int, *, keeps_tail_full: bool = False) -> int:
    """Add `sptep` to the first block with room; return how many there were.

    `keeps_tail_full`: only the first block has room, and a new one comes before it (6.4).
    """
    count = 0
    if keeps_tail_full:
        count = sum(map(len, head))
        if head and len(head[0]) < PTE_LIST_EXT:
            head[0].append(sptep)
        else:
            head.insert(0, [sptep])
        return count
    for block in head:
        if len(block) < PTE_LIST_EXT:
            count += len(block)
            block.append(sptep)
            return count
        count += PTE_LIST_EXT
    head.append([sptep])
    return count


def pte_list_remove(head: PteList, sptep: int, *, keeps_tail_full: bool = False) -> None:
    """Take `sptep` out; the last of its block takes its place.

    `keeps_tail_full`: the last of the first block does (6.4).

    Raises
    ------
    KeyError
        It is not in the list (the kernel's ``BUG``).
    """
    for number, block in enumerate(head):
        if sptep in block:
            giver = 0 if keeps_tail_full else number
            block[block.index(sptep)] = head[giver][-1]
            head[giver].pop()
            if not head[giver]:
                del head[giver]
            return
    raise KeyError(f"spte at {sptep:#x} is not in its reverse map")


def kvm_pte_list_remove(kvm: Kvm, head: PteList, sptep: int) -> None:
    """Take `sptep` out of one of the VM's lists, where it must be."""
    listed = True
    try:
        pte_list_remove(head, sptep, keeps_tail_full=kvm.behaviours.pte_list_keeps_tail_full)
    except KeyError:
        listed = False
    if not listed or kvm.assertion_counts is not None:
        _assert_listed(kvm, head, listed)


def _assert_listed(kvm: Kvm, head: PteList, listed: bool) -> None:
    left = sum(map(len, head)) + listed
    if not left:
        bug_on(kvm, "mmu.c:pte_list_remove:empty", not listed)
    elif left == 1:
        bug_on(kvm, "mmu.c:pte_list_remove:one", not listed)
    else:
        bug_on(kvm, "mmu.c:pte_list_remove:many", not listed)


def pte_list_iter(head: PteList) -> Iterator[int]:
    """Yield the sptes in order; the list must not change meanwhile."""
    for block in head:
        yield from block


def for_each_rmap_spte(kvm: Kvm, head: PteList | None) -> Iterator[int]:
    """Yield the sptes of a reverse map, which must all be present; the map must not change meanwhile."""
    counts = kvm.assertion_counts is not None
    first = True
    for sptep in pte_list_iter(head or []):
        absent = not is_shadow_present_pte(spte_at(kvm, sptep))
        if absent or counts:
            if first:
                bug_on(kvm, "mmu.c:rmap_get_first:present", absent)
            else:
                bug_on(kvm, "mmu.c:rmap_get_next:present", absent)
        first = False
        yield sptep


def gfn_to_rmap(slot: KvmMemslot, gfn: int, level: int) -> PteList | None:
    """Return the reverse map of `gfn` at `level`, None if nothing maps it."""
    return slot.rmap[level].get(gfn >> KVM_HPAGE_GFN_SHIFT[level])


def kvm_mmu_page_get_access(sp: ShadowPage, index: int) -> int:
    """Return the guest rights that the entry at `index` of `sp` shadows."""
    if sp.has_gptes:
        return sp.shadowed_translation[index] & 7
    return sp.access


def kvm_mmu_page_set_translation(kvm: Kvm, sp: ShadowPage, index: int, gfn: int, access: int) -> None:
    """Note what the entry at `index` shadows; without guest entries, the page itself says it."""
    if sp.has_gptes:
        sp.shadowed_translation[index] = gfn << 12 | access
        return
    other_access = access != kvm_mmu_page_get_access(sp, index)
    other_gfn = gfn != kvm_mmu_page_get_gfn(sp, index)
    if other_access or other_gfn or kvm.assertion_counts is not None:
        warn_on(kvm, "mmu.c:kvm_mmu_page_set_translation:access", other_access)
        warn_on(kvm, "mmu.c:kvm_mmu_page_set_translation:gfn", other_gfn)


def kvm_mmu_page_set_access(kvm: Kvm, sp: ShadowPage, index: int, access: int) -> None:
    """Note the rights of the entry at `index`, whose gfn stays."""
    gfn = sp.shadowed_translation.get(index, 0) >> 12 if sp.has_gptes else kvm_mmu_page_get_gfn(sp, index)
    kvm_mmu_page_set_translation(kvm, sp, index, gfn, access)


def rmap_add(kvm: Kvm, slot: KvmMemslot, sptep: int, gfn: int, access: int) -> None:
    """Note that the leaf spte at `sptep` maps `gfn` (``__rmap_add``)."""
    sp, stat = sptep_to_sp(kvm, sptep), kvm.stat
    level = sp.level
    kvm_mmu_page_set_translation(kvm, sp, spte_index(sptep), gfn, access)
    stat[PAGES_STAT[level]] += 1
    head = slot.rmap[level].setdefault(gfn >> KVM_HPAGE_GFN_SHIFT[level], [])
    count = pte_list_add(head, sptep, keeps_tail_full=kvm.behaviours.pte_list_keeps_tail_full)
    stat["max_mmu_rmap_size"] = max(stat["max_mmu_rmap_size"], count)
    if count > RMAP_RECYCLE_THRESHOLD:
        kvm_zap_all_rmap_sptes(kvm, slot, gfn, level)
        kvm_flush_remote_tlbs_gfn(kvm, gfn, level)


def rmap_remove(kvm: Kvm, sptep: int) -> None:
    """Forget the leaf spte at `sptep`, under the gfn computed from its page."""
    sp = sptep_to_sp(kvm, sptep)
    gfn, level = kvm_mmu_page_get_gfn(sp, spte_index(sptep)), sp.level
    slot = kvm.slots[sp.smm].lookup(gfn)
    if slot is None:
        raise KeyError(f"spte at {sptep:#x}: gfn {gfn:#x} is in no slot")
    heads, key = slot.rmap[level], gfn >> KVM_HPAGE_GFN_SHIFT[level]
    head = heads.get(key, [])
    kvm_pte_list_remove(kvm, head, sptep)
    if not head:
        del heads[key]


def mmu_spte_set(kvm: Kvm, sptep: int, new_spte: int) -> None:
    """Write an entry where no present one is."""
    memory = kvm.memory
    present = spte_at(kvm, sptep) & SPTE_MMU_PRESENT_MASK
    if present or kvm.assertion_counts is not None:
        warn_on(kvm, "mmu.c:mmu_spte_set:present", bool(present))
    memory.store64(sptep, new_spte)


def mmu_spte_update(kvm: Kvm, sptep: int, new_spte: int) -> bool:
    """Change the rights of a leaf entry; return whether a flush is needed.

    A flush is needed when MMU-writable is lost, or A, or D.
    """
    memory, fmt = kvm.memory, kvm.fmt
    old = spte_at(kvm, sptep)
    absent = not new_spte & SPTE_MMU_PRESENT_MASK
    if absent or kvm.assertion_counts is not None:
        warn_on(kvm, "mmu.c:mmu_spte_update_no_track:present", absent)
    check_spte_writable_invariants(kvm, new_spte)
    if not old & SPTE_MMU_PRESENT_MASK:
        mmu_spte_set(kvm, sptep, new_spte)
        return False
    memory.store64(sptep, new_spte)
    moved = spte_to_pfn(old) != spte_to_pfn(new_spte)
    if moved or kvm.assertion_counts is not None:
        warn_on(kvm, "mmu.c:mmu_spte_update_no_track:pfn", moved)
    return bool(
        (old & fmt.mmu_writable and not is_writable_pte(new_spte))
        or (is_accessed_spte(fmt, old) and not is_accessed_spte(fmt, new_spte))
        or (is_dirty_spte(fmt, old) and not is_dirty_spte(fmt, new_spte))
    )


def mmu_spte_age(kvm: Kvm, sptep: int) -> bool:
    """Make a leaf entry an old one; return whether it was young.

    Where A counts it is cleared; without, the entry waits for its next access.
    """
    spte = spte_at(kvm, sptep)
    if not is_accessed_spte(kvm.fmt, spte):
        return False
    kvm.memory.store64(sptep, kvm_mark_spte_for_access_track(kvm, spte))
    return True


def mmu_spte_clear_track_bits(kvm: Kvm, sptep: int) -> int:
    """Clear a leaf entry and return what it was."""
    memory = kvm.memory
    old = spte_at(kvm, sptep)
    memory.store64(sptep, kvm.fmt.nonpresent)
    if old & SPTE_MMU_PRESENT_MASK:
        kvm.stat[PAGES_STAT[kvm.pages[sptep >> 12].level]] -= 1
    return old


def drop_spte(kvm: Kvm, sptep: int) -> None:
    """Clear a leaf entry and its place in the reverse map."""
    old = spte_at(kvm, sptep)
    if old != kvm.fmt.nonpresent:
        trace(kvm, ev.drop_spte, sptep, old)
    if mmu_spte_clear_track_bits(kvm, sptep) & SPTE_MMU_PRESENT_MASK:
        rmap_remove(kvm, sptep)


def kvm_zap_all_rmap_sptes(kvm: Kvm, slot: KvmMemslot, gfn: int, level: int) -> bool:
    """Clear every spte that maps `gfn` at `level`; return whether there was one."""
    head = slot.rmap[level].pop(gfn >> KVM_HPAGE_GFN_SHIFT[level], None)
    if head is None:
        return False
    for sptep in pte_list_iter(head):
        mmu_spte_clear_track_bits(kvm, sptep)
    return True


def spte_write_protect(kvm: Kvm, sptep: int, *, pt_protect: bool) -> bool:
    """Make one spte read-only; return whether a flush is needed.

    With `pt_protect` the page is a guest table, and MMU-writable goes too.
    """
    spte = spte_at(kvm, sptep)
    if not is_writable_pte(spte) and not (pt_protect and spte & kvm.fmt.mmu_writable):
        return False
    if pt_protect:
        spte &= ~kvm.fmt.mmu_writable
    return mmu_spte_update(kvm, sptep, spte & ~PT_WRITABLE_MASK)


def rmap_write_protect(kvm: Kvm, head: PteList | None, *, pt_protect: bool) -> bool:
    """Make every spte of a reverse map read-only; return whether a flush is needed."""
    flush = False
    for sptep in for_each_rmap_spte(kvm, head):
        flush |= spte_write_protect(kvm, sptep, pt_protect=pt_protect)
    return flush


def kvm_mmu_slot_gfn_write_protect(kvm: Kvm, slot: KvmMemslot, gfn: int, min_level: int) -> bool:
    """Write-protect `gfn` at every page size from `min_level`, because it is a guest table."""
    flush = False
    for level in range(min_level, KVM_MAX_HUGEPAGE_LEVEL + 1):
        flush |= rmap_write_protect(kvm, gfn_to_rmap(slot, gfn, level), pt_protect=True)
    if kvm.config.uses_tdp_mmu:
        flush |= kvm_tdp_mmu_write_protect_gfn(kvm, slot.as_id, gfn, min_level)
    return flush


def slot_handle_level_range(
    slot: KvmMemslot,
    levels: range,
    start_gfn: int,
    end_gfn: int,
    handler: Callable[[int, int], bool],
) -> bool:
    """Call ``handler(gfn, level)`` on each reverse map between the gfns, both included.

    Levels first, then gfns, ascending, as ``for_each_slot_rmap_range``.
    """
    result = False
    for level in levels:
        shift = KVM_HPAGE_GFN_SHIFT[level]
        first, last = start_gfn >> shift, end_gfn >> shift
        for key in sorted(k for k in slot.rmap[level] if first <= k <= last):
            result |= handler(key << shift, level)
    return result
