"""Exits that are not page faults: which instructions leave the guest, and what KVM does then."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.emulate import Verdict
from mmulab.kvm.exits import (
    NestedExit,
    handle_instruction,
    handle_nested_page_fault,
    kvm_handle_page_fault,
    trace_page_fault_exit,
)
from mmulab.kvm.inject import GP_VECTOR
from mmulab.machine.config import HostConfig
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.pferr import (
    ACC_ALL,
    ACC_WRITE_MASK,
    PF_VECTOR,
    PFERR_FETCH_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.regs import (
    EFER_NX,
    X86_CR0_CD,
    X86_CR0_PG,
    X86_CR0_TS,
    X86_CR0_WP,
    X86_CR4_PGE,
    X86_CR4_SMAP,
)
from tests.kvm.guest import DATA, GVA, Guest

MSR_EFER = 0xC0000080


def on(vendor: str, mode: str = "64", **host: bool) -> Guest:
    config = HostConfig(vendor=vendor, **host)
    guest = Guest(mode, host=config)
    if mode != "np":
        guest.map(GVA, DATA)
    guest.enter()
    return guest


def mov_cr(register: int, value: int) -> Instruction:
    return Instruction(Mnemonic.MOV_CR, value=value, register=register)


def exit_of(guest: Guest, insn: Instruction) -> tuple[Verdict | None, list[ev.kvm_exit]]:
    with guest.watch() as seen:
        verdict = handle_instruction(guest.vcpu, insn, cs_l=True)
    return verdict, [e for e in seen if isinstance(e, ev.kvm_exit)]


# MOV to CR --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "mode", "flip", "reason"),
    [
        ("amd", "64", 0, None),
        ("amd", "64", X86_CR0_TS, None),
        ("amd", "64", X86_CR0_CD, "cr0_sel_write"),
        ("amd", "np", X86_CR0_TS, "write_cr0"),
        ("intel", "64", 0, None),
        ("intel", "64", X86_CR0_TS, None),
        ("intel", "64", X86_CR0_CD, "cr"),
        ("intel", "np", X86_CR0_TS, None),
    ],
)
def test_which_write_of_cr0_leaves_the_guest(vendor: str, mode: str, flip: int, reason: str | None) -> None:
    """SVM: none but the selective intercept while the guest's CR0 is the real one; VMX: by owned bits."""
    guest = on(vendor, mode)
    guest.vcpu.cr0 &= ~X86_CR0_CD
    verdict, exits = exit_of(guest, mov_cr(0, guest.vcpu.cr0 ^ flip))
    assert [e.reason for e in exits] == ([reason] if reason else [])
    assert (verdict is None) == (reason is None)


@pytest.mark.parametrize(("tdp", "flip", "exits"), [(False, X86_CR0_WP, 1), (True, X86_CR0_WP, 0)])
def test_with_ept_the_guest_owns_wp(tdp: bool, flip: int, exits: int) -> None:
    guest = on("intel", tdp=tdp)
    assert len(exit_of(guest, mov_cr(0, guest.vcpu.cr0 ^ flip))[1]) == exits


@pytest.mark.parametrize(
    ("vendor", "tdp", "flip", "exits"),
    [
        ("amd", False, 0, 1),
        ("intel", False, 0, 0),
        ("intel", False, X86_CR4_PGE, 1),
        ("intel", True, X86_CR4_PGE, 0),
        ("intel", True, X86_CR4_SMAP, 1),
    ],
)
def test_which_write_of_cr4_leaves_the_guest(vendor: str, tdp: bool, flip: int, exits: int) -> None:
    guest = on(vendor, tdp=tdp)
    assert len(exit_of(guest, mov_cr(4, guest.vcpu.cr4 ^ flip))[1]) == exits


@pytest.mark.parametrize("vendor", ["amd", "intel"])
def test_cr3_leaves_the_guest_only_without_two_dimensional_paging(vendor: str) -> None:
    assert len(exit_of(on(vendor), mov_cr(3, 0x100000))[1]) == 1
    assert exit_of(on(vendor, tdp=True), mov_cr(3, 0x100000)) == (None, [])


