"""Direct maps: tables with no guest table behind them.

A guest without paging runs on one whose addresses are guest-physical.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``direct_page_fault``, ``direct_map``,
``fast_page_fault``).
"""

from __future__ import annotations

import errno

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.dirty import kvm_slot_dirty_track_enabled, mark_page_dirty_in_slot
from mmulab.kvm.fault import (
    handle_abnormal_pfn,
    is_page_fault_stale,
    is_stale_after_reclaim,
    kvm_faultin_pfn,
    page_fault_handle_page_track,
)
from mmulab.kvm.hugepage import (
    disallowed_hugepage_adjust,
    kvm_mmu_hugepage_adjust,
    trace_spte_requested,
)
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.kvm.mmu_internal import PageFault, RetPf, gfn_round_for_level
from mmulab.kvm.nx_huge_page import account_nx_huge_page
from mmulab.kvm.prefetch import direct_pte_prefetch
from mmulab.kvm.set_spte import mmu_set_spte
from mmulab.kvm.shadow_page import ShadowWalk, kvm_mmu_get_child_sp, link_shadow_page, shadow_path
from mmulab.kvm.spte import (
    is_access_track_spte,
    is_executable_pte,
    is_last_spte,
    is_shadow_present_pte,
    is_writable_pte,
    restore_acc_track_spte,
)
from mmulab.kvm.state import KvmRunError, Vcpu, spte_at, sptep_to_sp, vcpu_memslots
from mmulab.kvm.tdp_map import kvm_tdp_mmu_map
from mmulab.kvm.trace import trace
from mmulab.x86.mode import PT_PRESENT_MASK, PT_WRITABLE_MASK
from mmulab.x86.pferr import ACC_ALL


def nonpaging_page_fault(vcpu: Vcpu, fault: PageFault) -> RetPf:
    """Handle a fault of a guest without paging; its tables are PAE's, so 2 MiB is the most."""
    fault.max_level = 2
    return direct_page_fault(vcpu, fault)


def kvm_tdp_page_fault(vcpu: Vcpu, fault: PageFault) -> RetPf:
    """Handle a fault of two-dimensional paging."""
    return direct_page_fault(vcpu, fault)


def direct_page_fault(vcpu: Vcpu, fault: PageFault) -> RetPf:
    """Handle a fault whose address is guest-physical."""
    kvm = vcpu.kvm
    fault.gfn = fault.addr >> 12
    if kvm.config.uses_tdp_mmu:
        warn_on(kvm, "tdp_mmu.h:is_tdp_mmu:root", vcpu.mmu.root_hpa == INVALID_PAGE)
    fault.slot = vcpu_memslots(vcpu).lookup(fault.gfn)
    if page_fault_handle_page_track(vcpu, fault):
        return RetPf.WRITE_PROTECTED
    ret = fast_page_fault(vcpu, fault)
    if ret != RetPf.INVALID:
        return ret
    ret = kvm_faultin_pfn(vcpu, fault)
    if ret != RetPf.CONTINUE:
        return ret
    ret = handle_abnormal_pfn(vcpu, fault, ACC_ALL)
    if ret != RetPf.CONTINUE:
        return ret
    tdp_mmu = fault.is_tdp and vcpu.kvm.config.uses_tdp_mmu
    if is_page_fault_stale(vcpu) if tdp_mmu else is_stale_after_reclaim(vcpu):
        return RetPf.RETRY
    return kvm_tdp_mmu_map(vcpu, fault) if tdp_mmu else direct_map(vcpu, fault)


