"""What VM entry checks: L1's controls, what L1 comes back with, and L2's state.

A control word that is not allowed makes VMLAUNCH fail, and so does the state
for L1; a state of L2 that is not allowed is an exit to L1. What a control turns
on and the model does not know is refused by name (:func:`refuse_controls`).

The VMCS of a scenario may say no more than what concerns paging. So the
default settings of a control word are held to be 1 if they are all 0; so are
segment selectors for L1 held to be right if all are 0, and a link pointer of 0
points nowhere. If one of them is given, all are checked. L2's segments are not
looked at (``vmx_guest_state_valid``, only without unrestricted guest).

Source: Linux 6.1 ``arch/x86/kvm/vmx/nested.c`` (``nested_vmx_setup_ctls_msrs``,
``nested_vmx_check_controls``, ``nested_vmx_check_host_state``,
``nested_vmx_check_guest_state``), ``asm/vmx.h``; SDM 3, 27.2, 27.3 and appendix A.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.guest_walk import kvm_read_guest
from mmulab.kvm.sregs import (
    kvm_valid_efer,
    nested_cr4_valid,
    nested_guest_cr0_valid,
    nested_host_cr0_valid,
)
from mmulab.kvm.state import Vcpu
from mmulab.kvm.trace import trace
from mmulab.kvm.vmx.vmcs12 import (
    SECONDARY_EXEC_ENABLE_EPT,
    SECONDARY_EXEC_ENABLE_PML,
    SECONDARY_EXEC_ENABLE_VMFUNC,
    SECONDARY_EXEC_ENABLE_VPID,
    SECONDARY_EXEC_UNRESTRICTED_GUEST,
    VMCS12_REVISION,
    VmxState,
)
from mmulab.x86.ept import VMX_EPTP_AD_ENABLE_BIT, VMX_EPTP_PWL_4, VMX_EPTP_PWL_5, VMX_EPTP_PWL_MASK
from mmulab.x86.mode import PAGING_4LEVEL, PAGING_5LEVEL, is_canonical
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PCIDE,
)

VM_ENTRY_LOAD_DEBUG_CONTROLS = 1 << 2
VM_ENTRY_IA32E_MODE = 1 << 9
VM_ENTRY_LOAD_IA32_EFER = 1 << 15
VM_EXIT_HOST_ADDR_SPACE_SIZE = 1 << 9
VM_EXIT_SAVE_IA32_EFER = 1 << 20
VM_EXIT_LOAD_IA32_EFER = 1 << 21
VM_EXIT_SAVE_VMX_PREEMPTION_TIMER = 1 << 22
PIN_BASED_NMI_EXITING = 1 << 3
PIN_BASED_VIRTUAL_NMIS = 1 << 5
PIN_BASED_VMX_PREEMPTION_TIMER = 1 << 6
CPU_BASED_NMI_WINDOW_EXITING = 1 << 22
CPU_BASED_ACTIVATE_SECONDARY_CONTROLS = 1 << 31

ENTRY_FAIL_DEFAULT, ENTRY_FAIL_PDPTE, ENTRY_FAIL_VMCS_LINK_PTR = 0, 2, 4
"""Qualifications of an entry that failed on L2's state (SDM 3, 27.8)."""
GUEST_ACTIVITY_STATES = (0, 1, 3)
"""Active, HLT and wait-for-SIPI, which KVM has."""

