"""RSM for a vCPU by itself; what a guest sees of it is in ``tests/machine/test_smm.py``."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.emulate import Verdict
from mmulab.kvm.rsm import em_rsm
from mmulab.kvm.smm import enter_smm
from mmulab.kvm.state import Request
from mmulab.machine import op as ops
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.regs import X86_CR4_PCIDE, CpuModel
from tests.kvm.guest import DATA, GVA, MIB, PAGED, Guest, cr4

AS_1 = 1 << 16
SAVED = 0x38000
RIP, CR0, CR4, EFER = 0x7F78, 0x7F58, 0x7F48, 0x7ED0


def rsm(guest: Guest) -> tuple[Verdict, Instruction]:
    insn = Instruction(Mnemonic.RSM, 0x1000, b"\x0f\xaa")
    return em_rsm(guest.vcpu, insn), insn


def in_smm(mode: str = "64", on: int = 0) -> Guest:
    """A guest in SMM, whose address space 1 shows the same memory."""
    guest = Guest(mode, on=on, cpu=CpuModel(maxphyaddr=40, pcid=True)).map(GVA, DATA)
    guest.machine.execute(ops.SetMemslot(AS_1, 0, 8 * MIB, 0, 0))
    guest.vcpu.rip = 0x4321
    enter_smm(guest.vcpu)
    return guest


@pytest.mark.parametrize("mode", PAGED)
def test_the_guest_pages_again(mode: str) -> None:
    guest = in_smm(mode)
    verdict, insn = rsm(guest)
    assert (verdict, insn.target) == (Verdict.DONE, 0x4321)
    assert (guest.vcpu.cr0, guest.vcpu.cr3, guest.vcpu.cr4, guest.vcpu.efer) == guest.regs
    assert guest.read(GVA).hpa == guest.hpa(DATA)


def test_the_handlers_own_paging_is_left_first() -> None:
    """From 4-level paging with PCIDs: CR4.PCIDE, CR0, CR4.PAE, EFER, each where it is legal."""
    guest = in_smm()
    cr0, _, cr4_, efer = guest.regs
    guest.machine.execute(ops.SetSregs(cr0, guest.root | 3, cr4_ | X86_CR4_PCIDE, efer))
    with guest.watch() as seen:
        verdict, _ = rsm(guest)
    assert verdict is Verdict.DONE
    assert not guest.vcpu.requests & Request.TRIPLE_FAULT
    # Out of SMM; CR0.PG, CR4.PAE and EFER off; EFER, CR4 and CR0 as they were.
    assert sum(isinstance(e, ev.kvm_mmu_reset_context) for e in seen) == 1 + 3 + 3
    assert (guest.vcpu.cr0, guest.vcpu.cr3, guest.vcpu.cr4, guest.vcpu.efer) == guest.regs


def test_pcids_come_on_in_long_mode_only() -> None:
    """``rsm_enter_protected_mode``: CR3 without the PCID, paging, CR4.PCIDE, then CR3 as it was."""
    guest = in_smm(on=cr4(X86_CR4_PCIDE))
    guest.vcpu.cr3 |= 5
    guest.poke(SAVED + 0x7F50, guest.root | 5, 8)
    with guest.watch() as seen:
        rsm(guest)
    assert guest.vcpu.cr3 == guest.root | 5
    assert guest.vcpu.cr4 & X86_CR4_PCIDE
    loaded = [e.new_pgd for e in seen if isinstance(e, ev.kvm_mmu_new_pgd)]
    assert loaded == [guest.root, guest.root | 5]


@pytest.mark.parametrize(
    ("offset", "value"), [(CR0, 0x80000000), (CR4, 1 << 17), (CR4, 1 << 40), (EFER, 1 << 20)]
)
def test_what_cannot_be_loaded_is_a_triple_fault(offset: int, value: int) -> None:
    guest = in_smm()
    guest.poke(SAVED + offset, value, 8)
    verdict, _ = rsm(guest)
    assert verdict is Verdict.DONE
    assert guest.vcpu.requests & Request.TRIPLE_FAULT
    assert guest.vcpu.smm == 0


def test_outside_smm_it_is_undefined() -> None:
    guest = Guest("64")
    assert rsm(guest)[0] is Verdict.RESUME
    assert guest.vcpu.exception == (6, None, None)


def test_a_state_in_no_memory() -> None:
    """The emulator gives up; the vCPU stays in SMM."""
    guest = in_smm()
    guest.machine.execute(ops.DeleteMemslot(AS_1))
    assert rsm(guest)[0] is Verdict.FAILED
    assert guest.vcpu.smm == 1
    assert guest.vcpu.stat["insn_emulation_fail"] == 1
