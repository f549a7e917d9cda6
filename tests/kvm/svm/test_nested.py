"""Nested SVM: L2 goes where both tables lead, L1 is told of the rest, and VMRUN checks what it is given."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.check.told import NPF_FINAL, NPF_TABLE
from mmulab.errors import InputError
from mmulab.kvm.state import Request
from mmulab.kvm.svm.nested import (
    INTERCEPT_WORDS,
    SVM_EXIT_ERR,
    SVM_EXITS,
    VMCB,
    SvmNested,
    _restore_l1,
    read_vmcb,
)
from mmulab.lab.cases import build
from mmulab.machine.machine import Machine
from mmulab.machine.op import OutcomeKind, Teardown
from mmulab.scenario.helpers import HELPER_S
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.runner import run as run_scenario
from mmulab.scenario.scenario import MODES, Value
from mmulab.scenario.text import parse_scenario
from mmulab.x86.pferr import PF_VECTOR, PFERR_PRESENT_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_SVME,
    X86_CR0_CD,
    X86_CR0_NW,
    X86_CR0_PE,
    X86_CR4_MCE,
    X86_CR4_PAE,
    X86_CR4_PGE,
    X86_CR4_PKE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
)
from tests.kvm.l1 import (
    CONTROL_PAGE,
    L1_ROOT,
    L2_OFFSET,
    L2_ROOT,
    NESTED_ROOT,
    NGPAS,
    PAGES,
    World,
    run,
    svm,
    work,
)

ENTER, LEAVE = f"vmrun {CONTROL_PAGE:x}", "vmmcall"
NPT_WORLDS = [
    ("32", "np", 4),
    ("32", "64", 5),
    ("pae", "np", 5),
    ("pae", "32", 4),
    ("64", "np", 5),
    ("64", "pae", 4),
    ("57", "57", 5),
]
PLAIN_WORLDS = [
    ("64", "64", 4, 0),
    ("32", "32", 5, 0),
    ("57", "57", 5, 0),
    ("64", "pae", 4, 1),
    ("64", "64", 5, 1),
]


@pytest.mark.parametrize(("l1", "l2", "l0"), NPT_WORLDS)
@settings(max_examples=30)
@given(data=st.data())
def test_l2_follows_both_tables_after_any_edit(l1: str, l2: str, l0: int, data: st.DataObject) -> None:
    """Rights, large pages, missing entries and reserved bits of L1's NPT and of L2's own tables."""
    for access in run(data.draw(work(svm(l1, l2, l0)))):
        access.check()


@pytest.mark.parametrize(("l1", "l2", "l0", "npt"), PLAIN_WORLDS)
@settings(max_examples=30)
@given(data=st.data())
def test_l2_without_nested_paging_follows_its_own_tables(
    l1: str, l2: str, l0: int, npt: int, data: st.DataObject
) -> None:
    for access in run(data.draw(work(svm(l1, l2, l0, nested_paging=False, npt=npt)))):
        access.check()


# One world, step by step ------------------------------------------------------------------


def steps(
    world: World, *texts: str, intercepts: tuple[int, ...] = (), **fields: int
) -> tuple[Machine, list[Result]]:
    """Run steps on a world whose VMCB has further intercepts and other fields.

    Returns
    -------
    machine : Machine
        After the last step.
    results : list of Result
        One a step.
    """
    words = [0] * INTERCEPT_WORDS
    for code in (SVM_EXITS["vmrun"], SVM_EXITS["vmmcall"], *intercepts):
        words[code // 32] |= 1 << code % 32
    for number, word in enumerate(words):
        world.builder.value(4, CONTROL_PAGE + 4 * number, word)
    for name, value in fields.items():
        offset, size = VMCB[name]
        world.builder.value(size, CONTROL_PAGE + offset, value)
    world.steps += texts
    runner = Runner(world.scenario())
    return runner.machine, list(islice(runner.results(), 1 + len(texts)))[1:]


@pytest.mark.parametrize("npt", [0, 1])
def test_a_vcpu_destroyed_in_l2_looks_for_no_root(npt: int) -> None:
    """``svm_vcpu_free``: L2 is gone without a #VMEXIT, and both contexts let go of their roots."""
    world = svm("64", "64", 4, nested_paging=bool(npt), npt=npt)
    machine, results = steps(world, ENTER)
    assert results[0].outcome.kind is OutcomeKind.L2
    seen: list[ev.Event] = []
    machine.emit = seen.append
    machine.execute(Teardown())
    assert not [event for event in seen if isinstance(event, ev.kvm_mmu_new_pgd)]
    assert len([event for event in seen if isinstance(event, ev.kvm_mmu_free_roots)]) == 4
    (vcpu,) = machine.kvm.vcpus
    assert (vcpu.guest_mode, vcpu.mmu, vcpu.walk_mmu) == (False, vcpu.root_mmu, vcpu.root_mmu)


