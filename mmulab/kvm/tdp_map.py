"""Mapping a page in the TDP MMU.

Source: Linux 6.1 ``arch/x86/kvm/mmu/tdp_mmu.c`` (``kvm_tdp_mmu_map``,
``tdp_mmu_map_handle_target_level``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.flush import kvm_flush_remote_tlbs_range
from mmulab.kvm.hugepage import (
    disallowed_hugepage_adjust,
    kvm_mmu_hugepage_adjust,
    trace_spte_requested,
)
from mmulab.kvm.mmio import vcpu_make_mmio_spte
from mmulab.kvm.mmu_internal import KVM_PAGES_PER_HPAGE, PageFault, RetPf
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.nx_huge_page import account_nx_huge_page
from mmulab.kvm.set_spte import make_spte, trace_set_spte
from mmulab.kvm.spte import (
    get_mmio_spte_generation,
    is_large_pte,
    is_last_spte,
    is_shadow_present_pte,
)
from mmulab.kvm.state import Kvm, Vcpu, spte_at, sptep_to_sp
from mmulab.kvm.tdp_iter import TdpEntry, for_each_tdp_pte
from mmulab.kvm.tdp_mmu import (
    tdp_mmu_alloc_child,
    tdp_mmu_link_sp,
    tdp_mmu_set_spte_atomic,
    tdp_mmu_split_huge_page,
    tdp_mmu_zap_spte_atomic,
)
from mmulab.kvm.trace import trace
from mmulab.x86.pferr import ACC_ALL


def kvm_tdp_mmu_map(vcpu: Vcpu, fault: PageFault) -> RetPf:
    """Build the tables down to the wanted page size and set the leaf."""
    kvm = vcpu.kvm
    kvm_mmu_hugepage_adjust(kvm, fault)
    trace_spte_requested(kvm, fault)
    root = kvm.pages[vcpu.mmu.root_hpa >> 12]
    for entry in for_each_tdp_pte(kvm, root, fault.gfn, fault.gfn + 1):
        if fault.nx_huge_page_workaround_enabled:
            disallowed_hugepage_adjust(kvm, fault, entry.old_spte, entry.level)
        if entry.level == fault.goal_level:
            return _set_leaf(vcpu, fault, entry)
        if is_shadow_present_pte(entry.old_spte) and not is_large_pte(entry.old_spte):
            continue
        if is_shadow_present_pte(entry.old_spte) and kvm.behaviours.tdp_fault_splits_huge_page:
            sp = tdp_mmu_split_huge_page(kvm, entry, shared=True)
        else:
            if is_shadow_present_pte(entry.old_spte):
                tdp_mmu_zap_spte_atomic(kvm, entry)
                entry.old_spte = spte_at(kvm, entry.sptep)
            sp = tdp_mmu_alloc_child(kvm, entry)
            tdp_mmu_link_sp(kvm, entry, sp, shared=True)
        if fault.huge_page_disallowed:
            account_nx_huge_page(kvm, sp, possible=fault.req_level >= entry.level)
    return RetPf.RETRY


def _flush_of_table(kvm: Kvm, sp: ShadowPage, entry: TdpEntry) -> None:
    """Flush what a table mapped whose place a page took; 6.1 gives the table's own gfn and range."""
    if kvm.behaviours.ranged_flushes_are_calls:
        kvm_flush_remote_tlbs_range(kvm, entry.gfn, KVM_PAGES_PER_HPAGE[entry.level])
    else:
        kvm_flush_remote_tlbs_range(kvm, sp.gfn, KVM_PAGES_PER_HPAGE[entry.level + 1])


def _set_leaf(vcpu: Vcpu, fault: PageFault, entry: TdpEntry) -> RetPf:
    kvm, slot = vcpu.kvm, fault.slot
    sp = sptep_to_sp(kvm, entry.sptep)
    old, wrprot = entry.old_spte, False
    warn_on(kvm, "tdp_mmu.c:tdp_mmu_map_handle_target_level:level", sp.level != fault.goal_level)
    if slot is None:
        new = vcpu_make_mmio_spte(vcpu, entry.gfn, ACC_ALL)
    else:
        new, wrprot = make_spte(
            vcpu,
            sp,
            slot,
            ACC_ALL,
            entry.gfn,
            fault.pfn,
            old,
            prefetch=fault.prefetch,
            can_unsync=True,
            host_writable=fault.map_writable,
        )
    ret = RetPf.FIXED
    if new == old:
        ret = RetPf.SPURIOUS
    else:
        tdp_mmu_set_spte_atomic(kvm, entry, new)
        if is_shadow_present_pte(old) and not is_last_spte(old, entry.level):
            _flush_of_table(kvm, sp, entry)
    if wrprot and fault.write:
        ret = RetPf.WRITE_PROTECTED
    if slot is None:
        vcpu.stat["pf_mmio_spte_created"] += 1
        gen = get_mmio_spte_generation(new)
        trace(kvm, ev.mark_mmio_spte, entry.sptep, entry.gfn, new & ACC_ALL, gen)
        return RetPf.EMULATE
    trace_set_spte(kvm, entry.level, entry.gfn, entry.sptep, spte_at(kvm, entry.sptep))
    return ret
