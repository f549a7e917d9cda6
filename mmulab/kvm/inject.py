"""Giving exceptions to the guest.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``kvm_inject_emulated_page_fault``,
``kvm_inject_page_fault``, ``kvm_multiple_exception``).
"""

from __future__ import annotations

from mmulab.kvm.invlpg import kvm_mmu_invalidate_gva
from mmulab.kvm.mmu import X86Exception
from mmulab.kvm.state import Vcpu
from mmulab.x86.pferr import PF_VECTOR, PFERR_PRESENT_MASK, PFERR_RSVD_MASK

GP_VECTOR = 13
UD_VECTOR = 6


def kvm_queue_exception(
    vcpu: Vcpu, vector: int, error_code: int | None = None, address: int | None = None
) -> None:
    """Queue an exception for the next entry."""
    vcpu.exception = (vector, error_code, address)


def kvm_inject_emulated_page_fault(vcpu: Vcpu, fault: X86Exception) -> None:
    """Hand a fault that KVM found to the guest, or to L1 if its nested tables are at fault.

    A stale translation of the address is dropped first. Otherwise the access
    would fault again after the guest has mended its table.
    """
    mmu = vcpu.mmu if fault.nested_page_fault else vcpu.walk_mmu
    if fault.error_code & PFERR_PRESENT_MASK and not fault.error_code & PFERR_RSVD_MASK:
        kvm_mmu_invalidate_gva(vcpu, mmu, fault.address, mmu.root_hpa)
    if mmu.inject_page_fault is not None:
        mmu.inject_page_fault(vcpu, fault)
        return
    vcpu.stat["pf_guest"] += 1
    kvm_queue_exception(vcpu, PF_VECTOR, fault.error_code, fault.address)
