"""What every page fault goes through, whatever tables it is on.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_faultin_pfn``,
``handle_abnormal_pfn``, ``is_page_fault_stale``, ``page_fault_handle_page_track``).
"""

from __future__ import annotations

import errno

from mmulab.kvm.host_page import access_host_page
from mmulab.kvm.mmio import vcpu_cache_mmio_info
from mmulab.kvm.mmu_internal import (
    KVM_PFN_ERR_FAULT,
    KVM_PFN_ERR_RO_FAULT,
    KVM_PFN_NOSLOT,
    PageFault,
    RetPf,
)
from mmulab.kvm.page_track import kvm_slot_page_track_is_active
from mmulab.kvm.shadow_page import ShadowWalk
from mmulab.kvm.state import KvmRunError, Request, Vcpu, is_obsolete_sp, sptep_to_sp, to_shadow_page
from mmulab.kvm.sync.stat import count_refused
from mmulab.kvm.zap import make_mmu_pages_available


def page_fault_handle_page_track(vcpu: Vcpu, fault: PageFault) -> bool:
    """Whether the guest writes a tracked page, which only the emulator can do."""
    if fault.rsvd or not fault.present or not fault.write:
        return False
    kvm = vcpu.kvm
    if not kvm_slot_page_track_is_active(kvm, fault.slot, fault.gfn):
        return False
    count_refused(kvm.sync_stat, kvm.sync.tracked_because(kvm, fault.gfn))
    return True


def shadow_page_table_clear_flood(vcpu: Vcpu, addr: int) -> None:
    """Forget the writes counted against the pages on the way to `addr`: they are in use."""
    it = ShadowWalk(vcpu, vcpu.mmu.root_hpa, addr)
    while it.okay():
        sptep_to_sp(vcpu.kvm, it.sptep).write_flooding_count = 0
        it.next()


def kvm_faultin_pfn(vcpu: Vcpu, fault: PageFault) -> RetPf:
    """Find the frame behind the gfn, and whether it may be mapped writable."""
    slot = fault.slot
    if slot is None:
        fault.pfn = KVM_PFN_NOSLOT
        return RetPf.CONTINUE
    if slot.invalid:
        return RetPf.RETRY
    if slot.readonly and fault.write:
        fault.pfn = KVM_PFN_ERR_RO_FAULT
        return RetPf.CONTINUE
    frame = slot.frame(fault.gfn)
    fault.pfn = frame if access_host_page(vcpu.kvm, frame, write=fault.write) else KVM_PFN_ERR_FAULT
    fault.map_writable = not slot.readonly and not vcpu.kvm.memory.is_special(frame)
    return RetPf.CONTINUE


def handle_abnormal_pfn(vcpu: Vcpu, fault: PageFault, access: int) -> RetPf:
    """Send device accesses and writes to read-only slots on their way.

    Raises
    ------
    KvmRunError
        The VMM's own mapping does not allow the access: -EFAULT, with which ``KVM_RUN`` ends.
    """
    if fault.pfn == KVM_PFN_ERR_FAULT:
        raise KvmRunError(errno.EFAULT)
    if fault.pfn == KVM_PFN_ERR_RO_FAULT:
        return RetPf.EMULATE
    if fault.slot is None:
        kvm = vcpu.kvm
        gva = 0 if fault.is_tdp else fault.addr
        vcpu_cache_mmio_info(vcpu, gva, fault.gfn, access & kvm.fmt.mmio_access)
        max_gpa_bits = kvm.config.host_phys_bits if kvm.config.tdp else 52
        if not kvm.config.mmio_caching or fault.gfn >= 1 << max_gpa_bits - 12:
            return RetPf.EMULATE
    return RetPf.CONTINUE


def is_stale_after_reclaim(vcpu: Vcpu) -> bool:
    """Make room for the fault's pages; return whether the root is out of use, by that or before.

    Raises
    ------
    KvmRunError
        There is no room.
    """
    if vcpu.kvm.bugs.B4 and is_page_fault_stale(vcpu):
        return True
    make_mmu_pages_available(vcpu)
    return not vcpu.kvm.bugs.B4 and is_page_fault_stale(vcpu)


def is_page_fault_stale(vcpu: Vcpu) -> bool:
    """Whether the root went out of use since the fault, by a memslot change or by reclaim."""
    sp = to_shadow_page(vcpu.kvm, vcpu.mmu.root_hpa)
    if sp is not None:
        return is_obsolete_sp(vcpu.kvm, sp)
    return bool(vcpu.requests & Request.MMU_FREE_OBSOLETE_ROOTS)