def vmcb_of(machine: Machine, name: str) -> int:
    return read_vmcb(machine.kvm.vcpus[0], CONTROL_PAGE, name)


def exit_of(result: Result) -> dict[str, int]:
    assert result.outcome.kind is OutcomeKind.VMEXIT
    assert result.outcome.vmexit is not None
    return result.outcome.vmexit


LONG = MODES["64"]
MAXPHYADDR = 40
BAD = [
    {"asid": 0},
    {"nested_cr3": 1 << MAXPHYADDR},
    {"efer": LONG.efer},
    {"cr0": LONG.cr0 | X86_CR0_NW},
    {"cr0": LONG.cr0 | 1 << 32},
    {"cr4": LONG.cr4 & ~X86_CR4_PAE},
    {"cr0": LONG.cr0 & ~X86_CR0_PE},
    {"cr3": 1 << MAXPHYADDR},
    {"cr4": LONG.cr4 | 1 << 23},
    {"cr4": LONG.cr4 | X86_CR4_PKE},
    {"efer": LONG.efer | EFER_SVME | 1 << 1},
    {"efer": LONG.efer | EFER_SVME | 1 << 14},
    {"dr6": 1 << 32},
    {"dr7": 1 << 63},
    {"cs_attrib": 3 << 9},
    {"iopm_base_pa": (1 << MAXPHYADDR) - 0x2000},
    {"msrpm_base_pa": 1 << MAXPHYADDR},
]
GOOD = [
    {"asid": 5},
    {"cr0": LONG.cr0 | X86_CR0_NW | X86_CR0_CD},
    {"cr3": L2_ROOT | 0x18},
    {"cs_attrib": 1 << 9, "dr6": 0xFFFF0FF0, "dr7": 0x400},
    {"iopm_base_pa": (1 << MAXPHYADDR) - 0x3000, "msrpm_base_pa": (1 << MAXPHYADDR) - 0x1801},
]


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_vmrun_of_a_bad_vmcb_goes_back_to_l1(fields: dict[str, int]) -> None:
    """L1 reads VMEXIT_INVALID and has its own state; L2 never ran."""
    machine, (entry, after) = steps(svm("64", "64", 5), ENTER, f"rd s 4 {HELPER_S:x}", **fields)
    told = exit_of(entry)
    assert (told["code"], told["info1"], told["info2"]) == (SVM_EXIT_ERR, 0, 0)
    assert not machine.kvm.vcpus[0].guest_mode
    assert not [e for e in entry.events if isinstance(e, ev.kvm_nested_vmenter)]
    assert after.outcome.kind is OutcomeKind.OK
    assert {name: vmcb_of(machine, name) for name in fields} == fields


