"""Memslots changing under a running VM, and dirty logging.

Source: Linux 6.1 ``virt/kvm/kvm_main.c`` (``__kvm_set_memory_region``,
``kvm_set_memslot``, ``kvm_get_dirty_log_protect``, ``kvm_clear_dirty_log_protect``,
``kvm_vm_ioctl_reset_dirty_pages``), ``dirty_ring.c`` (``kvm_dirty_ring_reset``),
``arch/x86/kvm/x86.c`` (``kvm_arch_prepare_memory_region``,
``kvm_arch_commit_memory_region``), ``mmu.h`` (``kvm_mmu_max_gfn``), ``mmu.c``
(``kvm_mmu_zap_collapsible_sptes``, ``kvm_arch_mmu_enable_log_dirty_pt_masked``).
"""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENOENT, ENXIO

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.dirty_ring import BITS_PER_LONG, DirtyRing, coalesce
from mmulab.kvm.eager_split import kvm_mmu_slot_try_split_huge_pages, kvm_mmu_try_split_huge_pages
from mmulab.kvm.flush import kvm_flush_remote_tlbs
from mmulab.kvm.hugepage import kvm_mmu_max_mapping_level
from mmulab.kvm.memslot import KVM_MAX_HUGEPAGE_LEVEL, KvmMemslot, PteList
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT
from mmulab.kvm.page_track import init_lpage_info
from mmulab.kvm.rmap import (
    for_each_rmap_spte,
    gfn_to_rmap,
    kvm_mmu_slot_gfn_write_protect,
    kvm_pte_list_remove,
    mmu_spte_clear_track_bits,
    mmu_spte_update,
    rmap_write_protect,
    slot_handle_level_range,
)
from mmulab.kvm.spte import MMIO_SPTE_GEN_MASK, SPTE_TDP_AD_MASK
from mmulab.kvm.state import Kvm, spte_at, sptep_to_sp
from mmulab.kvm.tdp_mmu import (
    kvm_tdp_mmu_clear_dirty_pt_masked,
    kvm_tdp_mmu_clear_dirty_slot,
    kvm_tdp_mmu_wrprot_slot,
    kvm_tdp_mmu_zap_collapsible_sptes,
)
from mmulab.kvm.trace import trace
from mmulab.kvm.zap import KVM_MIN_ALLOC_MMU_PAGES, kvm_mmu_change_mmu_pages, kvm_mmu_zap_all_fast
from mmulab.memory.memslots import (
    KVM_ADDRESS_SPACE_NUM,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
)
from mmulab.x86.mode import PT_WRITABLE_MASK

KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO = 50
KVM_DIRTY_LOG_INITIALLY_SET = 1 << 1
KVM_USER_MEM_SLOTS = (1 << 15) - 1 - 3
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
_FLAGS = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY


def check_memory_region(id: int, gpa: int, size: int, flags: int, offset: int) -> int:
    """Check what the VMM asks for by itself, without regard to other slots; 0 or a negative errno.

    Parameters
    ----------
    id : int
        The address space from bit 16 on, and the number of the slot.
    gpa, size, flags : int
        A size of 0 asks for nothing but to delete the slot.
    offset : int
        Where the slot lies in the VMM's memory.
    """
    if flags & ~_FLAGS or (gpa | size | offset) & 0xFFF:
        return -EINVAL
    if id >> 16 >= KVM_ADDRESS_SPACE_NUM or id & 0xFFFF >= KVM_USER_MEM_SLOTS:
        return -EINVAL
    if (gpa + size) >> 64 or size >> 12 > KVM_MEM_MAX_NR_PAGES:
        return -EINVAL
    return 0


def kvm_mmu_max_gfn(*, tdp: bool, host_phys_bits: int) -> int:
    """Return the highest gfn that a slot may hold: shadow paging takes what x86 tables can say."""
    return (1 << (host_phys_bits if tdp else 52) - 12) - 1


