"""The assertions of both nested.c, svm.c, vmx.c and x86.c: a guest reaches some, a poked state the others."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.assertions import HostDiedError, assertions
from mmulab.kvm.emulate import EmulationType, Verdict, x86_emulate_instruction
from mmulab.kvm.guest_walk import translate_nested_gpa
from mmulab.kvm.inject import GP_VECTOR
from mmulab.kvm.memory_region import _change_flags
from mmulab.kvm.mmu import X86Exception
from mmulab.kvm.state import NestedGuest, Request, Vcpu
from mmulab.kvm.svm.nested import SVM_EXITS, VMCB, SvmNested, nested_svm_vmrun
from mmulab.kvm.vmx.insn import handle_vmx_instruction
from mmulab.kvm.vmx.nested import VmxNested, nested_vmx_enter_non_root_mode
from mmulab.kvm.vmx.vmcs12 import SECONDARY_EXEC_ENABLE_VMFUNC, VMCS12
from mmulab.machine.machine import Machine
from mmulab.machine.op import OutcomeKind
from mmulab.machine.stubs import Stubs, l2_rip
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.pferr import PF_VECTOR
from mmulab.x86.regs import X86_CR4_PCIDE
from tests.kvm.guest import GVA, Guest
from tests.kvm.l1 import CONTROL_PAGE, L2_OFFSET, L2_ROOT, NGPAS, World, svm, vmx

PLACES = ("svm/", "vmx/", "x86.c")
NO_MEMORY = 0x3000000
"""A legal address that no slot has."""
VMCB_WINDOW = 0x8000000
"""Where a slot of its own shows L1's VMCB."""
WINDOW_SLOT = f"slot 1 {VMCB_WINDOW:x} 1000 0 {CONTROL_PAGE:x}"


def steps(scenario: Scenario, count: int) -> tuple[Machine, list[Result]]:
    """Run the first steps of a scenario; return the machine after them, and what came of each."""
    runner = Runner(scenario)
    results = (r for r in runner.results() if r.text == "init" or not r.text.startswith("~"))
    return runner.machine, list(islice(results, 1, 1 + count))


