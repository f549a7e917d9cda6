"""INVPCID as the guest executes it: exits, exceptions, and what it sees afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.invariants import Invariant, status, violations
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, OutcomeKind
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import load_memory, run
from mmulab.scenario.scenario import Scenario
from mmulab.x86.mode import PT_ACCESSED_MASK, PT_DIRTY_MASK, PT_PRESENT_MASK, PT_USER_MASK, PT_WRITABLE_MASK
from mmulab.x86.regs import X86_CR3_PCID_NOFLUSH, X86_CR4_PAE, X86_CR4_PCIDE
from tests.machine.test_architecture import Prediction, predict, seen

HOSTS: dict[str, tuple[str, dict[str, int]]] = {
    "amd": ("amd", {"nrips": 1, "decode_assists": 1}),
    "amd-npt": ("amd", {"nrips": 1, "npt": 1}),
    "intel": ("intel", {}),
    "intel-ept": ("intel", {"ept": 1}),
}
STUB = 0x19E0
OPERAND = 0x17C0
GVA = 0x40000000
ROOTS = (0x10000, 0x11000)


def builder(host: str, **cpu: int) -> ScenarioBuilder:
    """Return a 4-level guest on a host; no op precedes those of the test."""
    vendor, changes = HOSTS[host]
    return ScenarioBuilder("64", vendor=vendor, host=changes, cpu=cpu).root(ROOTS[0])


def exits_of(scenario: Scenario, op: str) -> tuple[ops.Outcome, list[str]]:
    """Run a scenario; return the outcome of its op `op` and why the processor left the guest."""
    result = next(r for r in run(scenario) if r.text == op)
    return result.outcome, [e.reason for e in result.events if isinstance(e, ev.kvm_exit)]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kind", range(4))
def test_it_exits_only_while_kvm_shadows(host: str, kind: int) -> None:
    """``svm_recalc_instruction_intercepts``; VMX: "INVLPG exiting" is off with EPT (``vmx_exec_control``)."""
    scenario = builder(host, pcid=1, invpcid=1).op(f"invpcid {kind:x} 0 {GVA:x}").build()
    outcome, exits = exits_of(scenario, f"invpcid {kind:x} 0 {GVA:x}")
    assert (outcome.kind, outcome.rip) == (OutcomeKind.OK, STUB + 5)
    intercepted = not host.endswith("pt")
    assert ("invpcid" in exits) is intercepted
    # What KVM emulates or skips ends there; what the processor executed ends in the VMM's #DB.
    assert ("db" in exits) is not intercepted


def test_the_exit_tells_the_operand() -> None:
    """SVM: EXITINFO1 the address, EXITINFO2 the type; VMX: the displacement (``handle_invpcid``)."""
    for host, told in (("amd", (OPERAND, 3)), ("intel", (0, None))):
        results = run(builder(host, invpcid=1).op("invpcid 3 0 0").build())
        exits = [e for e in results[1].events if isinstance(e, ev.kvm_exit) and e.reason == "invpcid"]
        assert [(e.qualification, e.address) for e in exits] == [told]


@pytest.mark.parametrize("host", HOSTS)
def test_without_the_feature_it_is_undefined(host: str) -> None:
    """SVM keeps the intercept for this; on VMX the #UD of the processor is intercepted (``handle_ud``)."""
    outcome, exits = exits_of(builder(host, pcid=1).op("invpcid 2 0 0").build(), "invpcid 2 0 0")
    assert (outcome.kind, outcome.vector, outcome.rip) == (OutcomeKind.EXC, 6, STUB)
    assert [reason for reason in exits if reason in ("invpcid", "ud")] == [
        "invpcid" if host.startswith("amd") else "ud"
    ]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "op", ["invpcid 4 0 0", "invpcid 2 1000 0", "invpcid 0 1 0", "invpcid 1 1 0", "invpcid 0 0 800000000000"]
)
def test_what_is_not_valid_is_a_general_protection_fault(host: str, op: str) -> None:
    outcome, _ = exits_of(builder(host, pcid=1, invpcid=1).op(op).build(), op)
    assert (outcome.kind, outcome.vector, outcome.error_code) == (OutcomeKind.EXC, 13, 0)
    assert outcome.rip == STUB


def test_svm_without_next_rip_cannot_skip_it() -> None:
    """The emulator, which must tell the length, has no INVPCID (``opcode_map_0f_38``)."""
    made = ScenarioBuilder("64", host={"nrips": 0}, cpu={"invpcid": 1}).root(ROOTS[0]).op("invpcid 2 0 0")
    result = run(made.build())[1]
    assert result.outcome.kind is OutcomeKind.INTERNAL_ERROR
    emulated = [e for e in result.events if isinstance(e, ev.kvm_emulate_insn)]
    assert [(e.insn, e.failed) for e in emulated] == [("660f3882", False), ("", True)]


# Random guests --------------------------------------------------------------------

TABLE = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK
PAGE = TABLE | PT_DIRTY_MASK
PDPTS, PDS = (0x12000, 0x13000), (0x14000, 0x15000)
PTS = (0x16000, 0x17000, 0x18000)
WINDOW_PT = 0x19000
TABLES = (*PDPTS, *PDS, *PTS)
BASE = 1 << 39
WINDOW = BASE + (8 << 21)
DATA = tuple(range(0x20000, 0x24000, 0x1000))
GVAS = tuple(BASE + (pde << 21) + (pte << 12) for pde in (0, 1) for pte in (0, 1, 9))
LEAVES = tuple(gpa | flags for gpa in DATA for flags in (PAGE, PAGE & ~PT_WRITABLE_MASK, TABLE, 0))


