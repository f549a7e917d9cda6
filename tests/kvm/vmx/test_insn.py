"""VMX instructions of L1: what they do, and the errors that the manual gives them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, islice

import pytest

from mmulab import events as ev
from mmulab.check.control_block import ept_pointer
from mmulab.errors import InputError
from mmulab.kvm.vmx.vmcs12 import FIELD_OF, SECONDARY_EXEC_ENABLE_VMFUNC, VMCS12, VMCS12_REVISION
from mmulab.machine.machine import Machine
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.tables import EptTables
from tests.kvm.l1 import CONTROL_PAGE, NESTED_ROOT, NGPAS, PAGES, VMXON_REGION, World, vmx

ON, LOAD = f"vmxon {VMXON_REGION:x}", f"vmptrld {CONTROL_PAGE:x}"
ENTER = f"vmrun {CONTROL_PAGE:x}"
OTHER_VMCS, EPTP_LIST = 0xD000, 0xE000
UNALIGNED, BEYOND, NO_REVISION = 0xB010, 1 << 40, 0x300000
READ = f"rd s 4 {NGPAS[0]:x}"
FIRST = ept_pointer(NESTED_ROOT, 4, ad=True)
UD = 6


def world(**fields: int) -> World:
    """An L1 that has not executed VMXON yet, with other fields in its VMCS."""
    made = vmx("np", 4, ad=True)
    made.steps.clear()
    for name, value in fields.items():
        for at in range(0, VMCS12[name].size, 4):
            made.builder.value(4, CONTROL_PAGE + VMCS12[name].offset + at, value >> 8 * at & 0xFFFFFFFF)
    return made


def run(*steps: str, made: World | None = None) -> tuple[Machine, list[Result]]:
    """Run steps; return the machine after the last one, and what came of each, helpers left out."""
    runner = Runner((made or world()).scenario(*steps))
    results: list[Result] = []
    for result in islice(runner.results(), 1, None):
        if not result.text.startswith("~"):
            results.append(result)
        if len(results) == len(steps):
            break
    return runner.machine, results


def flags(outcome: Outcome) -> tuple[int | None, int | None]:
    assert outcome.kind is OutcomeKind.OK
    return outcome.cf, outcome.zf


def error(machine: Machine, outcome: Outcome) -> int:
    """Return the VM-instruction error of a VMfailValid."""
    assert flags(outcome) == (0, 1)
    return machine.kvm.vcpus[0].vmx.get("vm_instruction_error")


SUCCEED, FAIL_INVALID = (0, 0), (1, 0)


def test_nothing_but_vmxon_goes_before_vmxon() -> None:
    for op in (LOAD, f"vmclear {CONTROL_PAGE:x}", "vmw 681c 0", "invept 2 0 0", "invvpid 2 1 0", "vmlaunch"):
        _, (result,) = run(op)
        assert (result.outcome.kind, result.outcome.vector) == (OutcomeKind.EXC, UD), op


def test_vmxon_wants_cr4_vmxe() -> None:
    _, (_, result) = run("cr4 20", ON)
    assert (result.outcome.kind, result.outcome.vector) == (OutcomeKind.EXC, UD)


@pytest.mark.parametrize("region", [UNALIGNED, BEYOND, NO_REVISION, 0x3000000])
def test_vmxon_of_no_region_fails_and_leaves_vmx_off(region: int) -> None:
    _, (on, load) = run(f"vmxon {region:x}", LOAD)
    assert flags(on.outcome) == FAIL_INVALID
    assert load.outcome.vector == UD


def test_a_second_vmxon_fails() -> None:
    _, results = run(ON, ON)
    assert flags(results[-1].outcome) == FAIL_INVALID, "there is no VMCS for the error"
    machine, results = run(ON, LOAD, ON)
    assert error(machine, results[-1].outcome) == 15


@pytest.mark.parametrize(
    ("op", "gpa", "number"),
    [
        ("vmptrld", UNALIGNED, 9),
        ("vmptrld", BEYOND, 9),
        ("vmptrld", VMXON_REGION, 10),
        ("vmptrld", NO_REVISION, 11),
        ("vmclear", UNALIGNED, 2),
        ("vmclear", BEYOND, 2),
        ("vmclear", VMXON_REGION, 3),
    ],
)
def test_bad_pointers(op: str, gpa: int, number: int) -> None:
    """With a current VMCS the error is told, without one there is no place for it (SDM 3, 31.2)."""
    machine, results = run(ON, LOAD, f"{op} {gpa:x}")
    assert error(machine, results[-1].outcome) == number
    assert machine.kvm.vcpus[0].vmx.current_vmptr == CONTROL_PAGE
    _, results = run(ON, f"{op} {gpa:x}")
    assert flags(results[-1].outcome) == FAIL_INVALID


def loaded(machine: Machine, name: str) -> int:
    """Read a field of the VMCS in memory."""
    memory, field = machine.memory, VMCS12[name]
    return memory.read((memory.backing << 12) + CONTROL_PAGE + field.offset, field.size)


def test_the_current_vmcs_is_cached_until_vmclear() -> None:
    """What lies in memory meanwhile is stale, and what L1 writes there is overwritten."""
    cr3 = VMCS12["guest_cr3"]
    write = f"vmw {cr3.encoding:x} 5000"
    machine, _ = run(ON, LOAD, write)
    assert machine.kvm.vcpus[0].vmx.get("guest_cr3") == 0x5000
    assert loaded(machine, "guest_cr3") != 0x5000
    behind = f"hw 8 {CONTROL_PAGE + cr3.offset:x} 7000"
    machine, _ = run(ON, LOAD, write, behind, LOAD)
    assert machine.kvm.vcpus[0].vmx.get("guest_cr3") == 0x5000, "loading it again reads nothing"
    machine, _ = run(ON, LOAD, write, behind, f"vmclear {CONTROL_PAGE:x}")
    assert loaded(machine, "guest_cr3") == 0x5000
    machine, _ = run(ON, LOAD, f"vmclear {CONTROL_PAGE:x}", behind, LOAD)
    assert machine.kvm.vcpus[0].vmx.get("guest_cr3") == 0x7000


def test_loading_another_vmcs_writes_the_first_back() -> None:
    made = world()
    made.builder.fill(OTHER_VMCS, 0x1000, 0).value(4, OTHER_VMCS, VMCS12_REVISION)
    write = f"vmw {VMCS12['guest_cr3'].encoding:x} 5000"
    machine, _ = run(ON, LOAD, write, f"vmptrld {OTHER_VMCS:x}", made=made)
    assert loaded(machine, "guest_cr3") == 0x5000
    assert machine.kvm.vcpus[0].vmx.current_vmptr == OTHER_VMCS


def test_launch_and_resume_by_launch_state() -> None:
    clear = f"vmclear {CONTROL_PAGE:x}"
    _, results = run(ON, ENTER, "vmcall", "vmlaunch")
    assert (results[-1].outcome.kind, results[-1].outcome.error) == (OutcomeKind.VMFAIL, 4)
    _, results = run(ON, ENTER, "vmcall", ENTER)
    assert results[-1].outcome.kind is OutcomeKind.L2, "a launched one is resumed"
    _, results = run(ON, ENTER, "vmcall", clear, LOAD, "vmlaunch")
    assert results[-1].outcome.kind is OutcomeKind.L2
    _, results = run(ON, "vmlaunch")
    assert results[-1].outcome.kind is OutcomeKind.VMFAIL
    assert (results[-1].outcome.cf, results[-1].outcome.zf) == FAIL_INVALID


# VMWRITE ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FIELD_OF.values()))
def test_shadowed_fields_are_written_without_an_exit(name: str) -> None:
    field = VMCS12[name]
    value = 0x12345678 & ((1 << 8 * field.size) - 1)
    machine, results = run(ON, LOAD, f"vmw {field.encoding:x} {value:x}")
    exits = [e for e in results[-1].events if isinstance(e, ev.kvm_exit) and e.reason == "vmwrite"]
    assert bool(exits) is not field.shadowed
    assert flags(results[-1].outcome) == SUCCEED
    rights = 0x1F0FF if name == "guest_ss_ar_bytes" else -1
    assert machine.kvm.vcpus[0].vmx.get(name) == value & rights


def test_vmwrite_needs_a_current_vmcs() -> None:
    _, results = run(ON, "vmw 6802 1")
    assert flags(results[-1].outcome) == FAIL_INVALID


def test_a_field_that_is_not_known_is_refused_by_its_encoding() -> None:
    with pytest.raises(InputError, match="VMCS field 0x2000 is not modelled"):
        run(ON, LOAD, "vmw 2000 1")


# INVEPT, INVVPID ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op",
    [
        "invept 0 0 0",
        "invept 3 0 0",
        f"invept 1 {FIRST | 1 << 7:x} 0",
        f"invept 1 {FIRST & ~7 | 2:x} 0",
        "invvpid 4 1 0",
        "invvpid 0 0 0",
        "invvpid 0 1 800000000000",
    ],
)
def test_bad_operands_of_invalidations(op: str) -> None:
    machine, results = run(ON, LOAD, op)
    assert error(machine, results[-1].outcome) == 28


@pytest.mark.parametrize(
    "op", ["invept 2 0 0", f"invept 1 {FIRST:x} 0", "invvpid 2 0 0", "invvpid 0 1 7fffffff"]
)
def test_good_operands_of_invalidations(op: str) -> None:
    _, results = run(ON, LOAD, op)
    assert flags(results[-1].outcome) == SUCCEED


def roots_looked_up(results: list[Result]) -> list[int]:
    """Return after which steps the EPT root was looked up."""
    return [
        number
        for number, result in enumerate(results)
        for e in result.events
        if isinstance(e, ev.kvm_mmu_get_page) and e.gfn == NESTED_ROOT >> 12
    ]


@pytest.mark.parametrize(
    ("op", "looked"),
    [
        ("nop", [1]),
        ("invept 2 0 0", [1, 5]),
        (f"invept 1 {FIRST:x} 0", [1, 5]),
        (f"invept 1 {FIRST & ~(1 << 6):x} 0", [1, 5]),
        (f"invept 1 {FIRST + 0x1000:x} 0", [1]),
        ("invvpid 2 0 0", [1]),
        (LOAD, [1]),
        (f"vmclear {CONTROL_PAGE:x}", [1, 5]),
    ],
    ids=["none", "global", "this", "this without A/D", "another", "by VPID", "loaded again", "cleared"],
)
def test_roots_go_by_the_address_in_the_pointer(op: str, looked: list[int]) -> None:
    """Roots stay over exits; a pointer's flags do not count (``nested_ept_root_matches``)."""
    _, results = run(ON, ENTER, READ, "vmcall", op, ENTER, READ)
    assert roots_looked_up(results) == looked


