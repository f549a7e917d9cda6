"""Memory operands of instructions that KVM executes without its emulator.

Source: Linux 6.1 ``arch/x86/kvm/x86.c`` (``kvm_read_guest_virt``,
``kvm_handle_memory_failure``).
"""

from __future__ import annotations

from mmulab.kvm.emulate import Verdict
from mmulab.kvm.guest_walk import gva_to_gpa, kvm_read_guest
from mmulab.kvm.inject import kvm_inject_emulated_page_fault
from mmulab.kvm.state import Vcpu


class NoOperandError(Exception):
    """The memory operand cannot be read; holds what becomes of the instruction."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def read_operand(vcpu: Vcpu, gva: int, words: int) -> list[int]:
    """Read a memory operand of CPL 0, 8-byte words within one page, by a walk of the guest's tables.

    Raises
    ------
    NoOperandError
        The walk faults, of which the guest is told, or it leads to a device.
    """
    gpa, fault = gva_to_gpa(vcpu, vcpu.walk_mmu, gva, 0)
    if gpa is None:
        assert fault is not None
        kvm_inject_emulated_page_fault(vcpu, fault)
        raise NoOperandError(Verdict.RESUME)
    values = [kvm_read_guest(vcpu, gpa + 8 * i, 8) for i in range(words)]
    read = [value for value in values if value is not None]
    if len(read) < words:
        raise NoOperandError(Verdict.FAILED)
    return read
