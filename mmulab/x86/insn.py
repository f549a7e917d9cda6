"""The instructions that a vCPU executes, as far as paging sees them.

SDM 2. An instruction is one fetch and at most one data operand in memory; that
is all that the helper stubs of a scenario, or a replayed stream, need.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Mnemonic(Enum):
    """What an instruction does."""

    NOP = "nop"
    LOAD = "mov from memory"
    STORE = "mov to memory"
    XCHG = "xchg"
    CMPXCHG8B = "cmpxchg8b"
    MOV_CR = "mov to control register"
    WRMSR = "wrmsr"
    INVLPG = "invlpg"
    INVPCID = "invpcid"
    RSM = "rsm"
    OUT = "out"
    ADD = "add to memory"
    VMRUN = "vmrun"
    VMMCALL = "vmmcall"
    VMXON = "vmxon"
    VMPTRLD = "vmptrld"
    VMCLEAR = "vmclear"
    VMLAUNCH = "vmlaunch"
    VMRESUME = "vmresume"
    VMWRITE = "vmwrite"
    INVEPT = "invept"
    INVVPID = "invvpid"
    VMCALL = "vmcall"
    VMFUNC = "vmfunc"


VMX_INSTRUCTIONS = (
    Mnemonic.VMXON,
    Mnemonic.VMPTRLD,
    Mnemonic.VMCLEAR,
    Mnemonic.VMLAUNCH,
    Mnemonic.VMRESUME,
    Mnemonic.VMWRITE,
    Mnemonic.INVEPT,
    Mnemonic.INVVPID,
    Mnemonic.VMCALL,
    Mnemonic.VMFUNC,
)
WRITES_TABLES = (Mnemonic.STORE, Mnemonic.XCHG, Mnemonic.CMPXCHG8B)
"""What the kernel's emulator marks as usual for writing page tables (``PageTable``)."""
WRITES_MEMORY = (*WRITES_TABLES, Mnemonic.ADD)
TOUCHES_MEMORY = (Mnemonic.LOAD, *WRITES_MEMORY)


@dataclass(slots=True)
class Instruction:
    """One instruction with its operands.

    Attributes
    ----------
    mnemonic : Mnemonic
    rip : int or None
        Where it lies; None for an access of a stream, which has no fetch.
    code : bytes
        Its encoding.
    gva, size : int
        Memory operand.
    value : int
        Register operand; of ``cmpxchg8b`` the new value.
    old : int
        Expected value of ``cmpxchg8b``.
    register : int
        Number of the control register, or of the MSR; the second register operand of a VMX instruction.
    target : int or None
        Where a jump leads.
    lead : int
        Bytes of instructions in front that only the processor sees, and that lie in the same page.
    base : int
        Base of the code segment.
    """

    mnemonic: Mnemonic
    rip: int | None = None
    code: bytes = b""
    gva: int = 0
    size: int = 0
    value: int = 0
    old: int = 0
    register: int = 0
    target: int | None = None
    lead: int = 0
    base: int = 0


ENCODINGS: dict[bytes, tuple[Mnemonic, int]] = {
    b"\x90": (Mnemonic.NOP, 0),
    b"\x00\x00": (Mnemonic.ADD, 1),
    b"\x87\x03": (Mnemonic.XCHG, 4),
    b"\x88\x03": (Mnemonic.STORE, 1),
    b"\x89\x03": (Mnemonic.STORE, 4),
    b"\x8a\x03": (Mnemonic.LOAD, 1),
    b"\x8b\x03": (Mnemonic.LOAD, 4),
    b"\x48\x89\x03": (Mnemonic.STORE, 8),
    b"\x48\x8b\x03": (Mnemonic.LOAD, 8),
}
"""Instructions with an operand at (RAX) or (RBX), by their bytes: mnemonic and operand size."""


def decode(rip: int, code: bytes) -> Instruction | None:
    """Decode the bytes at `rip`, with RAX = RBX = 0; None if the encoding is not known here."""
    for length in range(1, 4):
        known = ENCODINGS.get(code[:length])
        if known is not None:
            return Instruction(known[0], rip, code[:length], size=known[1])
    return None
