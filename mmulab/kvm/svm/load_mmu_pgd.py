"""Giving the processor a root: SVM's has no PCID beside one of fewer than four levels.

Source: Linux 6.1 ``arch/x86/kvm/mmu.h`` (``kvm_mmu_load_pgd``, ``kvm_get_active_pcid``),
``arch/x86/kvm/svm/svm.c`` (``svm_load_mmu_pgd``). ``vmx_load_mmu_pgd`` asserts nothing.
"""

from __future__ import annotations

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.mmu import INVALID_PAGE, PT64_ROOT_4LEVEL
from mmulab.kvm.state import Vcpu
from mmulab.x86.regs import X86_CR3_PCID_MASK, X86_CR4_PCIDE


def kvm_mmu_load_pgd(vcpu: Vcpu) -> None:
    """Give the processor the current root, if there is one; here it follows :attr:`Mmu.root_hpa` itself.

    A guest without long mode that has CR4.PCIDE set, as L2 may by VMRUN, has a PCID
    all the same; KVM warns, and leaves it out.
    """
    config, mmu = vcpu.kvm.config, vcpu.mmu
    if config.vendor != "amd" or config.tdp or mmu.root_hpa == INVALID_PAGE:
        return
    if mmu.root_level < PT64_ROOT_4LEVEL:
        pcid = vcpu.cr3 & X86_CR3_PCID_MASK if vcpu.cr4 & X86_CR4_PCIDE else 0
        warn_on(vcpu.kvm, "svm.c:svm_load_mmu_pgd:pcid", pcid != 0)
