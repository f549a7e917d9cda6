"""VMCBs of the cases: whole ones, with which a real processor runs L2 too.

Of a VMCB the model reads what concerns paging. A processor also loads L2's segments and
descriptor tables from it, without which L2's first exception is a shutdown. They are those of the
helper pages, flat, as in the recordings.
"""

from __future__ import annotations

from mmulab.kvm.svm.nested import SVM_EXITS, SVM_NESTED_CTL_NP_ENABLE, VMCB
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
    TSS32,
    TSS64,
    VECTORS,
)
from mmulab.scenario.scenario import Regs
from mmulab.x86.regs import EFER_LMA, EFER_SVME, X86_EFLAGS_FIXED

__all__ = ["vmcb", "with_svme"]

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