def kvm_set_memory_region(kvm: Kvm, new: KvmMemslot) -> int:
    """Create, move or re-flag the slot that `new` describes; 0 or a negative errno."""
    if new.flags & ~_FLAGS or not new.npages:
        return -EINVAL
    slots = kvm.slots[new.as_id]
    old = slots.by_id(new.id)
    if old is not None:
        changed = new.flags ^ old.flags
        same_backing = new.base_frame == old.base_frame and new.npages == old.npages
        if not same_backing or changed & KVM_MEM_READONLY:
            return -EINVAL
        if new.base_gfn == old.base_gfn:
            if changed:
                _change_flags(kvm, old, new.flags)
            return 0
    if slots.overlaps(new.base_gfn, new.npages, new.id):
        return -EEXIST
    if old is not None:
        _invalidate(kvm, old)
    if _last_gfn(new) > kvm_mmu_max_gfn(tdp=kvm.config.tdp, host_phys_bits=kvm.config.host_phys_bits):
        if old is not None:  # it is back, but what it had mapped is not
            old.flags &= ~KVM_MEMSLOT_INVALID
            _next_generation(kvm, old.as_id)
        return -EINVAL
    init_lpage_info(new)
    _prepare_dirty_bitmap(kvm, new)
    slots.replace(old, new)
    _next_generation(kvm, new.as_id)
    if old is None:
        kvm.nr_memslot_pages += new.npages
        _commit_page_limit(kvm)
    return 0


def kvm_delete_memslot(kvm: Kvm, id: int, as_id: int = 0) -> int:
    """Delete a slot; all shadow pages go with it. Returns 0 or a negative errno."""
    slots = kvm.slots[as_id]
    old = slots.by_id(id)
    if old is None:
        return -EINVAL
    _invalidate(kvm, old)
    slots.replace(old, None)
    _next_generation(kvm, as_id)
    kvm.nr_memslot_pages -= old.npages
    _commit_page_limit(kvm)
    return 0


def _next_generation(kvm: Kvm, as_id: int) -> None:
    """Count a change of memslots; MMIO sptes hold few bits of the count, so a wrap zaps everything.

    Source: ``kvm_swap_active_memslots``, ``mmu.c:kvm_mmu_invalidate_mmio_sptes``.
    """
    slots = kvm.slots[as_id]
    slots.generation += KVM_ADDRESS_SPACE_NUM
    if not slots.generation & MMIO_SPTE_GEN_MASK & ~(KVM_ADDRESS_SPACE_NUM - 1):
        kvm_mmu_zap_all_fast(kvm)


def _invalidate(kvm: Kvm, slot: KvmMemslot) -> None:
    """Make the slot unusable, then zap everything, so that nothing can map it again."""
    slot.flags |= KVM_MEMSLOT_INVALID
    _next_generation(kvm, slot.as_id)
    kvm_mmu_zap_all_fast(kvm)


def _commit_page_limit(kvm: Kvm) -> None:
    if not kvm.n_requested_mmu_pages:
        limit = kvm.nr_memslot_pages // KVM_MEMSLOT_PAGES_TO_MMU_PAGES_RATIO
        kvm_mmu_change_mmu_pages(kvm, max(limit, KVM_MIN_ALLOC_MMU_PAGES))


def _prepare_dirty_bitmap(kvm: Kvm, slot: KvmMemslot) -> None:
    """Give the slot a bitmap if it is logged and vCPUs have no rings, all set if the VMM asked for that."""
    if not slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
        slot.dirty_bitmap = None
    elif slot.dirty_bitmap is None and not kvm.dirty_ring_size:
        slot.dirty_bitmap = bytearray(bytes([_init_set(kvm)]) * slot.npages)


def _init_set(kvm: Kvm) -> bool:
    return bool(kvm.manual_dirty_log_protect & KVM_DIRTY_LOG_INITIALLY_SET)


def _change_flags(kvm: Kvm, slot: KvmMemslot, flags: int) -> None:
    """Turn dirty logging on or off."""
    changed = slot.flags ^ flags
    slot.flags = flags
    _prepare_dirty_bitmap(kvm, slot)
    _next_generation(kvm, slot.as_id)
    if flags & KVM_MEM_READONLY:
        return
    if warn_on(kvm, "x86.c:kvm_mmu_slot_apply_flags:unchanged", not changed & KVM_MEM_LOG_DIRTY_PAGES):
        return
    if not flags & KVM_MEM_LOG_DIRTY_PAGES:
        kvm_mmu_zap_collapsible_sptes(kvm, slot)
    elif not _init_set(kvm):
        if kvm.config.eager_page_split:
            kvm_mmu_slot_try_split_huge_pages(kvm, slot)
        if kvm.config.pml:
            kvm_mmu_slot_leaf_clear_dirty(kvm, slot)
        kvm_mmu_slot_remove_write_access(kvm, slot, 2 if kvm.config.pml else 1)
        kvm_flush_remote_tlbs(kvm)


