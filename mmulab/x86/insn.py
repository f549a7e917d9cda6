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
    OUT = "out"


WRITES_MEMORY = (Mnemonic.STORE, Mnemonic.XCHG, Mnemonic.CMPXCHG8B)
"""Also the ones the kernel's emulator marks as usual for page tables (``PageTable``)."""
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
        Number of the control register, or of the MSR.
    """

    mnemonic: Mnemonic
    rip: int | None = None
    code: bytes = b""
    gva: int = 0
    size: int = 0
    value: int = 0
    old: int = 0
    register: int = 0
