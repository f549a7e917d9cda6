"""What can be seen of a machine agrees with the processor's own walks."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.machine import op as ops
from mmulab.machine.view import gpa_of, guest_walk, hpa_str, shadow_steps
from mmulab.scenario.record import record
from mmulab.trace.recording import Recording
from mmulab.x86.pferr import ACC_ALL
from tests.trace.conftest import scenario

LEVELS = {"32": [2, 1], "pae": [3, 2, 1], "64": [4, 3, 2, 1], "57": [5, 4, 3, 2, 1]}


def reads(recording: Recording) -> list[int]:
    """Return the ops that read and reached memory where the guest's tables lead."""
    return [
        number
        for number, op in enumerate(recording.ops)
        if isinstance(op, (ops.Read, ops.Write))
        and recording.outcome(number).hpa != -1
        and number not in recording.verdicts
    ]


@pytest.mark.parametrize("name", ["sh/basic-32", "sh/basic-pae", "sh/basic-64", "sh/fuzz-57-mix-00"])
def test_both_walks_lead_to_what_was_reached(name: str) -> None:
    recording = record(scenario(name))
    mode = recording.info.scenario.split("mode ")[1].split()[0]
    checked = 0
    for number in reads(recording)[:20]:
        op, outcome = recording.op(number), recording.outcome(number)
        machine = recording.after(number).machine
        walk = guest_walk(machine, op.gva, vcpu=op.vcpu)  # type: ignore[attr-defined]
        steps = shadow_steps(machine, op.gva, vcpu=op.vcpu)  # type: ignore[attr-defined]
        assert walk.gpa == gpa_of(machine, outcome.hpa)
        if not steps or not steps[-1].last:
            continue  # the op's end may have zapped the path
        checked += 1
        assert steps[-1].gfn == outcome.hpa - (machine.memory.backing << 12) >> 12
        if name.startswith("sh/basic"):
            assert [step.level for step in walk.steps] == LEVELS[mode]
        assert walk.steps[0].access in (ACC_ALL, walk.steps[-1].access)
        memory = machine.memory
        for step in steps:
            assert memory.words[step.sptep >> 3] == step.spte
            assert step.sptep == step.frame << 12 | step.entry_index << 3
    assert checked > 5


def test_fault_of_the_guest_is_seen() -> None:
    recording = record(scenario("sh/not-present-64"))
    faults = [n for n, e in enumerate(recording.events) if isinstance(e, ev.kvm_mmu_walker_error)]
    seen = 0
    for event in faults[:10]:
        state = recording.at(event)
        error = recording.events[event]
        walked = next(
            e for e in recording.events_of(state.moment.op)[::-1] if isinstance(e, ev.kvm_mmu_pagetable_walk)
        )
        walk = guest_walk(state.machine, walked.addr, pfec=walked.pferr & 0x16)
        if walk.error is not None:
            seen += walk.error == error.pferr
            assert walk.gpa is None
    assert seen


def test_looking_changes_nothing() -> None:
    recording = record(scenario("sh/accessed-dirty-64"))
    for number in reads(recording)[:5]:
        state = recording.after(number)
        before = state.digest()
        guest_walk(state.machine, state.op.gva)  # type: ignore[attr-defined]
        shadow_steps(state.machine, state.op.gva)  # type: ignore[attr-defined]
        assert state.digest() == before


def test_without_paging_the_address_is_physical() -> None:
    recording = record(scenario("sh/nonpaging"))
    number = reads(recording)[0]
    walk = guest_walk(recording.after(number).machine, 0x1234)
    assert (walk.mode, walk.gpa, walk.steps) == ("nonpaging", 0x1234, ())


def test_a_root_that_never_was_is_none() -> None:
    assert [hpa_str(0x7000), hpa_str(0x7000, "#x"), hpa_str(-1, "#x")] == ["7000", "0x7000", "none"]