_EPTP_MT_MASK, _EPTP_MT_UC, _EPTP_MT_WB = 7, 0, 6
_RPL_AND_TI = 7
_SELECTORS = tuple(f"host_{name}_selector" for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr"))
_SYSENTER = ("host_ia32_sysenter_esp", "host_ia32_sysenter_eip")
_BASES = tuple(f"host_{name}" for name in ("fs_base", "gs_base", "gdtr_base", "idtr_base", "tr_base", "rip"))


class Controls(NamedTuple):
    """A word of controls.

    Attributes
    ----------
    always : int
        Bits that have to be 1.
    offered : tuple of int
        Further bits that L1 may set, by number.
    not_modelled : dict of int to str
        Those that the model does not obey; of the others no scenario can see anything.
    """

    always: int
    offered: tuple[int, ...]
    not_modelled: dict[int, str]


CONTROLS = {
    "pin_based_vm_exec_control": Controls(
        0x16, (0, 3, 5, 6, 7), {6: "the preemption timer", 7: "posted interrupts"}
    ),
    "cpu_based_vm_exec_control": Controls(
        0x04006172,
        (2, 3, 7, 9, 10, 11, 12, 15, 16, 19, 20, 21, 22, 23, 24, 25, 27, 28, 29, 30, 31),
        {
            2: "interrupt-window exiting",
            9: "INVLPG exiting",
            15: "CR3-load exiting",
            21: "the TPR shadow",
            22: "NMI-window exiting",
            24: "unconditional I/O exiting",
            25: "I/O bitmaps",
            27: "the monitor trap flag",
            28: "MSR bitmaps",
        },
    ),
    "secondary_vm_exec_control": Controls(
        0,
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 20, 25, 26),
        {
            0: "virtual APIC accesses",
            4: "the virtual x2APIC",
            8: "APIC-register virtualization",
            9: "virtual-interrupt delivery",
            14: "VMCS shadowing",
        },
    ),
    "vm_exit_controls": Controls(
        0x36DFB,
        (2, 9, 12, 15, 18, 19, 20, 21, 22, 23),
        {12: "loading IA32_PERF_GLOBAL_CTRL", 19: "loading IA32_PAT", 22: "the preemption timer"},
    ),
    "vm_entry_controls": Controls(
        0x11FB,
        (2, 9, 13, 14, 15, 16),
        {13: "loading IA32_PERF_GLOBAL_CTRL", 14: "loading IA32_PAT", 16: "loading IA32_BNDCFGS"},
    ),
}
"""What KVM offers L1 at most (``nested_vmx_setup_ctls_msrs``), by the VMCS's fields."""


def refuse_controls(vmx: VmxState) -> None:
    """Refuse controls that the model does not obey.

    Raises
    ------
    InputError
    """
    for name, controls in CONTROLS.items():
        if name == "secondary_vm_exec_control" and not _has_secondary_controls(vmx):
            continue
        for bit, what in controls.not_modelled.items():
            if vmx.get(name) >> bit & 1:
                raise InputError(f"the VMCS turns {what} on (bit {bit} of {name}), which is not modelled")


def consistency_check(vcpu: Vcpu, failed: bool) -> bool:
    """Report a check that failed (``CC``); returns whether it did."""
    if failed:
        trace(vcpu.kvm, ev.kvm_nested_vmenter_failed, 0)
    return failed


def _first_fails(vcpu: Vcpu, checks: Iterator[bool]) -> bool:
    """Whether a check fails; the first that does is reported, and the rest are not made."""
    return any(consistency_check(vcpu, failed) for failed in checks)


def page_address_valid(vcpu: Vcpu, gpa: int) -> bool:
    """Whether `gpa` is page-aligned and within the guest's physical addresses."""
    return not gpa & 0xFFF and not gpa >> vcpu.cpu.maxphyaddr


def nested_vmx_check_eptp(vcpu: Vcpu, eptp: int) -> bool:
    """Whether KVM offers L1 this EPT pointer: write-back; 5 levels and A/D only if the host has them."""
    kvm = vcpu.kvm
    memory_type, levels = eptp & _EPTP_MT_MASK, eptp & VMX_EPTP_PWL_MASK
    if memory_type not in (_EPTP_MT_UC, _EPTP_MT_WB):
        return False
    if consistency_check(vcpu, memory_type == _EPTP_MT_UC):
        return False
    if levels not in (VMX_EPTP_PWL_4, VMX_EPTP_PWL_5):
        return False
    if consistency_check(vcpu, levels == VMX_EPTP_PWL_5 and not kvm.config.la57):
        return False
    if consistency_check(vcpu, bool(eptp >> vcpu.cpu.maxphyaddr or eptp & 0xF80)):
        return False
    wants_ad = bool(eptp & VMX_EPTP_AD_ENABLE_BIT)
    return not consistency_check(vcpu, wants_ad and not kvm.fmt.ad_enabled)


def check_controls(vcpu: Vcpu) -> bool:
    """Check the controls for execution, exit and entry (``nested_vmx_check_controls``)."""
    vmx = vcpu.vmx
    words = ["pin_based_vm_exec_control", "cpu_based_vm_exec_control"]
    words += ["secondary_vm_exec_control"] if _has_secondary_controls(vmx) else []
    if _first_fails(vcpu, (not _vmx_control_verify(vcpu, name) for name in words)):
        return False
    if _first_fails(vcpu, _execution_control_failures(vcpu)):
        return False
    pin, exits = vmx.get("pin_based_vm_exec_control"), vmx.get("vm_exit_controls")
    if exits & VM_EXIT_SAVE_VMX_PREEMPTION_TIMER and not pin & PIN_BASED_VMX_PREEMPTION_TIMER:
        return False
    if not _ept_controls_valid(vcpu):
        return False
    return not _first_fails(
        vcpu, (not _vmx_control_verify(vcpu, name) for name in ("vm_exit_controls", "vm_entry_controls"))
    )