@dataclass(frozen=True)
class Judged:
    """An access behind an INVPCID of `kind` that covers it.

    `root`, `pcid`: loaded in between without a flush; None: those in use.
    """

    kind: int
    access: ops.Read | ops.Write
    root: int | None = None
    pcid: int | None = None


def pcid_machine(host: str) -> Machine:
    """Make a guest of two roots, which share tables and which it can write through a window."""
    made = builder(host, pcid=1, invpcid=1)
    made.root(ROOTS[1])
    for table in (*TABLES, WINDOW_PT):
        made.fill(table, 0x1000, 0)
    for root, pdpt, pd, own in zip(ROOTS, PDPTS, PDS, PTS, strict=False):
        made.value(8, root + 8, pdpt | TABLE).value(8, pdpt, pd | TABLE)
        made.value(8, pd, own | TABLE).value(8, pd + 8, PTS[2] | TABLE).value(8, pd + 64, WINDOW_PT | TABLE)
    for page in DATA:
        made.value(8, page, 0xC0DE0000 | page >> 12)
    for number, table in enumerate(TABLES):
        made.value(8, WINDOW_PT + 8 * number, table | PAGE)
    for table in PTS:
        for index in (0, 1, 9):
            made.value(8, table + 8 * index, DATA[index % 4] | PAGE)
    scenario = made.build()
    machine = Machine(machine_config(scenario))
    load_memory(machine.memory, scenario.header, [ops.Invpcid])
    machine.execute(ops.SetSregs(**scenario.header.regs._asdict()))
    machine.execute(ops.WriteCr(4, X86_CR4_PAE | X86_CR4_PCIDE))
    return machine


def store(table: int, index: int, value: int) -> ops.Write:
    """Return the guest's store of an entry."""
    return ops.Write(Mode.SUPERVISOR, 8, WINDOW + (TABLES.index(table) << 12) + 8 * index, value)


def load(root: int, pcid: int, flag: int) -> ops.WriteCr:
    return ops.WriteCr(3, root | pcid | flag)


_ROOTS, _PCIDS, _GVAS = st.sampled_from(ROOTS), st.sampled_from((1, 2, 3)), st.sampled_from(GVAS)
_SUPERVISOR = st.just(Mode.SUPERVISOR)
_ACCESSES = st.one_of(
    st.builds(ops.Read, _SUPERVISOR, st.just(8), _GVAS),
    st.builds(ops.Write, _SUPERVISOR, st.just(8), _GVAS, st.integers(0, (1 << 64) - 1)),
)
_STORES = st.builds(store, st.sampled_from(PTS), st.sampled_from((0, 1, 9)), st.sampled_from(LEAVES))


@st.composite
def _left_behind(draw: st.DrawFn) -> list[Op | Judged]:
    """Use a page, go to another PCID, edit tables there, and judge the page behind a flush of its PCID."""
    root, pcid, gva = draw(_ROOTS), draw(_PCIDS), draw(_GVAS)
    there = load(root, pcid, X86_CR3_PCID_NOFLUSH)
    away = load(draw(_ROOTS), pcid % 3 + 1, X86_CR3_PCID_NOFLUSH)
    access = ops.Read(Mode.SUPERVISOR, 8, gva)
    table = draw(st.sampled_from(PTS))
    edit = store(table, gva >> 12 & 0x1FF, draw(st.sampled_from(LEAVES)))
    return [there, access, away, edit, Judged(draw(st.sampled_from(range(4))), access, root, pcid)]


_STEPS = st.one_of(
    _STORES,
    st.builds(store, st.sampled_from(PDS), st.sampled_from((0, 1)), st.sampled_from(PTS).map(TABLE.__or__)),
    st.builds(load, _ROOTS, _PCIDS, st.sampled_from((0, X86_CR3_PCID_NOFLUSH))),
    st.builds(ops.Invpcid, st.sampled_from(range(4)), _PCIDS, _GVAS),
    _ACCESSES,
    st.builds(Judged, st.sampled_from(range(4)), _ACCESSES),
)
_LISTS = st.lists(st.one_of(_STEPS.map(lambda step: [step]), _left_behind()), min_size=15, max_size=30)


def judge(machine: Machine, judged: Judged) -> None:
    """Flush, and compare the access with a walk of the guest's own tables."""
    vcpu = machine.kvm.vcpus[0]
    op = judged.access
    pcid = vcpu.cr3 & 0xFFF if judged.pcid is None else judged.pcid
    done = machine.execute(ops.Invpcid(judged.kind, pcid, op.gva))
    assert done.kind is OutcomeKind.OK
    if judged.root is not None and judged.pcid is not None:
        machine.execute(load(judged.root, judged.pcid, X86_CR3_PCID_NOFLUSH))
    prediction = Prediction(machine)
    expected = predict(vcpu, prediction, op)
    machine.memory.epoch += 1
    outcome = machine.execute(op)
    assert seen(vcpu, op, outcome) == expected
    assert prediction.wrong_frames(machine.memory.epoch) == []


@pytest.mark.parametrize("host", HOSTS)
def test_a_flushed_access_is_what_the_guests_tables_say(host: str) -> None:
    """Of the current PCID, or of one that is loaded without a flush afterwards, whatever the type."""
    compared = 0

    @settings(max_examples=100, phases=[Phase.generate])
    @given(_LISTS)
    def check(lists: list[list[Op | Judged]]) -> None:
        nonlocal compared
        machine = pcid_machine(host)
        for step in chain.from_iterable(lists):
            if isinstance(step, Judged):
                judge(machine, step)
                compared += 1
            else:
                machine.execute(step)
            assert status(machine.kvm) is Invariant.VALID, violations(machine.kvm)

    check()
    assert compared > 100
