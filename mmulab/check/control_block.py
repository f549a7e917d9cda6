"""L1's control block for L2: a whole VMCB, or of a VMCS in KVM's layout what concerns paging.

Of a VMCB the model reads what concerns paging. A processor also loads L2's segments and
descriptor tables from it, without which L2's first exception is a shutdown. They are those of the
helper pages, flat, as in the recordings.

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
from mmulab.scenario.helpers import (
    GDT,
    GDT_BYTES,
    HELPER_S,
    IDT32,
    IDT64,
    KERNEL_CS32,
    KERNEL_CS64,
    KERNEL_SS,
    STACK_TOP,
    STUB_BYTES,
    STUBS,
    TSS32,
    TSS64,
    VECTORS,
    Stub,
)
from mmulab.scenario.scenario import Regs
from mmulab.scenario.tables import WRITE_BACK
from mmulab.x86.ept import VMX_EPTP_AD_ENABLE_BIT, VMX_EPTP_PWL_4, VMX_EPTP_PWL_5
from mmulab.x86.regs import EFER_LMA, EFER_SVME, X86_CR4_VMXE, X86_EFLAGS_FIXED

VMCB_TLB_CONTROL, TLB_CONTROL_FLUSH_ALL_ASID = 0x5C, 1
"""Offset of the field that asks for a flush at VMRUN, and its value for all ASIDs (APM 2, 15.16.2)."""
_PAGE = 4096
_SEGMENT = 16
_SEGMENTS = 0x400
"""ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR and TR, of 16 bytes each."""
_RSP, _PAT = 0x5D8, 0x668
_PAT_AT_RESET = 0x0007040600070406
_DR6_AT_RESET, _DR7_AT_RESET = 0xFFFF0FF0, 0x400
_DATA, _CODE32, _CODE64, _FREE_TSS = 0xC93, 0xC9B, 0xA9B, 0x089
"""Attributes: bits 40 to 47 and 52 to 55 of a descriptor. The TSS is an available one: on a busy one QEMU's
TCG ends."""
_FLAT = 0xFFFFFFFF
_TSS_SELECTOR, _TSS_BYTES = 0x28, 0x68


def with_svme(regs: Regs) -> Regs:
    """VMRUN wants EFER.SVME, in L2's registers too (APM 2, 15.5.1)."""
    return regs._replace(efer=regs.efer | EFER_SVME)


def vmcb(builder: ScenarioBuilder, gpa: int, l2: Regs, nested_cr3: int | None) -> None:
    """Put a VMCB at `gpa` (APM 2, appendix B).

    Parameters
    ----------
    builder : ScenarioBuilder
    gpa : int
    l2 : Regs
        L2's registers; SVME is added, as VMRUN demands.
    nested_cr3 : int or None
        Root of the nested tables; None: no nested paging.
    """
    builder.fill(gpa, _PAGE, 0)
    fields = {
        "asid": 1,
        **with_svme(l2)._asdict(),
        "dr6": _DR6_AT_RESET,
        "dr7": _DR7_AT_RESET,
        "rflags": X86_EFLAGS_FIXED,
    }
    if nested_cr3 is not None:
        fields |= {"nested_ctl": SVM_NESTED_CTL_NP_ENABLE, "nested_cr3": nested_cr3}
    for name, value in fields.items():
        offset, size = VMCB[name]
        builder.value(size, gpa + offset, value)
    for at, segment in enumerate(_segments(long=bool(l2.efer & EFER_LMA))):
        for half, value in enumerate(segment):
            builder.value(8, gpa + _SEGMENTS + _SEGMENT * at + 8 * half, value)
    builder.value(8, gpa + _RSP, HELPER_S + STACK_TOP)
    builder.value(8, gpa + _PAT, _PAT_AT_RESET)
    word, bit = divmod(SVM_EXITS["vmrun"], 32)
    assert SVM_EXITS["vmmcall"] == SVM_EXITS["vmrun"] + 1
    builder.value(4, gpa + 4 * word, 0b11 << bit)


def ept_pointer(root: int, levels: int = 4, *, ad: bool) -> int:
    """Return the EPT pointer of a root (SDM 3, 25.6.11)."""
    walk = VMX_EPTP_PWL_5 if levels == 5 else VMX_EPTP_PWL_4
    return root | WRITE_BACK | walk | (VMX_EPTP_AD_ENABLE_BIT if ad else 0)


def vmcs(
    builder: ScenarioBuilder,
    gpa: int,
    l1: Regs,
    l2: Regs,
    eptp: int | None,
    pdptes: tuple[int, ...] = (),
    vpid: int = 1,
) -> None:
    """Put at `gpa` what concerns paging of a VMCS, in KVM's layout.

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
    vpid : int
        0: L1 turns VPIDs off.
    """
    builder.fill(gpa, _PAGE, 0)
    secondary = SECONDARY_EXEC_ENABLE_VPID if vpid else 0
    if eptp is not None:
        secondary |= SECONDARY_EXEC_ENABLE_EPT | SECONDARY_EXEC_UNRESTRICTED_GUEST
    exits = VM_EXIT_SAVE_IA32_EFER | VM_EXIT_LOAD_IA32_EFER
    fields = {
        "revision_id": VMCS12_REVISION,
        "cpu_based_vm_exec_control": CPU_BASED_ACTIVATE_SECONDARY_CONTROLS,
        "secondary_vm_exec_control": secondary,
        "virtual_processor_id": vpid,
        "ept_pointer": eptp or 0,
        "vm_exit_controls": exits | (VM_EXIT_HOST_ADDR_SPACE_SIZE if l1.efer & EFER_LMA else 0),
        "vm_entry_controls": VM_ENTRY_LOAD_IA32_EFER | (VM_ENTRY_IA32E_MODE if l2.efer & EFER_LMA else 0),
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


def _segments(long: bool) -> list[tuple[int, int]]:
    """Return both halves of each segment: selector, attributes and limit; base."""
    data = _segment(KERNEL_SS, _DATA, _FLAT)
    code = _segment(KERNEL_CS64, _CODE64, _FLAT) if long else _segment(KERNEL_CS32, _CODE32, _FLAT)
    gdt = _segment(0, 0, GDT_BYTES - 1, HELPER_S + GDT)
    gate, idt, tss = (16, IDT64, TSS64) if long else (8, IDT32, TSS32)
    return [
        *(data, code, data, data, data, data),
        *(gdt, (0, 0)),
        _segment(0, 0, VECTORS * gate - 1, HELPER_S + idt),
        _segment(_TSS_SELECTOR, _FREE_TSS, _TSS_BYTES - 1, HELPER_S + tss),
    ]


def _segment(selector: int, attributes: int, limit: int, base: int = 0) -> tuple[int, int]:
    return selector | attributes << 16 | limit << 32, base
