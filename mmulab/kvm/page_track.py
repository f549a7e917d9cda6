"""Write tracking of guest tables, and what forbids huge pages.

Source: Linux 6.1 ``arch/x86/kvm/mmu/page_track.c``; ``mmu.c`` (``account_shadowed``,
``update_gfn_disallow_lpage_count``).
"""

from __future__ import annotations

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.flush import kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_gfn
from mmulab.kvm.memslot import KVM_MAX_HUGEPAGE_LEVEL, KvmMemslot
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.rmap import kvm_mmu_slot_gfn_write_protect
from mmulab.kvm.state import Kvm

USHRT_MAX = 0xFFFF


def update_gfn_disallow_lpage_count(kvm: Kvm, slot: KvmMemslot, gfn: int, count: int) -> None:
    """Add a reason (or take one) against a huge page over `gfn`."""
    counts = kvm.assertion_counts is not None
    for level in range(2, KVM_MAX_HUGEPAGE_LEVEL + 1):
        info = slot.disallow_lpage[level]
        key = gfn >> KVM_HPAGE_GFN_SHIFT[level]
        now = info.get(key, 0) + count
        if now < 0 or counts:
            warn_on(kvm, "mmu.c:update_gfn_disallow_lpage_count:negative", now < 0)
        if now:
            info[key] = now
        else:
            info.pop(key, None)


def init_lpage_info(slot: KvmMemslot) -> None:
    """Forbid huge pages that reach over the slot's edges or are not aligned with the host's.

    ``kvm_alloc_memslot_metadata``, Linux 6.1 ``arch/x86/kvm/x86.c``.
    """
    for level in range(2, KVM_MAX_HUGEPAGE_LEVEL + 1):
        shift = KVM_HPAGE_GFN_SHIFT[level]
        mask = (1 << shift) - 1
        first, last = slot.base_gfn >> shift, (slot.base_gfn + slot.npages - 1) >> shift
        info: dict[int, int] = {}
        if slot.base_gfn & mask:
            info[first] = 1
        if (slot.base_gfn + slot.npages) & mask:
            info[last] = 1
        if (slot.base_gfn ^ slot.base_frame) & mask:
            info = dict.fromkeys(range(first, last + 1), 1)
        slot.disallow_lpage[level] = info


def kvm_slot_page_track_is_active(kvm: Kvm, slot: KvmMemslot | None, gfn: int) -> bool:
    """Whether writes to `gfn` are tracked, in either address space."""
    if slot is None:
        return False
    if slot.gfn_track.get(gfn, 0):
        return True
    other = None if kvm.bugs.B7 else kvm.slots[slot.as_id ^ 1].lookup(gfn)
    return other is not None and other.gfn_track.get(gfn, 0) > 0


def update_gfn_track(kvm: Kvm, slot: KvmMemslot, gfn: int, count: int) -> None:
    """Add a reason (or take one) to track writes to `gfn`; the kernel counts in 16 bits."""
    now = slot.gfn_track.get(gfn, 0) + count
    if warn_on(kvm, "page_track.c:update_gfn_track:range", not 0 <= now <= USHRT_MAX):
        return
    slot.gfn_track[gfn] = now


def account_shadowed(kvm: Kvm, sp: ShadowPage) -> None:
    """Write-protect the guest table that a new shadow page shadows.

    One that may not go out of sync is tracked for good; Linux tracks the upper levels.
    """
    kvm.indirect_shadow_pages += 1
    slot = _slot(kvm, sp)
    if kvm.sync.tracks(kvm, sp):
        update_gfn_track(kvm, slot, sp.gfn, 1)
    update_gfn_disallow_lpage_count(kvm, slot, sp.gfn, 1)
    if kvm_mmu_slot_gfn_write_protect(kvm, slot, sp.gfn, 1):
        if sp.level == 1:
            kvm_flush_remote_tlbs_gfn(kvm, sp.gfn, 1)
        else:
            kvm_flush_remote_tlbs(kvm)


def unaccount_shadowed(kvm: Kvm, sp: ShadowPage) -> None:
    """Undo :func:`account_shadowed`."""
    kvm.indirect_shadow_pages -= 1
    slot = _slot(kvm, sp)
    if kvm.sync.tracks(kvm, sp):
        update_gfn_track(kvm, slot, sp.gfn, -1)
    update_gfn_disallow_lpage_count(kvm, slot, sp.gfn, -1)


def _slot(kvm: Kvm, sp: ShadowPage) -> KvmMemslot:
    slot = kvm.slots[sp.smm].lookup(sp.gfn)
    if slot is None:
        raise KeyError(f"{sp!r} shadows a gfn that is in no slot")
    return slot
