"""How each vendor's KVM tells of an exit in its trace, and what recordings have of that.

Source: Linux 6.1 and 6.12 ``arch/x86/include/uapi/asm/svm.h`` (``SVM_EXIT_*``),
``vmx.h`` (``EXIT_REASON_*``), ``arch/x86/kvm/vmx/vmx.c`` (``vmx_get_exit_info``)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mmulab import events as ev
from mmulab.kvm.svm.nested import SVM_EXITS
from mmulab.kvm.vmx.nested import EXIT_REASONS

__all__ = ["EXITS", "Exits", "svm_exit_name", "vmx_exit_name"]

Raw = dict[str, Any]

_VALID = 1 << 31
_OTHER_SVM_EXITS = {
    0x46: "ud",
    0x4D: "gp",
    0x51: "ac",
    0x52: "mc",
    0x61: "nmi",
    0x64: "vintr",
    0x6E: "rdtsc",
    0x72: "cpuid",
    0x78: "hlt",
    0x7A: "invlpga",
}
_SVM_NAMES = {number: name for name, number in SVM_EXITS.items()} | _OTHER_SVM_EXITS
_OTHER_VMX_EXITS = {
    0: "exception",
    7: "intr_window",
    8: "nmi_window",
    9: "task_switch",
    10: "cpuid",
    12: "hlt",
    13: "invd",
    15: "rdpmc",
    16: "rdtsc",
    22: "vmptrst",
    23: "vmread",
    26: "vmxoff",
    29: "dr",
    31: "rdmsr",
    33: "invalid_state",
    34: "msr_load_fail",
    36: "mwait",
    37: "mtf",
    39: "monitor",
    40: "pause",
    43: "tpr",
    44: "apic_access",
    46: "gdtr_idtr",
    47: "ldtr_tr",
    51: "rdtscp",
    54: "wbinvd",
    55: "xsetbv",
    57: "rdrand",
}
_VMX_NAMES = {number: name for name, number in EXIT_REASONS.items()} | _OTHER_VMX_EXITS
_EXCEPTIONS = {1: "db", 2: "nmi", 3: "bp", 6: "ud", 8: "df", 13: "gp", 14: "pf", 17: "ac", 18: "mc"}
_BASIC, _FAILED_ENTRY = 0xFFFF, 1 << 31
_WITH_QUALIFICATION = ("ept_violation", "cr", "ioio", "invlpg", "invpcid")


class Exits(NamedTuple):
    """What a vendor's exits are in a recording.

    Attributes
    ----------
    is_hosts : callable
        Whether an exit, by its code, is no doing of the guest: it has to do with time, and is left out.
    exit, nested_exit, injected : callable
        ``kvm_exit``, ``kvm_nested_vmexit`` and ``kvm_nested_vmexit_inject`` from their fields.
    """

    is_hosts: Callable[[int], bool]
    exit: Callable[[Raw], ev.Event]
    nested_exit: Callable[[Raw], ev.Event]
    injected: Callable[[Raw], ev.Event]


def svm_exit_name(code: int) -> str:
    """Return how ``kvm_exit`` prints an exit of SVM, in lower case, or the number.

    >>> svm_exit_name(0x4E), svm_exit_name(0x13), svm_exit_name(0x999)
    ('pf', 'write_cr3', '0x999')
    """
    if code < 0x20:
        return f"{'write' if code & 0x10 else 'read'}_cr{code & 0xF}"
    return _SVM_NAMES.get(code, hex(code))


def _svm_exit(raw: Raw) -> ev.Event:
    reason = svm_exit_name(raw["exit_reason"])
    is_fault, info = reason in ("pf", "npf"), (raw["info1"], raw["info2"])
    return ev.kvm_exit(
        reason,
        raw["guest_rip"],
        error_code=info[0] if is_fault else None,
        address=info[1] if is_fault else None,
        qualification=info[0] if reason in ("ioio", "msr") else None,
        idt_vectoring=raw["intr_info"] if raw["intr_info"] & _VALID else None,
    )


def _svm_nested_exit(raw: Raw) -> ev.Event:
    return ev.kvm_nested_vmexit(svm_exit_name(raw["exit_reason"]), raw["info1"], raw["info2"])


def _svm_injected(raw: Raw) -> ev.Event:
    name = svm_exit_name(raw["exit_code"])
    return ev.kvm_nested_vmexit_inject(name, raw["exit_info1"], raw["exit_info2"])


def vmx_exit_name(code: int, interrupt: int) -> str:
    """Return the name of an exit of VMX: the exception's of one by an exception, or the number.

    >>> vmx_exit_name(48, 0), vmx_exit_name(0, 0x80000B0E), vmx_exit_name(0x80000021, 0)
    ('ept_violation', 'pf', 'invalid_state!entry_failed')
    """
    basic = code & _BASIC
    if not basic and interrupt & _VALID:
        return _EXCEPTIONS.get(interrupt & 0xFF, f"exc{interrupt & 0xFF}")
    return _VMX_NAMES.get(basic, hex(basic)) + ("!entry_failed" if code & _FAILED_ENTRY else "")


def _vmx_exit(raw: Raw) -> ev.Event:
    reason = vmx_exit_name(raw["exit_reason"], raw["intr_info"])
    is_fault = reason == "pf"
    return ev.kvm_exit(
        reason,
        raw["guest_rip"],
        error_code=raw["error_code"] if is_fault else None,
        address=raw["info1"] if is_fault else None,
        qualification=raw["info1"] if reason in _WITH_QUALIFICATION else None,
        idt_vectoring=raw["info2"] if raw["info2"] & _VALID else None,
    )


def _interrupt(info: int, error_code: int) -> tuple[int | None, int | None]:
    return (info, error_code) if info & _VALID else (None, None)


def _vmx_nested_exit(raw: Raw) -> ev.Event:
    name = vmx_exit_name(raw["exit_reason"], raw["intr_info"])
    interrupt = _interrupt(raw["intr_info"], raw["error_code"])
    return ev.kvm_nested_vmexit(name, raw["info1"], raw["info2"], *interrupt)


def _vmx_injected(raw: Raw) -> ev.Event:
    name = vmx_exit_name(raw["exit_code"], raw["exit_int_info"])
    interrupt = _interrupt(raw["exit_int_info"], raw["exit_int_info_err"])
    return ev.kvm_nested_vmexit_inject(name, raw["exit_info1"], raw["exit_info2"], *interrupt)


_SVM_INTERRUPT = 0x60
_VMX_INTERRUPT, _PREEMPTION_TIMER = 1, 52

EXITS: dict[str, Exits] = {
    "amd": Exits(lambda code: code == _SVM_INTERRUPT, _svm_exit, _svm_nested_exit, _svm_injected),
    "intel": Exits(
        lambda code: code & _BASIC in (_VMX_INTERRUPT, _PREEMPTION_TIMER),
        _vmx_exit,
        _vmx_nested_exit,
        _vmx_injected,
    ),
}
"""By the host's vendor."""
