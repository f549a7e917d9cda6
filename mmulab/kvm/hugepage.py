"""How large a page a fault may map.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_max_mapping_level``,
``kvm_mmu_hugepage_adjust``, ``disallowed_hugepage_adjust``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.dirty import kvm_slot_dirty_track_enabled
from mmulab.kvm.memslot import KVM_MAX_HUGEPAGE_LEVEL, KvmMemslot
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT, KVM_PAGES_PER_HPAGE, PageFault
from mmulab.kvm.spte import is_large_pte, is_shadow_present_pte, spte_to_pfn
from mmulab.kvm.state import Kvm
from mmulab.kvm.trace import trace


def kvm_mmu_max_mapping_level(kvm: Kvm, slot: KvmMemslot, gfn: int, max_level: int) -> int:
    """Return the largest page size with which `gfn` may be mapped, up to `max_level`."""
    max_level = min(max_level, KVM_MAX_HUGEPAGE_LEVEL if kvm.config.gbpages else 2)
    while max_level > 1 and slot.disallow_lpage[max_level].get(gfn >> KVM_HPAGE_GFN_SHIFT[max_level], 0):
        max_level -= 1
    if max_level == 1:
        return 1
    return min(kvm.memory.mapping_level(slot.frame(gfn), slot.host_level), max_level)


def kvm_mmu_hugepage_adjust(kvm: Kvm, fault: PageFault) -> None:
    """Decide the size of the page that the fault gets."""
    fault.huge_page_disallowed = fault.exec and fault.nx_huge_page_workaround_enabled
    slot = fault.slot
    if fault.max_level == 1 or slot is None or fault.pfn < 0 or kvm_slot_dirty_track_enabled(slot):
        return
    fault.req_level = kvm_mmu_max_mapping_level(kvm, slot, fault.gfn, fault.max_level)
    if fault.req_level == 1 or fault.huge_page_disallowed:
        return
    fault.goal_level = fault.req_level
    mask = KVM_PAGES_PER_HPAGE[fault.goal_level] - 1
    warn_on(kvm, "mmu.c:kvm_mmu_hugepage_adjust:pfn", (fault.gfn ^ fault.pfn) & mask != 0)
    fault.pfn &= ~mask


def disallowed_hugepage_adjust(kvm: Kvm, fault: PageFault, spte: int, level: int) -> None:
    """Go one level down where a table stands in the way of an NX huge page, from 6.2 on one by a fetch."""
    if level > 1 and level == fault.goal_level and is_shadow_present_pte(spte) and not is_large_pte(spte):
        if kvm.behaviours.nx_huge_page_is_tagged and not kvm.pages[spte_to_pfn(spte)].lpage_disallowed:
            return
        mask = KVM_PAGES_PER_HPAGE[level] - KVM_PAGES_PER_HPAGE[level - 1]
        fault.pfn |= fault.gfn & mask
        fault.goal_level -= 1


def trace_spte_requested(kvm: Kvm, fault: PageFault) -> None:
    """Report what the fault wants mapped."""
    offset = fault.gfn & (KVM_PAGES_PER_HPAGE[fault.goal_level] - 1)
    trace(kvm, ev.kvm_mmu_spte_requested, fault.gfn, fault.pfn | offset, fault.goal_level)
