"""The instructions behind guest ops, held against the helper pages of scenarios."""

from __future__ import annotations

import pytest

from mmulab.machine import op as ops
from mmulab.machine.config import Stubs
from mmulab.machine.op import Mode, Op
from mmulab.machine.stubs import delivery_accesses, handler_rip, instruction_of
from mmulab.scenario.helpers import (
    CODE,
    GDT,
    HANDLERS,
    HELPER_S,
    HELPER_U,
    IDT32,
    IDT64,
    STACK_TOP,
    STUB_BYTES,
    STUBS,
    TSS32,
    TSS64,
    Stub,
)
from mmulab.x86.insn import Mnemonic

PAGES = Stubs(HELPER_S, HELPER_U)
S, U = Mode.SUPERVISOR, Mode.USER
GVA = 0x40000000


def at(page: int, stub: Stub) -> int:
    return page + STUBS + STUB_BYTES * stub


@pytest.mark.parametrize(
    ("op", "page", "stub"),
    [
        (ops.Read(S, 4, GVA), HELPER_S, Stub.RD4),
        (ops.Read(U, 4, GVA), HELPER_U, Stub.RD4),
        (ops.Read(Mode.SUPERVISOR_AC, 8, GVA), HELPER_S, Stub.RD8),
        (ops.Read(U, 1, GVA), HELPER_U, Stub.RD1),
        (ops.Write(U, 4, GVA, 1), HELPER_U, Stub.WR4),
        (ops.Write(S, 8, GVA, 1), HELPER_S, Stub.WR8),
        (ops.Write(S, 1, GVA, 1), HELPER_S, Stub.WR1),
        (ops.Exchange(U, 4, GVA, 1), HELPER_U, Stub.XCHG),
        (ops.CompareExchange(S, 8, GVA, 1, 2), HELPER_S, Stub.CX8),
        (ops.WriteCr(3, 1), HELPER_S, Stub.CR3),
        (ops.WriteCr(0, 1), HELPER_S, Stub.CR0),
        (ops.WriteCr(4, 1), HELPER_S, Stub.CR4),
        (ops.WriteEfer(1), HELPER_S, Stub.WRMSR),
        (ops.Invlpg(GVA), HELPER_S, Stub.INVLPG),
        (ops.Nop(), HELPER_S, Stub.NOP),
        (ops.Sysexit(), HELPER_S, Stub.SYSEXIT),
        (ops.Sysenter(), HELPER_U, Stub.SYSENTER),
    ],
)
def test_an_op_is_the_instruction_at_its_stub(op: Op, page: int, stub: Stub) -> None:
    _, insn = instruction_of(op, PAGES)
    assert insn.rip == at(page, stub)
    assert insn.code.hex() == CODE[stub]
    bare = instruction_of(op, None)[1]
    assert bare.rip is None
    assert bare.mnemonic is insn.mnemonic


def test_operands_are_taken_over() -> None:
    mode, insn = instruction_of(ops.CompareExchange(U, 8, GVA, 5, 6), PAGES)
    assert mode is U
    assert (insn.mnemonic, insn.gva, insn.size) == (Mnemonic.CMPXCHG8B, GVA, 8)
    assert (insn.old, insn.value) == (5, 6)
    mode, insn = instruction_of(ops.WriteEfer(0x501), PAGES)
    assert (mode, insn.register, insn.value) == (S, 0xC0000080, 0x501)
    assert instruction_of(ops.WriteCr(4, 0x20), PAGES)[1].register == 4


def test_an_execute_is_a_nop_at_its_address() -> None:
    mode, insn = instruction_of(ops.Execute(U, GVA), PAGES)
    assert (mode, insn.mnemonic, insn.rip, insn.code) == (U, Mnemonic.NOP, GVA, b"\x90")


def test_a_change_of_privilege_leads_to_the_other_page() -> None:
    assert instruction_of(ops.Sysexit(), PAGES)[1].target == at(HELPER_U, Stub.NOP)
    assert instruction_of(ops.Sysenter(), PAGES)[1].target == at(HELPER_S, Stub.NOP)


def test_a_host_op_is_no_instruction() -> None:
    with pytest.raises(TypeError, match="GetDirtyLog is not an instruction"):
        instruction_of(ops.GetDirtyLog(0), PAGES)


@pytest.mark.parametrize("vector", [6, 13, 14])
@pytest.mark.parametrize("from_user", [False, True])
@pytest.mark.parametrize("long_mode", [False, True])
def test_delivery_goes_through_the_descriptor_tables(vector: int, from_user: bool, long_mode: bool) -> None:
    """The gate, the code segment, from CPL 3 the TSS, then the pushes (SDM 3, 6.12 and 6.14)."""
    found = delivery_accesses(PAGES, vector, long_mode=long_mode, from_user=from_user)
    idt, gate_bytes, tss = (IDT64, 16, TSS64) if long_mode else (IDT32, 8, TSS32)
    offsets = [(address - HELPER_S, write) for address, write in found]
    assert offsets[0] == (idt + gate_bytes * vector, False)
    assert GDT <= offsets[1][0] < IDT32
    assert offsets[-1] == (STACK_TOP - (8 if long_mode else 4), True)
    middle = offsets[2:-1]
    assert len(middle) == (1 if from_user else 0)
    assert all(tss <= offset < tss + 0x68 for offset, _ in middle)
    assert not any(write for _, write in offsets[:-1])


def test_each_vector_has_its_handler() -> None:
    assert [handler_rip(PAGES, v) for v in (0, 14)] == [HELPER_S + HANDLERS, HELPER_S + HANDLERS + 56]
