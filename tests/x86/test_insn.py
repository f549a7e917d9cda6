"""Decoding what lies at a page that was to hold a NOP."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.scenario.helpers import CODE, Stub
from mmulab.x86.insn import ENCODINGS, TOUCHES_MEMORY, WRITES_MEMORY, Mnemonic, decode


@pytest.mark.parametrize(
    ("stub", "mnemonic", "size"),
    [
        (Stub.RD1, Mnemonic.LOAD, 1),
        (Stub.RD4, Mnemonic.LOAD, 4),
        (Stub.RD8, Mnemonic.LOAD, 8),
        (Stub.WR1, Mnemonic.STORE, 1),
        (Stub.WR4, Mnemonic.STORE, 4),
        (Stub.WR8, Mnemonic.STORE, 8),
        (Stub.XCHG, Mnemonic.XCHG, 4),
        (Stub.NOP, Mnemonic.NOP, 0),
    ],
)
def test_the_stubs_own_code_is_known(stub: Stub, mnemonic: Mnemonic, size: int) -> None:
    code = bytes.fromhex(CODE[stub])
    found = decode(0x1800, code + b"\xcc\xcc")
    assert found is not None
    assert (found.mnemonic, found.size, found.rip, found.code) == (mnemonic, size, 0x1800, code)


def test_a_cleared_table_adds_to_memory() -> None:
    """Two bytes of 0 are ``add %al, (%rax)``, with RAX 0."""
    found = decode(0x5800, bytes(4))
    assert found is not None
    assert (found.mnemonic, found.code, found.gva, found.size) == (Mnemonic.ADD, b"\0\0", 0, 1)
    assert found.mnemonic in WRITES_MEMORY


@given(st.binary(min_size=1, max_size=4))
def test_what_is_decoded_begins_the_bytes(code: bytes) -> None:
    found = decode(0, code)
    if found is None:
        assert not any(code.startswith(known) for known in ENCODINGS)
    else:
        assert code.startswith(found.code)
        assert (found.size > 0) == (found.mnemonic in TOUCHES_MEMORY)


def test_no_encoding_hides_another() -> None:
    assert not [(a, b) for a in ENCODINGS for b in ENCODINGS if a != b and b.startswith(a)]
