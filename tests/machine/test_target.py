"""What lies at the target of a jump or of an SMI."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.machine.target import SMI_OUT, fetch_target
from mmulab.memory.host import HostMemory
from mmulab.x86.insn import Instruction, Mnemonic

NOP, STORE = b"\x90", b"\x89\x03"
AT, BASE, RIP = 0x2000, 0x30000, 0x8000


def fetched(code: bytes, *, real_mode: bool = False, stepped: bool = True, at: int = AT) -> Instruction:
    memory = HostMemory(1 << 21, table_frames=8, align=1 << 21)
    memory.write(at, len(code), int.from_bytes(code, "little"))
    told = Instruction(Mnemonic.NOP, RIP, NOP, base=BASE)
    return fetch_target(memory, told, at, real_mode=real_mode, stepped=stepped)


def test_what_is_modelled_where() -> None:
    assert fetched(STORE).mnemonic is Mnemonic.STORE
    assert fetched(NOP, real_mode=True).mnemonic is Mnemonic.NOP
    out = fetched(SMI_OUT, real_mode=True, stepped=False)
    assert (out.mnemonic, out.code, out.rip, out.base) == (Mnemonic.OUT, SMI_OUT, RIP, BASE)


@pytest.mark.parametrize(
    ("code", "real_mode", "stepped", "wanted"),
    [
        (b"\xf4", False, True, "a NOP"),
        (STORE, True, True, "a NOP"),
        (SMI_OUT, True, True, "a NOP"),
        (NOP, True, False, "OUT to port 0xfb"),
        (b"\xe6\xfa", True, False, "OUT to port 0xfb"),
    ],
)
def test_what_is_refused_where(code: bytes, real_mode: bool, stepped: bool, wanted: str) -> None:
    with pytest.raises(InputError, match=f"instruction at 0x38000: bytes {code.hex()}.*; put {wanted}"):
        fetched(code, real_mode=real_mode, stepped=stepped)


def test_no_byte_of_the_next_page_is_taken() -> None:
    with pytest.raises(InputError, match="bytes 89 are not modelled"):
        fetched(STORE, at=AT + 0xFFF)
