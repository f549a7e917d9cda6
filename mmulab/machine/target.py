"""The instruction that lies where a jump, or an SMI, has led.

Targets are pages of NOPs, but the guest may have used one as a table and cleared
it, or the page may be another one than it was.
"""

from __future__ import annotations

from mmulab.errors import InputError
from mmulab.machine.stubs import SMI_PORT
from mmulab.memory.host import HostMemory
from mmulab.x86.insn import Instruction, Mnemonic, decode

_BYTES = 4
SMI_OUT = bytes([0xE6, SMI_PORT])
"""``out %al, $0xfb``."""


def fetch_target(
    memory: HostMemory, insn: Instruction, hpa: int, *, real_mode: bool, stepped: bool = True
) -> Instruction:
    """Return what lies at `hpa`, where `insn` says that a NOP is.

    Parameters
    ----------
    real_mode : bool
        Code of 16 bits, of which the first instruction of an SMI's handler is known.
    stepped : bool
        The VMM single-steps it. If not, only an OUT brings the VMM back.

    Raises
    ------
    InputError
        It is not modelled.
    """
    rip = insn.rip or 0
    code = bytes(memory.bytes[hpa : min(hpa + _BYTES, (hpa | 0xFFF) + 1)])
    found = decode(rip, code)
    wanted = "a NOP (90)"
    if not stepped:
        found = Instruction(Mnemonic.OUT, rip, SMI_OUT) if code.startswith(SMI_OUT) else None
        wanted = f"OUT to port {SMI_PORT:#x} ({SMI_OUT.hex()})"
    elif real_mode and found is not None and found.mnemonic is not Mnemonic.NOP:
        found = None
    if found is None:
        at = insn.base + rip
        raise InputError(f"instruction at {at:#x}: bytes {code.hex()} are not modelled; put {wanted} there")
    found.base = insn.base
    return found