# VMFUNC ------------------------------------------------------------------------------------


SECOND_ROOT = 0x15000


def switching() -> World:
    """An L1 whose EPT pointer list has its own EPT, one that maps another page, and a bad pointer."""
    made = world(
        secondary_vm_exec_control=SECONDARY_EXEC_ENABLE_VMFUNC | 1 << 1 | 1 << 7,
        vm_function_control=1,
        eptp_list_address=EPTP_LIST,
    )
    assert made.nested is not None
    made.builder.fill(EPTP_LIST, 0x1000, 0).fill(SECOND_ROOT, 0x1000, 0)
    other = EptTables(made.builder, made.nested.mode, SECOND_ROOT, count(0x70000, 0x1000))
    other.identity(HELPER_S, HELPER_U)
    other.map(NGPAS[0], PAGES[2])
    for index, pointer in enumerate((FIRST, ept_pointer(SECOND_ROOT, 4, ad=True), FIRST | 1 << 7)):
        made.builder.value(8, EPTP_LIST + 8 * index, pointer)
    made.builder.value(8, EPTP_LIST + 8 * 512, FIRST)
    return made


def test_vmfunc_turns_l2_to_another_ept_without_l1() -> None:
    _, results = run(ON, ENTER, READ, "vmfunc 0 1", READ, "vmfunc 0 0", READ, made=switching())
    assert all(r.outcome.kind is OutcomeKind.OK for r in results[2:])
    pages = [(r.outcome.rax & 0xFFF) << 12 for r in results if r.text == READ]
    assert pages == [PAGES[0], PAGES[2], PAGES[0]]


@pytest.mark.parametrize("op", ["vmfunc 0 2", "vmfunc 0 3", "vmfunc 0 200", "vmfunc 1 0"])
def test_a_switch_that_cannot_be_made_is_told_l1(op: str) -> None:
    """A bad pointer, an empty place, one beyond the list, another function: all exit (SDM 3, 26.5.6.3)."""
    _, results = run(ON, ENTER, op, made=switching())
    assert results[-1].outcome.kind is OutcomeKind.VMEXIT
    assert results[-1].outcome.vmexit is not None
    assert results[-1].outcome.vmexit["reason"] == 59


@pytest.mark.parametrize("make", [switching, world], ids=["on", "off"])
def test_vmfunc_is_undefined_outside_l2_or_without_its_control(make: Callable[[], World]) -> None:
    steps = (ON, "vmfunc 0 0") if make is switching else (ON, ENTER, "vmfunc 0 0")
    _, results = run(*steps, made=make())
    assert (results[-1].outcome.kind, results[-1].outcome.vector) == (OutcomeKind.EXC, UD)


def test_vmcall_of_l1_is_refused() -> None:
    with pytest.raises(InputError, match="VMCALL outside L2 is a hypercall to KVM"):
        run(ON, "vmcall")