@pytest.mark.parametrize("fields", GOOD, ids=str)
def test_what_vmrun_allows(fields: dict[str, int]) -> None:
    _, (entry,) = steps(svm("64", "64", 5), ENTER, **fields)
    assert entry.outcome.kind is OutcomeKind.L2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"event_inj": 1 << 31 | 3 << 8 | 14}, "injects an event"),
        ({"cr0": 0x20, "efer": EFER_SVME}, "real mode"),
        ({"efer": LONG.efer & ~EFER_LME | EFER_SVME}, "LMA without LME"),
    ],
)
def test_what_vmrun_takes_and_the_model_does_not_is_refused(fields: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        steps(svm("64", "64", 5), ENTER, **fields)


@pytest.mark.parametrize(
    "header",
    [
        "host amd nested=0\ncpu svm=1",
        "host amd npt=1\ncpu svm=1",
        "host amd\ncpu svm=1\nsregs 31 0 0 1000",
    ],
)
def test_vmrun_is_undefined_without_svme_or_paging(header: str) -> None:
    """``nested_svm_check_permissions``; with ``nested=0`` no guest gets SVME."""
    mode, root = ("np", "") if "sregs" in header else ("64", "root 10000\n")
    text = f"mmulab-scenario 1\nmode {mode}\n{header}\n{root}ops\nvmrun b000\nend\n"
    (result,) = [r for r in run_scenario(parse_scenario(text)) if r.text.startswith("vmrun")]
    assert (result.outcome.kind, result.outcome.vector) == (OutcomeKind.EXC, 6)


def test_an_entry_that_fails_after_the_checks_is_an_exit_with_half_its_code() -> None:
    """The tracepoint has the lower 32 bits of the VMCB's exit code (recorded: ffffffff)."""
    case = build.nested_guest("64", "pae", 4, nested_paging=False, npt=1)
    writable_pdpte = Value(8, build.L2_ROOT, 0b11)  # where that bit is reserved
    bad = replace(case.header, values=(*case.header.values, writable_pdpte))
    (_, entry) = islice(Runner(replace(case, header=bad)).results(), 2)
    assert exit_of(entry)["code"] == SVM_EXIT_ERR
    (exit,) = [e for e in entry.events if isinstance(e, ev.kvm_nested_vmexit_inject)]
    assert exit.reason == "0xffffffff"


def test_l2_that_turns_svm_off_is_refused() -> None:
    with pytest.raises(InputError, match="clears SVME while L2 runs, which is not modelled"):
        steps(svm("64", "64", 5), ENTER, "efer d00")


def test_vmrun_wants_the_intercept_of_itself() -> None:
    world = svm("64", "np", 4)
    runner = Runner(world.builder.value(4, CONTROL_PAGE + 16, 2).op(ENTER).build())
    (_, entry) = islice(runner.results(), 2)
    assert exit_of(entry)["code"] == SVM_EXIT_ERR


def test_nested_paging_needs_a_host_that_has_it() -> None:
    _, (entry,) = steps(svm("64", "np", 4, npt=0), ENTER)
    assert exit_of(entry)["code"] == SVM_EXIT_ERR


def test_vmrun_out_of_memory_is_a_general_protection_fault() -> None:
    _, (entry,) = steps(svm("64", "np", 4), "vmrun 3000000")
    assert (entry.outcome.kind, entry.outcome.vector, entry.outcome.error_code) == (OutcomeKind.EXC, 13, 0)


def test_each_side_has_its_own_registers() -> None:
    machine, results = steps(svm("57", "32", 5), ENTER, f"rd s 4 {NGPAS[0] + L2_OFFSET:x}")
    vcpu = machine.kvm.vcpus[0]
    l2 = MODES["32"]
    assert (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) == (l2.cr0, L2_ROOT, l2.cr4, l2.efer | EFER_SVME)
    assert vcpu.mmu is vcpu.guest_mmu
    assert vcpu.walk_mmu is vcpu.nested_mmu
    machine, results = steps(svm("57", "32", 5), ENTER, f"cr3 {L2_ROOT | 0x18:x}", LEAVE)
    vcpu, l1 = machine.kvm.vcpus[0], MODES["57"]
    assert (vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) == (l1.cr0, L1_ROOT, l1.cr4, l1.efer | EFER_SVME)
    assert vcpu.mmu is vcpu.walk_mmu is vcpu.root_mmu
    assert vmcb_of(machine, "cr3") == L2_ROOT | 0x18, "L2's own change is in the VMCB"
    assert exit_of(results[-1])["code"] == SVM_EXITS["vmmcall"]


@pytest.mark.parametrize("efer", [LONG.efer | EFER_SVME, (LONG.efer | EFER_SVME) & ~EFER_LMA])
def test_long_mode_is_active_as_the_vmcb_says(efer: int) -> None:
    """KVM works out EFER.LMA only where CR0.PG changes, and L1 pages (recorded: PAE tables are walked)."""
    machine, _ = steps(svm("64", "64", 5), ENTER, efer=efer)
    assert machine.kvm.vcpus[0].efer == efer


@pytest.mark.parametrize(
    ("place", "entry", "code"),
    [
        ("final", 0, PFERR_WRITE_MASK | PFERR_USER_MASK),
        ("final", PAGES[0] | 0x65, PFERR_PRESENT_MASK | PFERR_WRITE_MASK | PFERR_USER_MASK),
        ("table", 0, PFERR_WRITE_MASK | PFERR_USER_MASK),
    ],
)
def test_a_nested_page_fault_says_where_it_was(place: str, entry: int, code: int) -> None:
    """EXITINFO1 holds the error code and the stage, EXITINFO2 the nested guest-physical address."""
    world = svm("64", "64", 5)
    assert world.nested is not None
    assert world.own is not None
    gva = NGPAS[0] + L2_OFFSET
    table = world.own.entry(gva)
    changed = NGPAS[0] if place == "final" else table & ~0xFFF
    world.edit(world.nested.entry(changed), entry, 8)
    scenario = world.scenario(ENTER, f"wr s 4 {gva + 8:x} 1")
    results = [r for r in Runner(scenario).results() if r.text != "teardown"]
    told = exit_of(results[-1])
    stage = NPF_FINAL if place == "final" else NPF_TABLE
    where = NGPAS[0] + 8 if place == "final" else table
    assert (told["code"], told["info1"], told["info2"]) == (SVM_EXITS["npf"], stage | code, where)


# Intercepts --------------------------------------------------------------------------------


GVA = NGPAS[0] + L2_OFFSET


@pytest.mark.parametrize(
    ("op", "reason", "npt"),
    [
        (f"cr3 {L2_ROOT:x}", "write_cr3", 0),
        (f"cr4 {LONG.cr4:x}", "write_cr4", 0),
        (f"cr4 {LONG.cr4:x}", "write_cr4", 1),
        (f"invlpg {GVA:x}", "invlpg", 0),
    ],
)
def test_l1_gets_what_it_intercepts(op: str, reason: str, npt: int) -> None:
    def world() -> World:
        return svm("64", "64", 4, nested_paging=bool(npt), npt=npt)

    _, (_, result) = steps(world(), ENTER, op, intercepts=(SVM_EXITS[reason],))
    assert exit_of(result)["code"] == SVM_EXITS[reason]
    _, (_, result) = steps(world(), ENTER, op)
    assert result.outcome.kind is OutcomeKind.OK, "else L2 goes on"


def test_l1_gets_the_page_faults_of_l2_that_it_intercepts() -> None:
    """While L0 shadows, it sees them first: one of its own making is not told to L1."""
    world = svm("64", "64", 4, nested_paging=False, npt=0)
    ops = ENTER, f"rd s 4 {GVA:x}", "wr s 4 90000008 1"
    _, (_, own, theirs) = steps(world, *ops, intercepts=(SVM_EXITS["pf"],))
    assert own.outcome.kind is OutcomeKind.OK
    assert [e for e in own.events if isinstance(e, ev.kvm_page_fault)]
    told = exit_of(theirs)
    assert (told["code"], told["info1"], told["info2"]) == (SVM_EXITS["pf"], PFERR_WRITE_MASK, 0x90000008)


@pytest.mark.parametrize(
    ("code", "npt", "words"),
    [
        (SVM_EXITS["write_cr0"], 0, "write_cr0 (0x10), which is not modelled"),
        (SVM_EXITS["msr"], 0, "msr (0x7c), which is not modelled"),
        (SVM_EXITS["write_cr3"], 1, "write_cr3 (0x13), which is not modelled"),
        (SVM_EXITS["invlpg"], 1, "invlpg (0x79), which is not modelled"),
        (SVM_EXITS["pf"], 1, "exceptions 0x4000; none is modelled"),
        (SVM_EXITS["db"], 0, "exceptions 0x2; only 0x4000 is modelled"),
    ],
)
def test_intercepts_that_would_not_be_obeyed_are_refused(code: int, npt: int, words: str) -> None:
    world = svm("64", "64", 4, nested_paging=bool(npt), npt=npt)
    with pytest.raises(InputError, match=re.escape(f"the VMCB intercepts {words}")):
        steps(world, ENTER, intercepts=(code,))


@pytest.mark.parametrize("asked", [True, False])
def test_a_triple_fault_is_l1s_if_it_asked(asked: bool) -> None:
    codes = (SVM_EXITS["shutdown"],) if asked else ()
    machine, _ = steps(svm("64", "np", 4), ENTER, intercepts=codes)
    vcpu = machine.kvm.vcpus[0]
    vcpu.requests |= Request.TRIPLE_FAULT
    nested = vcpu.nested
    assert isinstance(nested, SvmNested)
    assert nested.triple_fault(vcpu) is asked
    assert bool(vcpu.requests & Request.TRIPLE_FAULT) is not asked
    assert vcpu.guest_mode is not asked
    if asked:
        assert vmcb_of(machine, "exit_code") == SVM_EXITS["shutdown"]


def test_intercepts_are_bits_of_words_by_exit_code() -> None:
    nested = SvmNested(0, {"nested_cr3": 0, "nested_ctl": 0}, (0, 0, 1 << PF_VECTOR, 1 << 31, 1))
    asked = [code for code in (*range(0xA0), SVM_EXITS["npf"], SVM_EXIT_ERR) if nested.intercepted(code)]
    assert asked == [SVM_EXITS["pf"], SVM_EXITS["shutdown"], SVM_EXITS["vmrun"]]


# Flushes, roots, dirty log --------------------------------------------------------------------


def test_each_change_of_world_syncs_and_flushes() -> None:
    _, results = steps(svm("64", "np", 4), ENTER, f"rd s 4 {NGPAS[0]:x}", LEAVE, ENTER)
    synced = [any(isinstance(e, ev.kvm_mmu_sync_roots) for e in r.events) for r in results]
    assert synced == [True, False, True, True]


def test_the_nested_root_is_kept_over_an_exit() -> None:
    read = f"rd s 4 {NGPAS[0]:x}"
    _, results = steps(svm("64", "np", 4), ENTER, read, LEAVE, ENTER, read)
    looked = [
        number
        for number, result in enumerate(results)
        for e in result.events
        if isinstance(e, ev.kvm_mmu_get_page) and e.gfn == NESTED_ROOT >> 12
    ]
    assert looked == [0]


def test_the_vmcb_is_dirty_after_an_entry_and_an_exit() -> None:
    world = svm("64", "np", 4)
    log = f"slot 0 0 {world.builder.mem:x} 1 0", "getdirty 0"
    _, results = steps(world, *log, ENTER, "getdirty 0", LEAVE, "getdirty 0")
    dirty = [r.outcome.dirty for r in results if r.outcome.dirty is not None]
    assert [CONTROL_PAGE >> 12 in pages for pages in dirty] == [False, True, True]


def test_cr4_of_l2_comes_back_to_l1_without_npt() -> None:
    """6.1 writes it to the wrong VMCB when CR0.PG differs (``svm_set_cr0``): a 32-bit L1 shuts down."""
    machine, _ = steps(svm("64", "np", 4, nested_paging=False, npt=0), ENTER, LEAVE, cr4=X86_CR4_PGE)
    assert machine.kvm.vcpus[0].cr4 == X86_CR4_PGE | X86_CR4_PAE | X86_CR4_MCE
    machine, _ = steps(svm("64", "np", 4, nested_paging=False, npt=1), ENTER, LEAVE, cr4=X86_CR4_PGE)
    assert machine.kvm.vcpus[0].cr4 == LONG.cr4
    _, results = steps(svm("32", "np", 4, nested_paging=False, npt=0), ENTER, LEAVE)
    assert results[-1].outcome.kind is OutcomeKind.SHUTDOWN


def test_cr4_of_an_l1_that_does_not_page_comes_back_without_what_acts_on_paging_alone() -> None:
    """VMRUN is not for such an L1, but the host save area that RSM reads may hold one (svm_set_cr4)."""
    machine, _ = steps(svm("64", "64", 4, nested_paging=False, npt=0), ENTER)
    vcpu = machine.kvm.vcpus[0]
    l1 = {"cr0": X86_CR0_PE, "cr4": 0, "efer": vcpu.efer, "rip": 0}
    l2s = vcpu.cr4 = X86_CR4_PAE | X86_CR4_PGE | X86_CR4_SMEP | X86_CR4_SMAP | X86_CR4_PKE
    _restore_l1(vcpu, l1)
    assert vcpu.cr4 == l2s & ~(X86_CR4_SMEP | X86_CR4_SMAP | X86_CR4_PKE) | X86_CR4_MCE