def test_amd_without_decode_assists_fetches_the_opcode() -> None:
    """The VMM is told nothing of operands, so KVM emulates; Intel's exits say it all."""
    insn = Instruction(Mnemonic.MOV_CR, rip=GVA, code=b"\x0f\x22\xd8", value=0x100000, register=3)
    for vendor, walks in (("amd", 1), ("intel", 0)):
        guest = on(vendor)
        with guest.watch() as seen:
            assert handle_instruction(guest.vcpu, insn, cs_l=True) is Verdict.DONE
        assert sum(isinstance(e, ev.kvm_mmu_pagetable_walk) for e in seen) == walks
        assert any(isinstance(e, ev.kvm_cr) for e in seen) == (vendor == "intel")


def test_a_fault_on_the_opcode_of_an_intercepted_instruction_goes_to_the_guest() -> None:
    """``emulate_on_interception`` emulates with type 0: it skips nothing, so the fetch's #PF is injected."""
    guest = on("amd")
    guest.vcpu.last_retry_eip = guest.vcpu.last_retry_addr = GVA
    insn = Instruction(Mnemonic.MOV_CR, rip=GVA + 0x1000, code=b"\x0f\x22\xd8", value=0x200000, register=3)
    assert handle_instruction(guest.vcpu, insn, cs_l=True) is Verdict.RESUME
    assert guest.vcpu.exception == (PF_VECTOR, PFERR_FETCH_MASK, GVA + 0x1000)
    assert guest.vcpu.cr3 != 0x200000
    insn = Instruction(Mnemonic.INVLPG, rip=GVA, code=b"\x0f\x01\x3b", gva=GVA)
    assert handle_instruction(guest.vcpu, insn, cs_l=True) is Verdict.DONE
    assert (guest.vcpu.last_retry_eip, guest.vcpu.last_retry_addr) == (0, 0)


@pytest.mark.parametrize("vendor", ["amd", "intel"])
def test_a_value_that_is_not_allowed_is_a_general_protection_fault(vendor: str) -> None:
    guest = on(vendor)
    verdict, _ = exit_of(guest, mov_cr(0, guest.vcpu.cr0 & ~X86_CR0_PG))
    assert verdict is Verdict.RESUME
    assert guest.vcpu.exception == (GP_VECTOR, 0, None)


# INVLPG and WRMSR ----------------------------------------------------------------------------


@pytest.mark.parametrize(("vendor", "qualification"), [("amd", None), ("intel", GVA)])
def test_invlpg_is_served(vendor: str, qualification: int | None) -> None:
    guest = on(vendor)
    verdict, exits = exit_of(guest, Instruction(Mnemonic.INVLPG, gva=GVA))
    assert verdict is Verdict.DONE
    assert exits == [ev.kvm_exit("invlpg", 0, qualification=qualification)]
    assert guest.vcpu.stat["invlpg"] == 1
    assert exit_of(on(vendor, tdp=True), Instruction(Mnemonic.INVLPG, gva=GVA)) == (None, [])


@pytest.mark.parametrize(("vendor", "reason"), [("amd", "msr"), ("intel", "wrmsr")])
def test_wrmsr_writes_before_it_is_skipped(vendor: str, reason: str) -> None:
    guest = on(vendor)
    value = guest.vcpu.efer & ~EFER_NX
    insn = Instruction(Mnemonic.WRMSR, value=value, register=MSR_EFER)
    with guest.watch() as seen:
        assert handle_instruction(guest.vcpu, insn, cs_l=True) is Verdict.DONE
    assert seen[0].reason == reason
    assert ev.kvm_msr(True, MSR_EFER, value, False) in seen
    assert guest.vcpu.efer == value


