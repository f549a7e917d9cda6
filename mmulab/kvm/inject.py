"""Giving exceptions to the guest.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``kvm_inject_emulated_page_fault``,
``kvm_inject_page_fault``, ``kvm_multiple_exception``).
"""

from __future__ import annotations

from mmulab.kvm.invlpg import kvm_mmu_invalidate_gva
from mmulab.kvm.mmu import X86Exception
from mmulab.kvm.state import Request, Vcpu
from mmulab.x86.pferr import PF_VECTOR, PFERR_PRESENT_MASK, PFERR_RSVD_MASK

DB_VECTOR = 1
DF_VECTOR = 8
GP_VECTOR = 13
CONTRIBUTORY = (0, 10, 11, 12, GP_VECTOR)
"""#DE, #TS, #NP, #SS and #GP."""
UD_VECTOR = 6


def kvm_queue_exception(
    vcpu: Vcpu, vector: int, error_code: int | None = None, address: int | None = None
) -> None:
    """Queue an exception for the next entry.

    One that meets another still to be delivered becomes a double fault, and a
    fault while that is delivered ends the VM (``kvm_multiple_exception``).
    """
    before = vcpu.exception
    if before is not None and before[0] == DF_VECTOR:
        vcpu.exception = None
        vcpu.requests |= Request.TRIPLE_FAULT
    elif before is not None and makes_double_fault(before[0], vector):
        vcpu.exception = (DF_VECTOR, 0, None)
    else:
        vcpu.exception = (vector, error_code, address)


def makes_double_fault(first: int, second: int) -> bool:
    """Whether `second`, met while `first` is delivered, makes a #DF (SDM 3, table 6-5)."""
    if first == PF_VECTOR:
        return second == PF_VECTOR or second in CONTRIBUTORY
    return first in CONTRIBUTORY and second in CONTRIBUTORY


def kvm_inject_emulated_page_fault(vcpu: Vcpu, fault: X86Exception) -> None:
    """Hand a fault that KVM found to the guest, or to L1 if its nested tables are at fault.

    A stale translation of the address is dropped first. Otherwise the access
    would fault again after the guest has mended its table.
    """
    mmu = vcpu.mmu if fault.nested_page_fault else vcpu.walk_mmu
    if fault.error_code & PFERR_PRESENT_MASK and not fault.error_code & PFERR_RSVD_MASK:
        kvm_mmu_invalidate_gva(vcpu, mmu, fault.address, mmu.root_hpa)
    if fault.nested_page_fault:
        assert vcpu.nested is not None
        vcpu.nested.inject_page_fault(vcpu, fault)
        return
    vcpu.stat["pf_guest"] += 1
    kvm_queue_exception(vcpu, PF_VECTOR, fault.error_code, fault.address)
