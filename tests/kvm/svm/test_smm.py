"""An SMI while L2 runs: out of it as by a #VMEXIT, and back by RSM.

Linux 6.1 ``svm.c`` (``svm_enter_smm``, ``svm_leave_smm``, ``svm_smi_blocked``) and
``nested.c`` (``svm_check_nested_events``, ``nested_svm_vmexit``).
"""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.state import Vcpu
from mmulab.kvm.svm.nested import SVM_EXITS, VMCB, read_vmcb
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.machine.stubs import HSAVE_PA
from mmulab.scenario.runner import Result, Runner
from mmulab.x86.regs import X86_CR0_PG, X86_CR0_WP, X86_CR4_MCE, X86_CR4_PAE
from tests.kvm.l1 import CONTROL_PAGE, L1_ROOT, NGPAS, World, svm

ENTER, SMI, RSM = f"vmrun {CONTROL_PAGE:x}", "smm on", "smm off"
SMRAM = 0x38000
CR3_AT, EFER_AT, SVM_GUEST_AT, VMCB12_AT = SMRAM + 0x7F50, SMRAM + 0x7ED0, SMRAM + 0x7ED8, SMRAM + 0x7EE0
NOP_STUB, L2_START = 0x18A0, 0x18F0
READ = f"rd s 4 {NGPAS[0]:x}"
REGISTERS = ("cr0", "cr3", "cr4", "efer", "cpl")


def world(l1: str = "64", l2: str = "np", *, npt: int = 1, handler: int = 0xFBE6) -> World:
    """An L1 with the same memory in both address spaces, and ``out %al, $0xfb`` as its SMI handler."""
    made = svm(l1, l2, 4, npt=npt, nested_paging=bool(npt))
    for slot in made.builder.build().header.slots:
        made.builder.slot(slot.id, slot.gpa, slot.size, slot.flags, slot.offset)
        made.builder.slot(1 << 16 | slot.id, slot.gpa, slot.size, slot.flags, slot.offset)
    made.builder.value(2, SMRAM, handler)
    return made


class Played:
    """Ops that were run, and the vCPU as the last of them left it."""

    def __init__(self, made: World, *texts: str) -> None:
        runner = Runner(made.scenario(*texts))
        self.machine = runner.machine
        self.results: list[Result] = []
        for result in runner.results():
            if result.index >= 0 and not result.text.startswith("~"):
                self.results.append(result)
            if len(self.results) == len(texts):
                break

    @property
    def vcpu(self) -> Vcpu:
        return self.machine.kvm.vcpus[0]

    @property
    def registers(self) -> dict[str, int]:
        return {name: getattr(self.vcpu, name) for name in REGISTERS}

    @property
    def outcome(self) -> Outcome:
        return self.results[-1].outcome

    @property
    def events(self) -> list[ev.Event]:
        return self.results[-1].events

    def saved(self, at: int) -> int:
        return self.machine.memory.load64((self.machine.memory.backing << 12) + at)


@pytest.mark.parametrize(
    ("l1", "l2"), [("64", "np"), ("32", "np"), ("pae", "32"), ("64", "pae"), ("57", "64")]
)
def test_smm_goes_on_with_l1s_registers_and_rsm_with_l2s(l1: str, l2: str) -> None:
    inside = Played(world(l1, l2), ENTER, "nop").registers
    there = Played(world(l1, l2), ENTER, SMI)
    assert (there.outcome.kind, there.outcome.rip) == (OutcomeKind.OK, 0x8000)
    assert there.outcome.rax == CONTROL_PAGE  # L1's, of its VMRUN
    assert (there.vcpu.guest_mode, there.vcpu.smm, there.vcpu.cr3) == (False, 1, L1_ROOT)
    assert (there.saved(SVM_GUEST_AT), there.saved(VMCB12_AT)) == (1, CONTROL_PAGE)
    assert there.saved(CR3_AT) == inside["cr3"]
    back = Played(world(l1, l2), ENTER, SMI, RSM)
    assert (back.vcpu.guest_mode, back.vcpu.smm, back.outcome.rip) == (True, 0, NOP_STUB)
    assert back.registers == inside
    assert Played(world(l1, l2), ENTER, SMI, RSM, "nop").outcome.rip == NOP_STUB + 1


def test_the_events_of_the_way_in() -> None:
    """L2 ends with an exit code that is KVM's own, and nothing of it but the MMU's reset."""
    events = Played(world(), ENTER, SMI).events
    reset = [ev.kvm_mmu_reset_context, ev.kvm_mmu_free_roots, ev.kvm_mmu_free_roots]
    assert events[0] == ev.kvm_nested_vmexit_inject("0xf0000000", 0, 0)
    assert events[1] == ev.kvm_mmu_new_pgd(L1_ROOT)
    assert [type(e) for e in events[2:]][:7] == [ev.kvm_smm_transition, *reset, *reset]
    assert not [e for e in events if isinstance(e, ev.kvm_inj_exception)]