def _has_secondary_controls(vmx: VmxState) -> bool:
    return bool(vmx.get("cpu_based_vm_exec_control") & CPU_BASED_ACTIVATE_SECONDARY_CONTROLS)


def _vmx_control_verify(vcpu: Vcpu, name: str) -> bool:
    value, controls = vcpu.vmx.get(name), CONTROLS[name]
    absent = _not_offered(vcpu) if name == "secondary_vm_exec_control" else 0
    offered = (controls.always | sum(1 << bit for bit in controls.offered)) & ~absent
    # The default1 settings of CR3 accesses may be 0 (SDM 3, A.3.2), so they are among the offered.
    defaults = value & controls.always
    return not value & ~offered and defaults in (0, controls.always)


def _not_offered(vcpu: Vcpu) -> int:
    """Secondary controls that this host does not offer: those around EPT, and PML without A/D bits."""
    if not vcpu.kvm.config.tdp:
        return SECONDARY_EXEC_ENABLE_EPT | SECONDARY_EXEC_UNRESTRICTED_GUEST | SECONDARY_EXEC_ENABLE_PML
    return 0 if vcpu.kvm.fmt.ad_enabled else SECONDARY_EXEC_ENABLE_PML


def _execution_control_failures(vcpu: Vcpu) -> Iterator[bool]:
    """Yield whether each check of ``nested_check_vm_execution_controls`` up to the VPID fails."""
    vmx = vcpu.vmx
    pin = vmx.get("pin_based_vm_exec_control")
    ept = vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT)
    yield bool(vmx.get("cr3_target_count"))
    yield bool(pin & PIN_BASED_VIRTUAL_NMIS and not pin & PIN_BASED_NMI_EXITING)
    window = vmx.get("cpu_based_vm_exec_control") & CPU_BASED_NMI_WINDOW_EXITING
    yield bool(window and not pin & PIN_BASED_VIRTUAL_NMIS)
    pml = vmx.has_secondary(SECONDARY_EXEC_ENABLE_PML)
    yield pml and not (ept and page_address_valid(vcpu, vmx.get("pml_address")))
    yield vmx.has_secondary(SECONDARY_EXEC_UNRESTRICTED_GUEST) and not ept
    yield vmx.has_secondary(SECONDARY_EXEC_ENABLE_VPID) and not vmx.get("virtual_processor_id")


def _ept_controls_valid(vcpu: Vcpu) -> bool:
    """Check the EPT pointer and the list of pointers that L2 may switch to."""
    vmx = vcpu.vmx
    ept = vmx.has_secondary(SECONDARY_EXEC_ENABLE_EPT)
    if ept and consistency_check(vcpu, not nested_vmx_check_eptp(vcpu, vmx.get("ept_pointer"))):
        return False
    if not vmx.has_secondary(SECONDARY_EXEC_ENABLE_VMFUNC):
        return True
    functions = vmx.get("vm_function_control")
    if consistency_check(vcpu, bool(functions & ~(1 if vcpu.kvm.config.tdp else 0))):
        return False
    usable = ept and page_address_valid(vcpu, vmx.get("eptp_list_address"))
    return not consistency_check(vcpu, bool(functions & 1) and not usable)


def check_host_state(vcpu: Vcpu) -> bool:
    """Check what L1 is to come back with (``nested_vmx_check_host_state``)."""
    return not _first_fails(vcpu, _host_state_failures(vcpu))


