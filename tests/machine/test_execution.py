"""One instruction from its fetch to its end: exits, retries, exceptions and their delivery."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.machine.execution import Execution
from mmulab.machine.op import Mode, OutcomeKind
from mmulab.machine.stubs import instruction_of
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.grammar import parse_step
from mmulab.scenario.helpers import (
    HANDLERS,
    HELPER_S,
    HELPER_U,
    IDT64,
    STUB_BYTES,
    STUBS,
    Stub,
)
from mmulab.scenario.runner import Result, run
from mmulab.x86.pferr import PF_VECTOR
from tests.kvm.guest import DATA, GVA, HOLE, NX, PAGE, D, Guest, P, U

TARGET = 0x40000000
RO = P | U | 0x60


def builder(mode: str = "64", **config: object) -> ScenarioBuilder:
    return ScenarioBuilder(mode, **config).root(0x10000).map(TARGET, 0x100000)


def last(b: ScenarioBuilder, *steps: str) -> Result:
    """Run steps and return what the last one did."""
    for step in steps:
        b.op(step)
    return run(b.build())[-2]


def stub(page: int, number: Stub) -> int:
    return page + STUBS + STUB_BYTES * number


def faults(result: Result) -> list[int]:
    return [e.fault_address for e in result.events if isinstance(e, ev.kvm_page_fault)]


# Instructions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "rip", "rax"),
    [
        (f"rd u {TARGET:x}", stub(HELPER_U, Stub.RD4) + 2, 0x90909090),
        (f"rd s 8 {TARGET:x}", stub(HELPER_S, Stub.RD8) + 3, 0x9090909090909090),
        (f"rd s 1 {TARGET:x}", stub(HELPER_S, Stub.RD1) + 2, 0x90),
        (f"wr s {TARGET:x} 1234", stub(HELPER_S, Stub.WR4) + 2, 0x1234),
        (f"xg s {TARGET:x} 1234", stub(HELPER_S, Stub.XCHG) + 2, 0x90909090),
        ("cr4 20", stub(HELPER_S, Stub.CR4) + 3, 0x20),
        ("efer d00", stub(HELPER_S, Stub.WRMSR) + 2, 0xD00),
        ("nop", stub(HELPER_S, Stub.NOP) + 1, 0),
        (f"xc u {TARGET:x}", TARGET + 1, 0),
    ],
)
def test_an_instruction_moves_on_and_leaves_its_result(step: str, rip: int, rax: int) -> None:
    outcome = last(builder(), step).outcome
    assert (outcome.kind, outcome.rip, outcome.rax) == (OutcomeKind.OK, rip, rax)


def test_the_fetch_comes_before_the_operand() -> None:
    assert faults(last(builder(), f"rd u {TARGET:x}")) == [stub(HELPER_U, Stub.RD4), TARGET]


def test_what_the_processor_executes_ends_in_a_single_step() -> None:
    executed = last(builder(), f"rd u {TARGET:x}")
    assert executed.events[-1] == ev.kvm_exit("db", executed.outcome.rip)
    emulated = last(builder(), "cr4 20")
    assert not any(isinstance(e, ev.kvm_exit) and e.reason == "db" for e in emulated.events)


def test_a_locked_comparison_tells_the_old_value_and_zf() -> None:
    b = builder().value(8, 0x100000, 0x1122334455667788)
    miss = last(b, f"cx s {TARGET:x} 5 6").outcome
    assert (miss.zf, miss.rax) == (0, 0x55667788)
    hit = last(b, f"cx s {TARGET:x} 1122334455667788 6", f"rd s 8 {TARGET:x}").outcome
    assert hit.rax == 6


@pytest.mark.parametrize(("quirk", "codes"), [(False, [2]), (True, [0, 2])])
def test_a_locked_access_is_a_write_unless_the_processor_reads_first(quirk: bool, codes: list[int]) -> None:
    b = builder().map(TARGET + 0x1000, 0x101000, RO & ~D | 2)
    if quirk:
        b.quirk("rmw_reads_first")
    result = last(b, "nop", f"xg s {TARGET + 0x1000:x} 7")
    found = [e.error_code & 2 for e in result.events if isinstance(e, ev.kvm_page_fault)]
    assert found[-len(codes) :] == codes


def test_an_operand_over_a_page_border_is_two_accesses() -> None:
    # The border is that of a prefetch group too, so that both pages fault.
    low, high = TARGET + 0x7000, TARGET + 0x8000
    b = builder().map(low, 0x107000).map(high, 0x105000)
    result = last(b, f"wr s {low + 0xFFE:x} 44332211")
    assert faults(result)[-2:] == [low + 0xFFE, high]
    assert last(b, f"rd s {high:x}").outcome.rax == 0x90904433


def test_the_second_half_faults_with_its_own_address() -> None:
    outcome = last(builder(), f"wr s {TARGET + 0xFFE:x} 44332211").outcome
    assert (outcome.kind, outcome.cr2) == (OutcomeKind.EXC, TARGET + 0x1000)


def test_a_page_whose_nop_was_overwritten_executes_what_lies_there() -> None:
    b = builder().value(4, 0x100000, 0)
    assert last(b, f"xc s {TARGET:x}").outcome.kind is OutcomeKind.EXC  # add %al, (%rax) at address 0
    strange = builder().value(4, 0x100000, 0xF4F4F4F4)
    with pytest.raises(InputError, match="bytes f4f4f4f4 are not modelled; put a NOP"):
        last(strange, f"xc s {TARGET:x}")


# Exceptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "step", "code"),
    [
        (PAGE & ~U, "rd u", 5),
        (RO, "wr u", 7),
        (RO, "wr s", 3),
        (PAGE | NX, "xc u", 0x15),
        (0, "rd s", 0),
    ],
)
def test_a_fault_of_the_guest_ends_in_its_handler(flags: int, step: str, code: int) -> None:
    page = TARGET + 0x1000
    step += f" {page:x}" + (" 1" if step.startswith("wr") else "")
    result = last(builder().map(page, 0x101000, flags), step)
    outcome = result.outcome
    assert outcome.kind is OutcomeKind.EXC
    assert (outcome.vector, outcome.error_code, outcome.cr2) == (PF_VECTOR, code, page)
    handler = HELPER_S + HANDLERS + 4 * PF_VECTOR
    assert result.events[-1].reason == "ioio"
    assert result.events[-1].guest_rip == handler
    faulting = page if step.startswith("xc") else outcome.rip
    assert outcome.rip == faulting


def test_delivery_reads_the_tables_and_writes_the_stack() -> None:
    """All lie in page S, so its first access by a supervisor is what faults."""
    result = last(builder(), "rd u 7000000")
    found = faults(result)
    assert found[:2] == [stub(HELPER_U, Stub.RD4), 0x7000000]
    assert found[2] == HELPER_S + IDT64 + 16 * PF_VECTOR
    assert all(HELPER_S <= address < HELPER_S + 0x1000 for address in found[2:])
    vectoring = [e.idt_vectoring for e in result.events if isinstance(e, ev.kvm_exit) and e.idt_vectoring]
    assert vectoring
    assert all(v == 0x80000B0E for v in vectoring)
    injected = [e.reinjected for e in result.events if isinstance(e, ev.kvm_inj_exception)]
    assert injected[0] is False
    assert all(injected[1:])


@pytest.mark.parametrize("step", ["cr4 20", "efer d00", "invlpg 1000", "cr3 10000"])
def test_a_user_may_not_execute_what_is_privileged(step: str) -> None:
    """The language has no such op: its privileged ones run at CPL 0."""
    guest = Guest("64")
    _, insn = instruction_of(parse_step(step, 1).op, None)
    outcome = Execution(guest.machine.config, guest.machine.processor, guest.vcpu, Mode.USER).run(insn)
    assert (outcome.kind, outcome.vector) == (OutcomeKind.EXC, 13)


def test_an_address_that_is_not_canonical_is_a_general_protection_fault() -> None:
    outcome = last(builder(), "rd s 8000000000000000").outcome
    assert (outcome.kind, outcome.vector, outcome.error_code) == (OutcomeKind.EXC, 13, 0)
    assert last(builder("57"), "rd s ffff000000000000").outcome.vector == PF_VECTOR


# The VMM's part ---------------------------------------------------------------------------------


@pytest.mark.parametrize("vendor", ["amd", "intel"])
def test_a_device_access_ends_with_the_vmm(vendor: str) -> None:
    b = ScenarioBuilder("64", vendor=vendor).root(0x10000).map(TARGET, HOLE)
    result = last(b, f"wr s {TARGET:x} 77")
    assert result.outcome.mmio is not None
    assert [(m.write, m.gpa, m.size, m.value) for m in result.outcome.mmio] == [(True, HOLE, 4, 0x77)]
    assert ev.kvm_mmio("write", 4, HOLE) in result.events
    assert result.outcome.rip == stub(HELPER_S, Stub.WR4) + 2


def test_an_opcode_in_no_memory_is_an_internal_error_for_the_kernel_only() -> None:
    b = ScenarioBuilder("64").root(0x10000).map(TARGET, HOLE)
    assert last(b, f"xc s {TARGET:x}").outcome.kind is OutcomeKind.INTERNAL_ERROR
    outcome = last(ScenarioBuilder("64").root(0x10000).map(TARGET, HOLE), f"xc u {TARGET:x}").outcome
    assert (outcome.kind, outcome.vector) == (OutcomeKind.EXC, 6)


def test_a_root_in_no_memory_is_a_shutdown() -> None:
    results = run(builder().op(f"cr3 {HOLE:x}").op("nop").op("nop").build())
    assert [r.outcome.kind for r in results[1:-1]] == [OutcomeKind.OK, OutcomeKind.SHUTDOWN]


# Bare accesses -------------------------------------------------------------------------------------


def test_a_bare_access_has_no_fetch_and_tells_where_it_went() -> None:
    guest = Guest("64").map(GVA, DATA)
    with guest.watch() as seen:
        outcome = guest.fetch(GVA | 4)
    assert (outcome.kind, outcome.hpa) == (OutcomeKind.OK, guest.hpa(DATA) | 4)
    assert [e.error_code for e in seen if isinstance(e, ev.kvm_page_fault)] == [16]
    assert not any(isinstance(e, ev.kvm_emulate_insn) for e in seen)


def test_its_exception_is_told_without_delivery() -> None:
    guest = Guest("64").map(GVA, DATA, PAGE | NX)
    with guest.watch() as seen:
        outcome = guest.fetch(GVA, "u")
    assert (outcome.vector, outcome.error_code, outcome.cr2) == (PF_VECTOR, 0x15, GVA)
    assert outcome.rip is None
    assert sum(isinstance(e, ev.kvm_page_fault) for e in seen) == 1
    assert guest.vcpu.exception is None
