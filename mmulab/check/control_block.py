"""L1's control block for L2, as far as the MMU reads it: a VMCB, or a VMCS in KVM's layout.

Source: Linux 6.1 ``arch/x86/kvm/svm/nested.c``, ``vmx/nested.c``, ``vmx/vmcs12.h``; APM 2,
appendix B; SDM 3, appendix B.
"""

from __future__ import annotations

from mmulab.kvm.svm.nested import SVM_EXITS, SVM_NESTED_CTL_NP_ENABLE, VMCB
from mmulab.kvm.vmx.checks import (
    VM_ENTRY_IA32E_MODE,
    VM_ENTRY_LOAD_IA32_EFER,
    VM_EXIT_HOST_ADDR_SPACE_SIZE,
    VM_EXIT_LOAD_IA32_EFER,
    VM_EXIT_SAVE_IA32_EFER,
)
from mmulab.kvm.vmx.vmcs12 import (
    CPU_BASED_ACTIVATE_SECONDARY_CONTROLS,
    SECONDARY_EXEC_ENABLE_EPT,
    SECONDARY_EXEC_ENABLE_VPID,
    SECONDARY_EXEC_UNRESTRICTED_GUEST,
    VMCS12,
    VMCS12_REVISION,
)
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, STUB_BYTES, STUBS, Stub
from mmulab.scenario.scenario import Regs
from mmulab.x86.regs import EFER_LMA, EFER_SVME, X86_CR4_VMXE, X86_EFLAGS_FIXED

VMCB_TLB_CONTROL = 0x5C
"""Offset of the field that asks for a flush at VMRUN (APM 2, 15.16.2)."""
_PAGE = 4096


def vmcb(builder: ScenarioBuilder, gpa: int, l2: Regs, nested_cr3: int | None) -> None:
    """Put a VMCB at `gpa`; `nested_cr3` None: no nested paging."""
    builder.fill(gpa, _PAGE, 0)
    fields = {"asid": 1, **l2._replace(efer=l2.efer | EFER_SVME)._asdict(), "rflags": X86_EFLAGS_FIXED}
    if nested_cr3 is not None:
        fields |= {"nested_ctl": SVM_NESTED_CTL_NP_ENABLE, "nested_cr3": nested_cr3}
    for name, value in fields.items():
        offset, size = VMCB[name]
        builder.value(size, gpa + offset, value)
    word = SVM_EXITS["vmrun"] >> 5
    builder.value(4, gpa + 4 * word, 1 << (SVM_EXITS["vmrun"] & 31) | 1 << (SVM_EXITS["vmmcall"] & 31))


def vmcs(
    builder: ScenarioBuilder, gpa: int, l1: Regs, l2: Regs, eptp: int | None, pdptes: tuple[int, ...] = ()
) -> None:
    """Put a VMCS at `gpa`.

    Parameters
    ----------
    builder : ScenarioBuilder
    gpa : int
    l1, l2 : Regs
        What L1 comes back with, and what L2 begins with.
    eptp : int or None
        None: no EPT.
    pdptes : tuple of int
        L2's in PAE paging, which with EPT are loaded from here.
    """
    builder.fill(gpa, _PAGE, 0)
    secondary = SECONDARY_EXEC_ENABLE_VPID
    if eptp is not None:
        secondary |= SECONDARY_EXEC_ENABLE_EPT | SECONDARY_EXEC_UNRESTRICTED_GUEST
    long_l1 = VM_EXIT_HOST_ADDR_SPACE_SIZE if l1.efer & EFER_LMA else 0
    long_l2 = VM_ENTRY_IA32E_MODE if l2.efer & EFER_LMA else 0
    fields = {
        "revision_id": VMCS12_REVISION,
        "cpu_based_vm_exec_control": CPU_BASED_ACTIVATE_SECONDARY_CONTROLS,
        "secondary_vm_exec_control": secondary,
        "virtual_processor_id": 1,
        "ept_pointer": eptp or 0,
        "vm_exit_controls": VM_EXIT_SAVE_IA32_EFER | VM_EXIT_LOAD_IA32_EFER | long_l1,
        "vm_entry_controls": VM_ENTRY_LOAD_IA32_EFER | long_l2,
        "guest_cr0": l2.cr0,
        "guest_cr3": l2.cr3,
        "guest_cr4": l2.cr4 | X86_CR4_VMXE,
        "guest_ia32_efer": l2.efer,
        "host_cr0": l1.cr0,
        "host_cr3": l1.cr3,
        "host_cr4": l1.cr4,
        "host_ia32_efer": l1.efer,
        "host_rip": HELPER_S + STUBS + STUB_BYTES * Stub.HOST_RIP,
        **{f"guest_pdptr{number}": value for number, value in enumerate(pdptes)},
    }
    for name, value in fields.items():
        offset, size, *_ = VMCS12[name]
        # The structure's fields are aligned to 4 bytes.
        for at in range(0, size, 4):
            builder.value(min(size, 4), gpa + offset + at, value >> 8 * at & 0xFFFFFFFF)
