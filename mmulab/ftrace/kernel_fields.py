"""The model's events with the fields that the kernel's tracepoints have.

What a model's event does not carry (the interrupt control of a nested entry, say) is 0, as on a host where
it is not set; what KVM prints and the model does not know at all (the emulator's mode) is left out.

Source: Linux 6.1 ``arch/x86/kvm/trace.h``, ``vmx_get_exit_info`` and ``svm_get_exit_info``,
``arch/x86/include/uapi/asm/vmx.h`` and ``svm.h`` (the reasons' names)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmulab import events as ev
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.mmu_internal import RetPf
from mmulab.kvm.spte import is_writable_pte

Fields = dict[str, Any]

SVM_REASONS = {
    "pf": "PF excp",
    "db": "DB excp",
    "ud": "UD excp",
    "gp": "GP excp",
    "ioio": "io",
    "vmmcall": "hypercall",
}
"""``SVM_EXIT_REASONS`` where they are not the model's names."""
VMX_REASONS = {
    "pf": "EXCEPTION_NMI",
    "db": "EXCEPTION_NMI",
    "ud": "EXCEPTION_NMI",
    "gp": "EXCEPTION_NMI",
    "cr": "CR_ACCESS",
    "write_cr0": "CR_ACCESS",
    "write_cr3": "CR_ACCESS",
    "write_cr4": "CR_ACCESS",
    "ioio": "IO_INSTRUCTION",
    "msr": "MSR_WRITE",
    "wrmsr": "MSR_WRITE",
    "rdmsr": "MSR_READ",
    "vmxon": "VMON",
    "vmxoff": "VMOFF",
}
"""``VMX_EXIT_REASONS`` where they are not the model's names in capitals."""
INTR_INFO = {"pf": 0x80000B0E, "db": 0x80000301, "ud": 0x80000306}
"""VM-exit interruption information: hardware exceptions, that of vector 14 with an error code."""


def kernel_fields(event: ev.Event, kernel: Kernel, vendor: str, vcpu: int) -> Fields:
    """Return an event's fields by the kernel's names, a role as the kernel words it.

    Parameters
    ----------
    event : Event
    kernel : Kernel
    vendor : str
        The host's: ``amd`` or ``intel``.
    vcpu : int
    """
    fields = dict(event._asdict())
    if type(event) in _BY_VENDOR:
        fields = _BY_VENDOR[type(event)](event, vendor)
    elif type(event) in _CHANGES:
        fields |= _CHANGES[type(event)](event)
    elif isinstance(event, ev.kvm_inj_exception) and event.error_code is None:
        del fields["error_code"]
    if hasattr(event, "role"):
        fields["role"] = kernel.design.facts(fields["role"]).trace_str()
    return {"vcpu_id": vcpu, **fields}


def _exit(e: ev.kvm_exit, vendor: str) -> Fields:
    intel = vendor == "intel"
    if intel:  # the address of a #PF is the exit's qualification (``vmx_get_exit_info``)
        info1 = e.address if e.reason == "pf" else e.qualification
        infos = (info1, e.idt_vectoring, INTR_INFO.get(e.reason), e.error_code)
    else:  # EXITINFO1 is the error code of a fault, EXITINFO2 its address (``svm_get_exit_info``)
        info1 = e.qualification if e.error_code is None else e.error_code
        infos = (info1, e.address, e.idt_vectoring, None)
    return {"reason": exit_reason(e.reason, vendor), "guest_rip": e.guest_rip, **_infos(*infos)}


def _nested_exit(e: ev.kvm_nested_vmexit, vendor: str) -> Fields:
    infos = _infos(e.exit_info1, e.exit_info2, e.exit_int_info, e.exit_int_info_err)
    return {"reason": exit_reason(e.reason, vendor), "guest_rip": 0, **infos}


def _infos(info1: int | None, info2: int | None, intr_info: int | None, error_code: int | None) -> Fields:
    values = {"info1": info1, "info2": info2, "intr_info": intr_info, "error_code": error_code}
    return {name: value or 0 for name, value in values.items()}


def _nested_inject(e: ev.kvm_nested_vmexit_inject, vendor: str) -> Fields:
    known = {name: value or 0 for name, value in e._asdict().items()}
    return known | {"reason": exit_reason(e.reason, vendor)}


def _nested_enter(e: ev.kvm_nested_vmenter, vendor: str) -> Fields:
    intel = vendor == "intel"
    nested = "nested_eptp" if intel else "nested_cr3"
    return {
        "rip": 0,
        "block": "vmcs" if intel else "vmcb",
        "vmcb": e.vmcb,
        "nested_rip": e.nested_rip,
        "int_ctl": 0,
        "event_inj": 0,
        "tdp": "ept" if intel else "npt",
        "tdp_enabled": e.tdp,
        "pgd": nested if e.tdp else "guest_cr3",
        "guest_pgd": e.nested_pgd,
    }


def exit_reason(reason: str, vendor: str) -> str:
    """Return a model's reason of an exit as the kernel of a vendor's host prints it.

    >>> exit_reason("vmxon", "intel"), exit_reason("vmmcall", "amd"), exit_reason("ept_violation", "intel")
    ('VMON', 'hypercall', 'EPT_VIOLATION')
    """
    if vendor == "intel":
        return VMX_REASONS.get(reason, reason.upper())
    return SVM_REASONS.get(reason, reason)


_BY_VENDOR: Mapping[type, Callable[[Any, str], Fields]] = {
    ev.kvm_exit: _exit,
    ev.kvm_nested_vmexit: _nested_exit,
    ev.kvm_nested_vmexit_inject: _nested_inject,
    ev.kvm_nested_vmenter: _nested_enter,
}


def _used(e: Any) -> Fields:
    return {"used": e.dirty_index - e.reset_index}


_CHANGES: Mapping[type, Callable[[Any], Fields]] = {
    ev.fast_page_fault: lambda e: {
        "sptep": max(e.sptep, 0),
        "spurious": int(e.ret == RetPf.SPURIOUS),
        "fixed": int(e.ret == RetPf.FIXED),
    },
    ev.check_mmio_spte: lambda e: {"valid": int(e.kvm_gen == e.spte_gen)},
    ev.kvm_mmu_set_spte: lambda e: {"w": is_writable_pte(e.spte)},
    ev.kvm_emulate_insn: lambda e: {
        "csbase": 0,
        "insn": " ".join(e.insn[i : i + 2] for i in range(0, len(e.insn), 2)),
    },
    ev.kvm_dirty_ring_push: _used,
    ev.kvm_dirty_ring_reset: _used,
}
"""Fields that the kernel has and the model's event tells otherwise."""