def test_a_bad_msr_value_is_reported_and_faults() -> None:
    guest = on("amd")
    insn = Instruction(Mnemonic.WRMSR, value=1 << 16, register=MSR_EFER)
    with guest.watch() as seen:
        assert handle_instruction(guest.vcpu, insn, cs_l=True) is Verdict.RESUME
    assert ev.kvm_msr(True, MSR_EFER, 1 << 16, True) in seen
    assert guest.vcpu.exception == (GP_VECTOR, 0, None)


# Page faults -----------------------------------------------------------------------------------


def test_a_fault_during_delivery_unprotects_its_page_first() -> None:
    """The push may go to a page that KVM takes for a table."""
    guest = on("amd")
    window = GVA + 0x1000
    guest.map(window, guest.table(GVA, 2))
    guest.read(GVA)
    guest.read(window)
    code = PFERR_PRESENT_MASK | PFERR_WRITE_MASK
    with guest.watch() as seen:
        kvm_handle_page_fault(guest.vcpu, window, code, Instruction(Mnemonic.NOP), reinjection=True)
    assert seen[0] == ev.kvm_page_fault(guest.vcpu.rip, window, code)
    assert ev.kvm_mmu_unprotect_page(guest.table(GVA, 2) >> 12) in seen


def test_the_exit_of_a_page_fault() -> None:
    guest = on("amd")
    with guest.watch() as seen:
        trace_page_fault_exit(guest.vcpu, GVA, 5, 0x80000B0E)
    assert seen == [ev.kvm_exit("pf", guest.vcpu.rip, 5, GVA, None, 0x80000B0E)]


# Two-dimensional paging ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "qualification"),
    [
        (NestedExit(DATA, 0, PFERR_USER_MASK, True, 0), 0x181),
        (NestedExit(DATA, 0, PFERR_WRITE_MASK, True, 5), 0x1AA),
        (NestedExit(DATA, 0, PFERR_FETCH_MASK, True, 0), 0x184),
        (NestedExit(DATA, 0, PFERR_USER_MASK | PFERR_WRITE_MASK, False, 0), 0x083),
        (NestedExit(DATA, 0, PFERR_USER_MASK, True, 0, None), 0x101),
        (NestedExit(DATA, 0, PFERR_USER_MASK, True, 0, guest_access=ACC_ALL), 0x781),
        (NestedExit(DATA, 0, PFERR_USER_MASK, True, 0, guest_access=ACC_WRITE_MASK), 0xD81),
    ],
)
def test_an_ept_violation_tells_the_access(told: NestedExit, qualification: int) -> None:
    """SDM 3, table 28-7; 0x83 is a walk of guest tables under EPT's A/D bits."""
    assert told.qualification() == qualification


@pytest.mark.parametrize(("final", "code"), [(True, 0x100000000), (False, 0x200000000)])
def test_an_npt_fault_tells_what_was_translated(final: bool, code: int) -> None:
    guest = on("amd", tdp=True)
    told = NestedExit(DATA, PFERR_USER_MASK, PFERR_USER_MASK, final, 0)
    with guest.watch() as seen:
        verdict = handle_nested_page_fault(guest.vcpu, told, Instruction(Mnemonic.NOP), idt_vectoring=None)
    assert verdict is Verdict.RESUME
    assert seen[0] == ev.kvm_exit("npf", 0, PFERR_USER_MASK | code, DATA)
    assert seen[1] == ev.kvm_page_fault(0, DATA, PFERR_USER_MASK | code)
    assert guest.kvm.stat["pages_4k"] >= 1


def test_a_misconfiguration_is_a_device_or_nothing() -> None:
    guest = on("intel", tdp=True)
    told = NestedExit(DATA, PFERR_RSVD_MASK, PFERR_USER_MASK, True, 0)
    with guest.watch() as seen:
        verdict = handle_nested_page_fault(guest.vcpu, told, Instruction(Mnemonic.NOP), idt_vectoring=None)
    assert [e.reason for e in seen if isinstance(e, ev.kvm_exit)] == ["ept_misconfig"]
    assert verdict is Verdict.RESUME
