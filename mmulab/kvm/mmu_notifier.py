"""What the host does to the memory behind memslots, and what KVM does about it: the MMU notifier.

Source: Linux 6.1 ``virt/kvm/kvm_main.c`` (``kvm_mmu_notifier_*``, ``__kvm_handle_hva_range``),
``arch/x86/kvm/mmu/mmu.c`` (``kvm_unmap_gfn_range``, ``kvm_age_gfn``, ``kvm_age_rmap``);
the same in 6.12 (``kvm_rmap_age_gfn_range``).
"""

from __future__ import annotations

from collections.abc import Callable

from mmulab import events as ev
from mmulab.kvm.flush import kvm_flush_remote_tlbs
from mmulab.kvm.memslot import KVM_MAX_HUGEPAGE_LEVEL, KvmMemslot
from mmulab.kvm.rmap import (
    for_each_rmap_spte,
    gfn_to_rmap,
    kvm_zap_all_rmap_sptes,
    mmu_spte_age,
    slot_handle_level_range,
)
from mmulab.kvm.state import Kvm
from mmulab.kvm.tdp_mmu import kvm_tdp_mmu_age_gfn_range, kvm_tdp_mmu_zap_leafs
from mmulab.kvm.trace import trace

Handler = Callable[[Kvm, KvmMemslot, int, int], bool]
"""Does something to the gfns of a slot from one to another, both included; returns whether to flush."""


def kvm_unmap_hva_range(kvm: Kvm, first_frame: int, last_frame: int) -> None:
    """Drop every spte to host frames of the range: the host is about to change them."""
    trace(kvm, ev.kvm_unmap_hva_range)
    _handle_hva_range(kvm, first_frame, last_frame, _unmap_gfn_range)


def kvm_age_hva(kvm: Kvm, first_frame: int, last_frame: int) -> bool:
    """Take what sptes know of accesses to frames of the range (``clear_flush_young``); return if one was."""
    trace(kvm, ev.kvm_age_hva)
    return _handle_hva_range(kvm, first_frame, last_frame, kvm_age_gfn)


def _handle_hva_range(kvm: Kvm, first_frame: int, last_frame: int, handler: Handler) -> bool:
    """Call `handler` on what each slot of each address space has of the range; flush once if it says so."""
    flush = False
    for slots in kvm.slots:
        for slot in list(slots.slots):
            first = max(first_frame, slot.base_frame)
            last = min(last_frame, slot.base_frame + slot.npages - 1)
            if first <= last:
                offset = slot.base_gfn - slot.base_frame
                flush |= handler(kvm, slot, first + offset, last + offset)
    if flush:
        kvm_flush_remote_tlbs(kvm)
    return flush


def _unmap_gfn_range(kvm: Kvm, slot: KvmMemslot, first: int, last: int) -> bool:
    def zap(gfn: int, level: int) -> bool:
        return kvm_zap_all_rmap_sptes(kvm, slot, gfn, level)

    flush = slot_handle_level_range(slot, range(1, KVM_MAX_HUGEPAGE_LEVEL + 1), first, last, zap)
    if kvm.config.uses_tdp_mmu:
        flush |= kvm_tdp_mmu_zap_leafs(kvm, slot.as_id, first, last + 1)
    return flush


def kvm_age_gfn(kvm: Kvm, slot: KvmMemslot, first: int, last: int) -> bool:
    """Make every spte of the gfns an old one; return whether one was young."""

    def age(gfn: int, level: int) -> bool:
        young = False
        for sptep in for_each_rmap_spte(kvm, gfn_to_rmap(slot, gfn, level)):
            young |= mmu_spte_age(kvm, sptep)
        return young

    young = slot_handle_level_range(slot, range(1, KVM_MAX_HUGEPAGE_LEVEL + 1), first, last, age)
    if kvm.config.uses_tdp_mmu:
        young |= kvm_tdp_mmu_age_gfn_range(kvm, slot.as_id, first, last + 1)
    return young