def _last_gfn(slot: KvmMemslot) -> int:
    return slot.base_gfn + slot.npages - 1


def kvm_mmu_slot_remove_write_access(kvm: Kvm, slot: KvmMemslot, start_level: int) -> None:
    """Write-protect every spte of the slot, to learn of the next write to each page."""

    def protect(gfn: int, level: int) -> bool:
        return rmap_write_protect(kvm, gfn_to_rmap(slot, gfn, level), pt_protect=False)

    levels = range(start_level, KVM_MAX_HUGEPAGE_LEVEL + 1)
    slot_handle_level_range(slot, levels, slot.base_gfn, _last_gfn(slot), protect)
    if kvm.config.uses_tdp_mmu:
        kvm_tdp_mmu_wrprot_slot(kvm, slot, start_level)


def kvm_mmu_slot_leaf_clear_dirty(kvm: Kvm, slot: KvmMemslot) -> None:
    """Clear D in the slot's 4 KiB sptes: page-modification logging sees it set again."""

    def clear(gfn: int, level: int) -> bool:
        return _rmap_clear_dirty(kvm, gfn_to_rmap(slot, gfn, level))

    slot_handle_level_range(slot, range(1, 2), slot.base_gfn, _last_gfn(slot), clear)
    if kvm.config.uses_tdp_mmu:
        kvm_tdp_mmu_clear_dirty_slot(kvm, slot)


def _rmap_clear_dirty(kvm: Kvm, head: PteList | None) -> bool:
    """Clear D, or W in an spte whose D does not count; return whether a flush is needed."""
    flush = False
    for sptep in for_each_rmap_spte(kvm, head):
        spte = spte_at(kvm, sptep)
        if spte & SPTE_TDP_AD_MASK:
            flush |= bool(spte & PT_WRITABLE_MASK)
            kvm.memory.store64(sptep, spte & ~PT_WRITABLE_MASK)
        else:
            flush |= mmu_spte_update(kvm, sptep, spte & ~kvm.fmt.dirty)
    return flush


def kvm_mmu_zap_collapsible_sptes(kvm: Kvm, slot: KvmMemslot) -> None:
    """Zap small sptes where a huge one is possible again."""

    def zap(gfn: int, level: int) -> bool:
        zapped = False
        head = gfn_to_rmap(slot, gfn, level)
        while head and (sptep := _first_collapsible(kvm, slot, head)) is not None:
            mmu_spte_clear_track_bits(kvm, sptep)
            kvm_pte_list_remove(kvm, head, sptep)
            zapped = True
        if head is not None and not head:
            del slot.rmap[level][gfn >> KVM_HPAGE_GFN_SHIFT[level]]
        return zapped

    levels = range(1, KVM_MAX_HUGEPAGE_LEVEL)
    if slot_handle_level_range(slot, levels, slot.base_gfn, _last_gfn(slot), zap):
        kvm_flush_remote_tlbs(kvm)
    if kvm.config.uses_tdp_mmu:
        kvm_tdp_mmu_zap_collapsible_sptes(
            kvm, slot, lambda gfn: kvm_mmu_max_mapping_level(kvm, slot, gfn, KVM_MAX_HUGEPAGE_LEVEL)
        )


def _first_collapsible(kvm: Kvm, slot: KvmMemslot, head: PteList) -> int | None:
    for sptep in for_each_rmap_spte(kvm, head):
        sp = sptep_to_sp(kvm, sptep)
        if sp.direct and sp.gfn in slot:
            level = kvm_mmu_max_mapping_level(kvm, slot, sp.gfn, KVM_MAX_HUGEPAGE_LEVEL)
            if sp.level < level:
                return sptep
    return None


