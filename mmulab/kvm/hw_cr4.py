"""What of the guest's CR4 the processor runs with while KVM shadows its tables.

The processor then pages always. SMEP, SMAP and PKE must not act on a guest that
does not page, so a load of CR4 leaves them out as long as CR0.PG is 0. SVM loads
CR4 again when CR0.PG changes. VMX does so only if ``enable_ept``: without EPT the
processor goes on with what the last load of CR4 found, until the next one.

Source: Linux 6.1 ``arch/x86/kvm/svm/svm.c`` (``svm_set_cr0``, ``svm_set_cr4``),
``vmx/vmx.c`` (``vmx_set_cr0``, ``vmx_set_cr4``); 6.12 is the same.
"""

from __future__ import annotations

from mmulab.kvm.state import Vcpu
from mmulab.x86.regs import X86_CR0_PG, X86_CR4_PKE, X86_CR4_SMAP, X86_CR4_SMEP

WHILE_PAGING = X86_CR4_SMEP | X86_CR4_SMAP | X86_CR4_PKE


def set_cr4(vcpu: Vcpu, cr4: int) -> None:
    """Load CR4; the vCPU's CR0 is already the one that goes with it."""
    vcpu.cr4 = cr4
    vcpu.hw_cr4 = cr4 & WHILE_PAGING if vcpu.cr0 & X86_CR0_PG else 0


def set_cr0(vcpu: Vcpu, cr0: int) -> None:
    """Load CR0, and CR4 again if paging begins or ends, where the vendor's module does so."""
    changed = (vcpu.cr0 ^ cr0) & X86_CR0_PG
    vcpu.cr0 = cr0
    if changed and (vcpu.kvm.config.vendor == "amd" or vcpu.kvm.config.tdp):
        set_cr4(vcpu, vcpu.cr4)