def direct_map(vcpu: Vcpu, fault: PageFault) -> RetPf:
    """Build the direct tables down to the wanted page size and set the leaf.

    Raises
    ------
    KvmRunError
        The tables do not go so far down.
    """
    kvm = vcpu.kvm
    kvm_mmu_hugepage_adjust(kvm, fault)
    trace_spte_requested(kvm, fault)
    it = ShadowWalk(vcpu, vcpu.mmu.root_hpa, fault.addr)
    while it.okay():
        if fault.nx_huge_page_workaround_enabled:
            disallowed_hugepage_adjust(kvm, fault, spte_at(kvm, it.sptep), it.level)
        if it.level == fault.goal_level:
            break
        base_gfn = gfn_round_for_level(fault.gfn, it.level)
        sp = kvm_mmu_get_child_sp(vcpu, it.sptep, base_gfn, direct=True, access=ACC_ALL, addr=fault.addr)
        if sp is not None:
            link_shadow_page(kvm, it.sptep, sp)
            if fault.huge_page_disallowed and (fault.is_tdp or kvm.behaviours.nonpaging_counts_nx):
                account_nx_huge_page(kvm, sp, possible=fault.req_level >= it.level)
        it.next()
    if warn_on(kvm, "mmu.c:direct_map:level", it.level != fault.goal_level):
        raise KvmRunError(errno.EFAULT)
    base_gfn = gfn_round_for_level(fault.gfn, it.level)
    ret = mmu_set_spte(vcpu, fault.slot, it.sptep, ACC_ALL, base_gfn, fault.pfn, fault)
    if ret != RetPf.SPURIOUS:
        direct_pte_prefetch(vcpu, it.sptep)
    return ret


def _can_be_fast(vcpu: Vcpu, fault: PageFault) -> bool:
    """Whether an entry may need no more than its W bit, or its rights back."""
    if fault.rsvd:
        return False
    return fault.write if fault.present else not vcpu.kvm.fmt.ad_enabled


def _is_access_allowed(vcpu: Vcpu, fault: PageFault, spte: int) -> bool:
    if fault.exec:
        return is_executable_pte(vcpu.kvm.fmt, spte)
    return is_writable_pte(spte) if fault.write else spte & PT_PRESENT_MASK != 0


def fast_page_fault(vcpu: Vcpu, fault: PageFault) -> RetPf:
    """Try to fix the entry without the MMU lock; INVALID if that is not enough."""
    if not _can_be_fast(vcpu, fault):
        return RetPf.INVALID
    kvm = vcpu.kvm
    path = shadow_path(vcpu, fault.addr)
    _, sptep, spte = path[-1] if path else (0, -1, 0)
    ret = RetPf.INVALID
    if is_shadow_present_pte(spte) and is_last_spte(spte, sptep_to_sp(kvm, sptep).level):
        ret = _fix_spte(vcpu, fault, sptep, spte)
    now = spte_at(kvm, sptep) if sptep >= 0 else 0
    trace(kvm, ev.fast_page_fault, fault.addr, fault.error_code, sptep, spte, now, int(ret))
    if ret != RetPf.INVALID:
        vcpu.stat["pf_fast"] += 1
    return ret


def _fix_spte(vcpu: Vcpu, fault: PageFault, sptep: int, spte: int) -> RetPf:
    kvm, slot = vcpu.kvm, fault.slot
    if _is_access_allowed(vcpu, fault, spte):
        return RetPf.SPURIOUS
    new = spte
    if not kvm.fmt.ad_enabled and is_access_track_spte(kvm.fmt, spte):
        new = restore_acc_track_spte(kvm.fmt, new)
    if fault.write and spte & kvm.fmt.mmu_writable:
        new |= PT_WRITABLE_MASK
        logged = slot is not None and kvm_slot_dirty_track_enabled(slot)
        if sptep_to_sp(kvm, sptep).level > 1 and logged:
            return RetPf.INVALID
    if new == spte or not _is_access_allowed(vcpu, fault, new):
        return RetPf.INVALID
    kvm.memory.store64(sptep, new)
    if is_writable_pte(new) and not is_writable_pte(spte) and slot is not None:
        mark_page_dirty_in_slot(kvm, slot, fault.gfn)
    return RetPf.FIXED