def kvm_get_dirty_log(kvm: Kvm, id: int, as_id: int = 0) -> tuple[int, list[int]]:
    """Return (0 or a negative errno, the dirty pages by their index in the slot).

    Unless protection is manual the pages are write-protected again and count as clean.
    """
    if kvm.dirty_ring_size:
        return -ENXIO, []
    if id >= KVM_USER_MEM_SLOTS:
        return -EINVAL, []
    slot = kvm.slots[as_id].by_id(id)
    if slot is None or slot.dirty_bitmap is None:
        return -ENOENT, []
    dirty = [i for i, flag in enumerate(slot.dirty_bitmap) if flag]
    if not kvm.manual_dirty_log_protect and dirty:
        for first in range(0, slot.npages, BITS_PER_LONG):
            pages = [i for i in dirty if first <= i < first + BITS_PER_LONG]
            if pages:
                slot.dirty_bitmap[first : first + BITS_PER_LONG] = bytes(
                    min(BITS_PER_LONG, slot.npages - first)
                )
                _enable_log_dirty_pt_masked(kvm, slot, pages)
        kvm_flush_remote_tlbs(kvm)
    return 0, dirty


def kvm_clear_dirty_log(kvm: Kvm, id: int, first: int, count: int, as_id: int = 0) -> int:
    """Write-protect the dirty pages of a range and count them as clean; 0 or a negative errno."""
    if kvm.dirty_ring_size:
        return -ENXIO
    if id >= KVM_USER_MEM_SLOTS or first & 63:
        return -EINVAL
    slot = kvm.slots[as_id].by_id(id)
    if slot is None or slot.dirty_bitmap is None:
        return -ENOENT
    short = count < slot.npages - first
    if first > slot.npages or count > slot.npages - first or (short and count & 63):
        return -EINVAL
    flush = False
    for start in range(first, first + count, BITS_PER_LONG):
        end = min(start + BITS_PER_LONG, slot.npages)
        pages = [i for i in range(start, end) if slot.dirty_bitmap[i]]
        if pages:
            flush = True
            slot.dirty_bitmap[start:end] = bytes(end - start)
            _enable_log_dirty_pt_masked(kvm, slot, pages)
    if flush:
        kvm_flush_remote_tlbs(kvm)
    return 0


def kvm_vm_ioctl_reset_dirty_pages(kvm: Kvm) -> int:
    """Give back what the VMM has taken from the dirty rings; the number of entries, or a negative errno."""
    if not kvm.dirty_ring_size:
        return -EINVAL
    cleared = 0
    for vcpu in kvm.vcpus:
        assert vcpu.dirty_ring is not None
        cleared += _dirty_ring_reset(kvm, vcpu.dirty_ring)
    if cleared:
        kvm_flush_remote_tlbs(kvm)
    return cleared


def _dirty_ring_reset(kvm: Kvm, ring: DirtyRing) -> int:
    freed = ring.give_back()
    for id, offset, mask in coalesce(freed):
        as_id = id >> 16
        slot = kvm.slots[as_id].by_id(id & 0xFFFF)
        # Since the push the slot may have gone, or become a smaller one.
        if slot is not None and offset + mask.bit_length() <= slot.npages:
            pages = [offset + bit for bit in range(mask.bit_length()) if mask >> bit & 1]
            _enable_log_dirty_pt_masked(kvm, slot, pages)
    trace(kvm, ev.kvm_dirty_ring_reset, ring.index, ring.dirty_index, ring.reset_index)
    return len(freed)


def _enable_log_dirty_pt_masked(kvm: Kvm, slot: KvmMemslot, pages: list[int]) -> None:
    """Write-protect pages that lie within 64.

    Where all pages began dirty, huge pages were not protected when logging began,
    so those at both ends of the run are protected now and split at the next write.
    """
    if _init_set(kvm):
        start, end = slot.base_gfn + pages[0], slot.base_gfn + pages[-1]
        if kvm.config.eager_page_split:
            kvm_mmu_try_split_huge_pages(kvm, slot, start, end)
        kvm_mmu_slot_gfn_write_protect(kvm, slot, start, 2)
        # The kernel compares the addresses rounded up, not down.
        if -(-start // 512) != -(-end // 512):
            kvm_mmu_slot_gfn_write_protect(kvm, slot, end, 2)
    gfns = [slot.base_gfn + page for page in pages]
    if kvm.config.uses_tdp_mmu:
        kvm_tdp_mmu_clear_dirty_pt_masked(kvm, slot.as_id, gfns, wrprot=not kvm.config.pml)
    for gfn in gfns:
        head = gfn_to_rmap(slot, gfn, 1)
        if kvm.config.pml:
            _rmap_clear_dirty(kvm, head)
        else:
            rmap_write_protect(kvm, head, pt_protect=False)
