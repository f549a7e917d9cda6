"""What an instruction does to its memory operand, once it is known where that lies."""

from __future__ import annotations

from mmulab.machine.op import Outcome
from mmulab.memory.host import HostMemory
from mmulab.x86.insn import WRITES_MEMORY, Instruction, Mnemonic


def perform(
    insn: Instruction, memory: HostMemory, pieces: list[tuple[int, int, int]], outcome: Outcome
) -> None:
    """Read the operand, write it if the instruction does, and put registers and flags into `outcome`.

    Parameters
    ----------
    insn : Instruction
    memory : HostMemory
    pieces : list of (hpa, size, shift)
        Where the operand lies; more than one if it crosses pages.
    outcome : Outcome
    """
    outcome.hpa = pieces[0][0]
    old = 0
    for hpa, size, shift in pieces:
        old |= memory.read(hpa, size) << shift
    value = insn.value
    if insn.mnemonic is not Mnemonic.STORE:
        outcome.rax = old
    if insn.mnemonic is Mnemonic.CMPXCHG8B:
        outcome.zf = int(old == insn.old)
        outcome.rax = old & 0xFFFFFFFF
        value = insn.value if outcome.zf else old
    elif insn.mnemonic is Mnemonic.ADD:
        outcome.rax = insn.value
        value = (old + insn.value) & 0xFF
    if insn.mnemonic in WRITES_MEMORY:
        for hpa, size, shift in pieces:
            memory.write(hpa, size, value >> shift & ((1 << 8 * size) - 1))