def _host_state_failures(vcpu: Vcpu) -> Iterator[bool]:
    vmx = vcpu.vmx
    exits, efer = vmx.get("vm_exit_controls"), vmx.get("host_ia32_efer")
    cr4, ia32e = vmx.get("host_cr4"), bool(exits & VM_EXIT_HOST_ADDR_SPACE_SIZE)
    yield ia32e != bool(vcpu.efer & EFER_LMA)
    yield not nested_host_cr0_valid(vmx.get("host_cr0"))
    yield not nested_cr4_valid(vcpu, cr4)
    yield bool(vmx.get("host_cr3") >> vcpu.cpu.maxphyaddr)
    for name in _SYSENTER:
        yield _is_noncanonical(vcpu, vmx.get(name))
    if ia32e:
        yield not cr4 & X86_CR4_PAE
    else:
        yield bool(vmx.get("vm_entry_controls") & VM_ENTRY_IA32E_MODE)
        yield bool(cr4 & X86_CR4_PCIDE)
        yield bool(vmx.get("host_rip") >> 32)
    selectors = {name: vmx.get(name) for name in _SELECTORS}
    if any(selectors.values()):
        yield any(selector & _RPL_AND_TI for selector in selectors.values())
        yield not selectors["host_cs_selector"] or not selectors["host_tr_selector"]
        yield not selectors["host_ss_selector"] and not ia32e
    for name in _BASES:
        yield _is_noncanonical(vcpu, vmx.get(name))
    if exits & VM_EXIT_LOAD_IA32_EFER:
        yield not kvm_valid_efer(vcpu.kvm.config, vcpu.cpu, efer)
        yield ia32e != bool(efer & EFER_LMA)
        yield ia32e != bool(efer & EFER_LME)


def _is_noncanonical(vcpu: Vcpu, address: int) -> bool:
    """Whether an address is not canonical by L1's CR4.LA57, whatever its mode (``vcpu_virt_addr_bits``)."""
    return not is_canonical(address, PAGING_5LEVEL if vcpu.cr4 & X86_CR4_LA57 else PAGING_4LEVEL)


def check_guest_state(vcpu: Vcpu) -> int | None:
    """Check L2's state (``nested_vmx_check_guest_state``).

    Returns
    -------
    int or None
        The qualification of the exit that L1 gets; None if all is right.
    """
    if _first_fails(vcpu, _guest_register_failures(vcpu)):
        return ENTRY_FAIL_DEFAULT
    if _first_fails(vcpu, _link_pointer_failures(vcpu)):
        return ENTRY_FAIL_VMCS_LINK_PTR
    return ENTRY_FAIL_DEFAULT if _first_fails(vcpu, _guest_mode_failures(vcpu)) else None


def _guest_register_failures(vcpu: Vcpu) -> Iterator[bool]:
    vmx = vcpu.vmx
    yield not nested_guest_cr0_valid(vcpu, vmx.get("guest_cr0"))
    yield not nested_cr4_valid(vcpu, vmx.get("guest_cr4"))
    if vmx.get("vm_entry_controls") & VM_ENTRY_LOAD_DEBUG_CONTROLS:
        yield bool(vmx.get("guest_dr7") >> 32)
        if vmx.get("guest_ia32_debugctl"):
            raise InputError("the VMCS loads IA32_DEBUGCTL; only 0 is modelled")


def _link_pointer_failures(vcpu: Vcpu) -> Iterator[bool]:
    """Yield the checks of the VMCS link pointer (``nested_vmx_check_vmcs_link_ptr``)."""
    pointer = vcpu.vmx.get("vmcs_link_pointer")
    if pointer in (0, (1 << 64) - 1):
        return
    yield not page_address_valid(vcpu, pointer)
    # Bit 31 of the revision says that it is a shadow VMCS, which belongs to VMCS shadowing.
    yield kvm_read_guest(vcpu, pointer, 4) != VMCS12_REVISION


def _guest_mode_failures(vcpu: Vcpu) -> Iterator[bool]:
    vmx = vcpu.vmx
    cr0, cr4, efer = vmx.get("guest_cr0"), vmx.get("guest_cr4"), vmx.get("guest_ia32_efer")
    entries = vmx.get("vm_entry_controls")
    ia32e = bool(entries & VM_ENTRY_IA32E_MODE)
    yield bool(cr0 & X86_CR0_PG and not cr0 & X86_CR0_PE)
    yield ia32e and not cr4 & X86_CR4_PAE
    yield ia32e and not cr0 & X86_CR0_PG
    if entries & VM_ENTRY_LOAD_IA32_EFER:
        yield not kvm_valid_efer(vcpu.kvm.config, vcpu.cpu, efer)
        yield ia32e != bool(efer & EFER_LMA)
        yield bool(cr0 & X86_CR0_PG) and ia32e != bool(efer & EFER_LME)
    yield vmx.get("guest_activity_state") not in GUEST_ACTIVITY_STATES