def svm_steps(world: World, *texts: str, intercepts: tuple[str, ...] = (), **fields: int) -> Scenario:
    """Give an L1 on AMD steps, and its VMCB further intercepts and other fields."""
    for number in {SVM_EXITS[name] // 32 for name in intercepts}:
        codes = [SVM_EXITS[name] for name in ("vmrun", "vmmcall", *intercepts)]
        word = sum(1 << code % 32 for code in codes if code // 32 == number)
        world.builder.value(4, CONTROL_PAGE + 4 * number, word)
    for name, value in fields.items():
        world.builder.value(VMCB[name][1], CONTROL_PAGE + VMCB[name][0], value)
    return world.scenario(*texts)


def vmx_world(**fields: int) -> World:
    """Return an L1 on Intel with other fields in its VMCS."""
    world = vmx("np", 4, ad=True)
    for name, value in fields.items():
        for at in range(0, VMCS12[name].size, 4):
            world.builder.value(4, CONTROL_PAGE + VMCS12[name].offset + at, value >> 8 * at & 0xFFFFFFFF)
    return world


def fired(machine: Machine) -> list[str]:
    return list(machine.kvm.fired)


# Reached by a guest ---------------------------------------------------------------------


def test_a_nested_cr3_out_of_memory_leaves_l2_before_it_ran() -> None:
    """The root cannot be, so L2 shuts down while its VMRUN is still to be completed."""
    scenario = svm_steps(
        svm("64", "np", 4), f"vmrun {CONTROL_PAGE:x}", "nop", intercepts=("shutdown",), nested_cr3=NO_MEMORY
    )
    machine, (entry, after) = steps(scenario, 2)
    assert fired(machine) == ["nested.c:nested_svm_vmexit:run_pending"]
    assert entry.outcome.vmexit is not None
    assert entry.outcome.vmexit["code"] == SVM_EXITS["shutdown"]
    assert after.outcome.kind is OutcomeKind.OK, "L1 goes on"


def test_an_entry_that_fails_is_no_longer_pending() -> None:
    """``nested_svm_vmrun`` takes the flag back before it leaves L2."""
    scenario = svm_steps(svm("64", "pae", 4, nested_paging=False, npt=1), f"vmrun {CONTROL_PAGE:x}")
    bad = tuple(value for value in scenario.header.values if value.gpa != L2_ROOT)
    runner = Runner(replace(scenario, header=replace(scenario.header, values=bad)))
    memory = runner.machine.memory
    memory.write((memory.backing << 12) + L2_ROOT, 8, 0b11)  # a writable PDPTE, where that bit is reserved
    (_, entry) = islice(runner.results(), 2)
    assert entry.outcome.kind is OutcomeKind.VMEXIT
    assert fired(runner.machine) == []


@pytest.mark.parametrize("l2", ["32", "pae", "64"])
def test_a_pcid_of_an_l2_without_long_mode_is_warned_of(l2: str) -> None:
    """VMRUN takes CR4.PCIDE without long mode, where MOV to CR4 does not."""
    world = svm("64", l2, 4, nested_paging=False, npt=0)
    scenario = svm_steps(
        world,
        f"vmrun {CONTROL_PAGE:x}",
        f"rd s 4 {NGPAS[0] + L2_OFFSET:x}",
        cr4=MODES[l2].cr4 | X86_CR4_PCIDE,
        cr3=L2_ROOT | 8,
    )
    header = replace(scenario.header, cpuid={**scenario.header.cpuid, "pcid": 1})
    machine, (entry, read) = steps(replace(scenario, header=header), 2)
    assert (entry.outcome.kind, read.outcome.kind) == (OutcomeKind.L2, OutcomeKind.OK)
    assert fired(machine) == ([] if l2 == "64" else ["svm.c:svm_load_mmu_pgd:pcid"])


def test_a_fault_of_l2_that_l1_wants_stays_pending_if_the_vmcb_is_gone() -> None:
    """KVM warns before it injects, and again behind it; L2 gets a #GP in the fault's place, and goes on."""
    scenario = svm_steps(
        svm("64", "64", 4, nested_paging=False, npt=0),
        WINDOW_SLOT,
        f"vmrun {VMCB_WINDOW:x}",
        "slotdel 1",
        "wr s 4 90000008 1",
        f"rd s 4 {NGPAS[0] + L2_OFFSET:x}",
        intercepts=("pf",),
        rip=l2_rip(Stubs(HELPER_S, HELPER_U)),
    )
    machine, (*_, fault, after) = steps(scenario, 5)
    assert fired(machine) == [
        "x86.c:kvm_check_and_inject_events:vmexit_pending",
        "x86.c:kvm_check_and_inject_events:new_exception",
    ]
    outcome = fault.outcome
    assert (outcome.kind, outcome.vector, outcome.error_code) == (OutcomeKind.EXC, GP_VECTOR, 0)
    said = [type(e) for e in fault.events if isinstance(e, ev.kvm_assertion | ev.kvm_inj_exception)]
    assert said == [ev.kvm_assertion, ev.kvm_inj_exception, ev.kvm_assertion]
    assert machine.kvm.vcpus[0].guest_mode
    assert after.outcome.kind is OutcomeKind.OK


@pytest.mark.parametrize("how", ["gone", "read-only"])
def test_an_exit_that_cannot_be_told_l1_gives_l2_a_general_protection_fault(how: str) -> None:
    """``nested_svm_vmexit`` maps the VMCB first, to write it; nothing else of L2 is changed."""
    again = (WINDOW_SLOT.replace("1000 0", "1000 2"),) if how == "read-only" else ()
    scenario = svm_steps(
        svm("64", "64", 4, nested_paging=False, npt=0),
        WINDOW_SLOT,
        f"vmrun {VMCB_WINDOW:x}",
        "slotdel 1",
        *again,
        "vmmcall",
        rip=l2_rip(Stubs(HELPER_S, HELPER_U)),
    )
    machine, results = steps(scenario, 4 + len(again))
    outcome = results[-1].outcome
    assert (outcome.kind, outcome.vector, outcome.error_code) == (OutcomeKind.EXC, GP_VECTOR, 0)
    assert machine.kvm.vcpus[0].guest_mode
    assert fired(machine) == []


def test_an_smi_in_an_l2_that_cannot_be_left_is_refused() -> None:
    scenario = svm_steps(
        svm("64", "64", 4),
        WINDOW_SLOT,
        f"vmrun {VMCB_WINDOW:x}",
        "slotdel 1",
        "smm on",
        rip=l2_rip(Stubs(HELPER_S, HELPER_U)),
    )
    with pytest.raises(InputError, match="while L1's VMCB cannot be mapped"):
        steps(scenario, 5)


def test_a_vmcb_in_a_read_only_slot_is_a_general_protection_fault() -> None:
    read_only = WINDOW_SLOT.replace("1000 0", "1000 2")
    _, (_, entry) = steps(svm_steps(svm("64", "64", 4), read_only, f"vmrun {VMCB_WINDOW:x}"), 2)
    assert (entry.outcome.kind, entry.outcome.vector) == (OutcomeKind.EXC, GP_VECTOR)
    # KVM maps the VMCB before it skips VMRUN: the fault is at the instruction.
    assert not [event for event in entry.events if isinstance(event, ev.kvm_emulate_insn)]
    (exit_,) = (event for event in entry.events if isinstance(event, ev.kvm_exit) and event.reason == "vmrun")
    assert entry.outcome.rip == exit_.guest_rip


def test_an_ept_pointer_out_of_memory_is_a_warning_and_then_the_vms_death() -> None:
    """L2 is left before it ran, and the flag stays: L1's next exit finds it.

    Recorded as ``nested-ept/ept-misconfig-eptp-*``.
    """
    world = vmx_world(ept_pointer=NO_MEMORY | 3 << 3 | 6)
    machine, (_, entry) = steps(world.scenario(f"vmrun {CONTROL_PAGE:x}", "nop"), 2)
    assert fired(machine) == [
        "nested.c:nested_vmx_vmexit:run_pending",
        "vmx.c:__vmx_handle_exit:run_pending",
    ]
    assert (entry.outcome.kind, entry.outcome.error) == (OutcomeKind.HANG, errno.EIO)
    assert machine.kvm.vcpus[0].requests & Request.VM_DEAD


# Poked ----------------------------------------------------------------------------------


def in_l2(vendor: str) -> Vcpu:
    """Return a vCPU that runs L2 with two-dimensional paging."""
    world = svm("64", "np", 4) if vendor == "amd" else vmx_world()
    number = 1 if vendor == "amd" else 2
    machine, results = steps(world.scenario(f"vmrun {CONTROL_PAGE:x}"), number)
    assert results[-1].outcome.kind is OutcomeKind.L2
    return machine.kvm.vcpus[0]


def in_l1(vendor: str) -> Vcpu:
    """Return a vCPU whose L2 was left."""
    world = svm("64", "np", 4) if vendor == "amd" else vmx_world()
    number = 2 if vendor == "amd" else 3
    machine, _ = steps(world.scenario(f"vmrun {CONTROL_PAGE:x}", world.leave), number)
    vcpu = machine.kvm.vcpus[0]
    assert not vcpu.guest_mode
    return vcpu


def nested_of(vcpu: Vcpu) -> NestedGuest:
    assert vcpu.nested is not None
    return vcpu.nested


def _enters_with_the_nested_walker() -> Vcpu:
    vcpu = in_l1("amd")
    vcpu.walk_mmu = vcpu.nested_mmu
    nested_svm_vmrun(vcpu, CONTROL_PAGE)
    return vcpu


def _enters_twice() -> Vcpu:
    vcpu = in_l2("amd")
    vcpu.walk_mmu = vcpu.root_mmu
    nested_svm_vmrun(vcpu, CONTROL_PAGE)
    return vcpu


def _tells_of_an_address_with_gp() -> Vcpu:
    vcpu = in_l2("amd")
    nested = nested_of(vcpu)
    assert isinstance(nested, SvmNested)
    nested.intercepts = (*nested.intercepts[:2], 1 << GP_VECTOR, *nested.intercepts[3:])
    nested.run_pending = False
    vcpu.exception = GP_VECTOR, 0, 0x1000
    assert nested.exception_handled(vcpu)
    return vcpu


def _enters_with_the_nested_walker_on_intel() -> Vcpu:
    vcpu = in_l1("intel")
    vcpu.walk_mmu = vcpu.nested_mmu
    nested_vmx_enter_non_root_mode(vcpu)
    return vcpu


def _tells_of_an_ept_fault_with_l1s_walker() -> Vcpu:
    vcpu = in_l2("intel")
    vcpu.walk_mmu = vcpu.root_mmu
    nested_of(vcpu).inject_page_fault(vcpu, X86Exception(0, NGPAS[0], nested_page_fault=True))
    return vcpu


def _logs_for_l1_outside_l2() -> Vcpu:
    vcpu = in_l1("intel")
    assert VmxNested().write_log_dirty(vcpu, NGPAS[0]), "it passes for logged"
    return vcpu


def _logs_into_a_full_log() -> Vcpu:
    vcpu = in_l2("intel")
    vcpu.vmx.pml_full = True
    assert not nested_of(vcpu).write_log_dirty(vcpu, NGPAS[0])
    return vcpu


def _turns_to_another_ept_without_one() -> Vcpu:
    vcpu = in_l2("intel")
    vcpu.vmx.put("secondary_vm_exec_control", SECONDARY_EXEC_ENABLE_VMFUNC)
    vcpu.vmx.put("vm_function_control", 1)
    assert handle_vmx_instruction(vcpu, Instruction(Mnemonic.VMFUNC, value=0)) is Verdict.RESUME
    assert not vcpu.guest_mode, "L1 is told"
    return vcpu


def _calls_a_function_that_is_off() -> Vcpu:
    vcpu = in_l2("intel")
    assert handle_vmx_instruction(vcpu, Instruction(Mnemonic.VMFUNC, value=0)) is Verdict.RESUME
    assert vcpu.exception is not None
    assert vcpu.exception[0] == 6
    return vcpu


def _reflects_an_exit_while_the_entry_is_pending() -> Vcpu:
    vcpu = in_l2("intel")
    vcpu.vmx.nested_run_pending = True
    assert not nested_of(vcpu).exit_handled(vcpu, ev.kvm_nested_vmexit("ept_violation", 0, 0))
    return vcpu


def _emulates(kind: EmulationType, *, guest_mode: bool, decodes: bool) -> Vcpu:
    guest = Guest("64").map(GVA, 0x10000)
    guest.enter()
    guest.vcpu.guest_mode = guest_mode
    insn = Instruction(Mnemonic.LOAD, None if decodes else 0x7000000, b"\x90", gva=GVA, size=4)
    x86_emulate_instruction(guest.vcpu, GVA, kind, insn)
    return guest.vcpu


def _retries(*, page_fault: bool, guest_mode: bool, decodes: bool) -> Vcpu:
    kind = EmulationType(allow_retry=True, page_fault=page_fault)
    return _emulates(kind, guest_mode=guest_mode, decodes=decodes)


def _changes_no_flag() -> Vcpu:
    guest = Guest("64")
    _change_flags(guest.kvm, guest.slot, guest.slot.flags)
    return guest.vcpu


POKED: dict[str, Callable[[], Vcpu]] = {
    "nested.c:nested_svm_init_mmu_context:nested": _enters_with_the_nested_walker,
    "nested.c:enter_svm_guest_mode:vmcb02": _enters_twice,
    "nested.c:nested_svm_inject_exception_vmexit:payload": _tells_of_an_address_with_gp,
    "nested.c:nested_ept_init_mmu_context:nested": _enters_with_the_nested_walker_on_intel,
    "nested.c:nested_ept_invalidate_addr:nested": _tells_of_an_ept_fault_with_l1s_walker,
    "nested.c:nested_vmx_write_pml_buffer:guest_mode": _logs_for_l1_outside_l2,
    "nested.c:nested_vmx_write_pml_buffer:pml_full": _logs_into_a_full_log,
    "nested.c:nested_vmx_eptp_switching:ept": _turns_to_another_ept_without_one,
    "nested.c:handle_vmfunc:function": _calls_a_function_that_is_off,
    "nested.c:nested_vmx_reflect_vmexit:run_pending": _reflects_an_exit_while_the_entry_is_pending,
    "x86.c:retry_instruction:guest_mode": lambda: _retries(page_fault=True, guest_mode=True, decodes=True),
    "x86.c:retry_instruction:pf": lambda: _retries(page_fault=False, guest_mode=False, decodes=True),
    "x86.c:reexecute_instruction:guest_mode": lambda: _retries(
        page_fault=True, guest_mode=True, decodes=False
    ),
    "x86.c:reexecute_instruction:pf": lambda: _retries(page_fault=False, guest_mode=False, decodes=False),
    "x86.c:kvm_mmu_slot_apply_flags:unchanged": _changes_no_flag,
}
REACHED = {
    "nested.c:nested_svm_vmexit:run_pending",
    "svm.c:svm_load_mmu_pgd:pcid",
    "x86.c:kvm_check_and_inject_events:vmexit_pending",
    "x86.c:kvm_check_and_inject_events:new_exception",
    "nested.c:nested_vmx_vmexit:run_pending",
    "vmx.c:__vmx_handle_exit:run_pending",
}
FATAL = {"x86.c:translate_nested_gpa:nested", "x86.c:emulator_cmpxchg_emulated:size"}


@pytest.mark.parametrize("name", POKED)
def test_a_state_that_should_not_be_is_warned_of(name: str) -> None:
    vcpu = POKED[name]()
    assert list(vcpu.kvm.fired) == [name]


def test_an_address_of_l2_without_its_walker_stops_the_host() -> None:
    vcpu = in_l2("amd")
    assert translate_nested_gpa(vcpu, NGPAS[0], 0)[0] is not None
    vcpu.walk_mmu = vcpu.root_mmu
    with pytest.raises(HostDiedError):
        translate_nested_gpa(vcpu, NGPAS[0], 0)
    assert list(vcpu.kvm.fired) == ["x86.c:translate_nested_gpa:nested"]


def test_a_locked_access_of_no_known_size_stops_the_host(guest: Guest) -> None:
    guest.enter()
    insn = Instruction(Mnemonic.XCHG, gva=GVA, size=3)
    with pytest.raises(HostDiedError):
        x86_emulate_instruction(guest.vcpu, GVA, EmulationType(page_fault=True), insn)
    assert list(guest.kvm.fired) == ["x86.c:emulator_cmpxchg_emulated:size"]


def test_each_one_that_stands_here_is_shown_to_fire() -> None:
    modelled = {a.name for a in assertions().values() if a.modelled and a.file.startswith(PLACES)}
    assert modelled == {*POKED, *REACHED, *FATAL}


def test_l1s_wish_for_a_page_fault_is_met_without_a_warning() -> None:
    """Its VMCB is there."""
    world = svm("64", "64", 4, nested_paging=False, npt=0)
    scenario = svm_steps(world, f"vmrun {CONTROL_PAGE:x}", "wr s 4 90000008 1", intercepts=("pf",))
    machine, (_, fault) = steps(scenario, 2)
    assert fault.outcome.vmexit is not None
    assert fault.outcome.vmexit["code"] == SVM_EXITS["pf"] == 0x40 + PF_VECTOR
    assert fired(machine) == []


def test_a_function_beyond_63_is_the_processors_own_to_refuse() -> None:
    """VMFUNC is undefined then and does not exit (SDM 3, 26.5.6.2)."""
    made = vmx_world(secondary_vm_exec_control=1 << 1 | 1 << 7 | SECONDARY_EXEC_ENABLE_VMFUNC)
    scenario = made.scenario(f"vmrun {CONTROL_PAGE:x}", "vmfunc 40 0")
    machine, (*_, result) = steps(scenario, 3)
    assert (result.outcome.kind, result.outcome.vector) == (OutcomeKind.EXC, 6)
    assert fired(machine) == []
    assert machine.kvm.vcpus[0].guest_mode
