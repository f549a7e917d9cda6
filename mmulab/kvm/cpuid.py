"""The guest's CPUID, and what the MMU does when the VMM changes it.

Source: Linux 6.1 ``arch/x86/kvm/cpuid.c`` (``kvm_set_cpuid``),
``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_after_set_cpuid``).
"""

from __future__ import annotations

from errno import EINVAL

from mmulab.kvm.assertions import kvm_bug_on
from mmulab.kvm.context import kvm_init_mmu
from mmulab.kvm.roots import kvm_mmu_unload
from mmulab.kvm.state import Vcpu
from mmulab.x86.regs import CpuModel


def kvm_set_cpuid(vcpu: Vcpu, cpu: CpuModel) -> int:
    """Give the vCPU another CPUID (``KVM_SET_CPUID2``).

    Returns
    -------
    int
        0 or a negative errno.
    """
    has_run = vcpu.last_vmentry_cpu != -1
    rule = vcpu.kvm.config.kernel.cpuid_after_run
    if has_run and rule == "refuse":
        return 0 if cpu == vcpu.cpu else -EINVAL
    vcpu.cpu = cpu
    kvm_mmu_after_set_cpuid(vcpu)
    if rule == "bug":
        kvm_bug_on(vcpu.kvm, "mmu.c:kvm_mmu_after_set_cpuid:last_vmentry_cpu", has_run)
    return 0


def kvm_mmu_after_set_cpuid(vcpu: Vcpu) -> None:
    """Mark the three contexts as not valid, and configure the one in use again.

    The others follow when they are next used, if the comparison with their
    roles fails: that is what the mark is for (:mod:`mmulab.kvm.validity`).
    The call of ``kvm_mmu_reset_context`` is no event: the compiler inlines it into
    its neighbour in the same file, behind the probe at the function's entry.
    """
    config = vcpu.kvm.config
    contexts = () if vcpu.kvm.bugs.B22 else (vcpu.root_mmu, vcpu.guest_mmu, vcpu.nested_mmu)
    for mmu in contexts:
        config.kernel.validity.mark(mmu, config.kernel.design)
    kvm_mmu_unload(vcpu)
    kvm_init_mmu(vcpu, force_role_reset=config.kernel.validity.force_role_reset)