def test_the_events_of_the_way_out() -> None:
    """The registers are loaded again on top of the VMCB's, and no load changes the MMU's mode."""
    events = Played(world(), ENTER, SMI, RSM).events
    at = next(i for i, e in enumerate(events) if isinstance(e, ev.kvm_smm_transition))
    left = [e for e in events[at + 1 :] if not isinstance(e, ev.kvm_mmu_free_roots)]
    assert [type(e) for e in left] == [ev.kvm_mmu_reset_context, ev.kvm_nested_vmenter, ev.kvm_mmu_new_pgd]


def test_the_single_step_of_the_smi_comes_up_at_the_next_exit_of_l2() -> None:
    """TF lies in the host save area: L1 gets one #DB, and none once it has entered L2 anew."""
    again = (ENTER, "vmmcall")
    outcome = Played(world(), ENTER, SMI, RSM, "vmmcall").outcome
    assert outcome.vmexit is not None
    assert (outcome.vmexit["code"], outcome.vmexit["l1db"]) == (SVM_EXITS["vmmcall"], 1)
    assert "l1db" not in (Played(world(), ENTER, SMI, RSM, "vmmcall", *again).outcome.vmexit or {})
    cleared = f"wr s 4 {HSAVE_PA + VMCB['rflags'][0]:x} 2"
    assert "l1db" not in (Played(world(), ENTER, SMI, cleared, RSM, "vmmcall").outcome.vmexit or {})


def test_l1_comes_back_with_what_the_host_save_area_has() -> None:
    """Which is the guest's memory, and has CR4 as the processor ran with it."""
    other = f"wr s 4 {HSAVE_PA + VMCB['cr3'][0]:x} 11000"
    before = Played(world(), "nop").registers
    after = Played(world(), ENTER, SMI, other, RSM, "vmmcall").registers
    assert after == {**before, "cr3": 0x11000, "cr4": before["cr4"] | X86_CR4_MCE}


def test_without_nested_paging_l1_comes_back_with_what_shadow_paging_needs() -> None:
    before = Played(world("32", "32", npt=0), "nop").registers
    saved = Played(world("32", "32", npt=0), ENTER, SMI)
    cr0, cr4 = (read_vmcb(saved.vcpu, HSAVE_PA, name) for name in ("cr0", "cr4"))
    assert cr0 == before["cr0"] | X86_CR0_PG | X86_CR0_WP
    assert cr4 == before["cr4"] | X86_CR4_PAE | X86_CR4_MCE


@pytest.mark.parametrize(
    "change", [f"wr s 4 {EFER_AT:x} 0", f"wr s 4 {VMCB12_AT:x} f0000000"], ids=["without SVME", "no VMCB"]
)
def test_where_l2_cannot_go_on_the_vcpu_shuts_down(change: str) -> None:
    played = Played(world(), ENTER, SMI, change, RSM, "nop")
    assert [r.outcome.kind for r in played.results[-2:]] == [OutcomeKind.OK, OutcomeKind.SHUTDOWN]


def test_an_smi_that_came_outside_l2_leads_back_to_l1() -> None:
    played = Played(world(handler=0x9090), SMI, RSM, ENTER)
    assert played.saved(SVM_GUEST_AT) == 0
    assert played.outcome.kind is OutcomeKind.L2


# When it is taken ---------------------------------------------------------------------


def test_after_an_exit_of_l2_an_smi_waits_until_l1_enters_it_again() -> None:
    """Without GIF; then L2's first instruction waits until RSM."""
    played = Played(world(), ENTER, "vmmcall", SMI, ENTER)
    blocked, taken = played.results[-2:]
    assert (blocked.outcome.rip, played.vcpu.smm) == (NOP_STUB + 1, 1)
    assert [e.entering for e in taken.events if isinstance(e, ev.kvm_smm_transition)] == [True]
    assert (taken.outcome.rip, played.saved(SMRAM + 0x7F78)) == (0x8000, L2_START)


def test_svm_turned_off_sets_gif() -> None:
    played = Played(world(handler=0x9090), ENTER, "vmmcall", "efer d00", SMI)
    assert (played.vcpu.smm, played.outcome.rip) == (1, 0x8001)


def test_an_smi_that_waits_in_smm_comes_before_l2_goes_on() -> None:
    played = Played(world(), ENTER, SMI, SMI, RSM, READ)
    assert (played.vcpu.smm, played.outcome.rip) == (1, 0x8000)
    assert isinstance(played.events[-1], ev.kvm_exit)


def test_l1_may_want_the_smi_itself() -> None:
    """It gets it as an exit, and the SMI stays pending, for L1 has no GIF then."""
    made = world()
    made.builder.value(4, CONTROL_PAGE + 4 * (SVM_EXITS["smi"] // 32), 1 << SVM_EXITS["smi"] % 32)
    played = Played(made, ENTER, SMI)
    assert played.outcome.vmexit is not None
    assert played.outcome.vmexit["code"] == SVM_EXITS["smi"]
    assert (played.vcpu.smm, played.vcpu.smi_pending, played.vcpu.guest_mode) == (0, True, False)


def test_the_handler_of_an_smi_in_l2_is_not_single_stepped() -> None:
    with pytest.raises(InputError, match=r"bytes 9090\w+ are not modelled; put OUT to port 0xfb \(e6fb\)"):
        Played(world(handler=0x9090), ENTER, SMI)
