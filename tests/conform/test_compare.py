"""Comparison: agreement at each level, and every kind of difference, found where it is."""

from __future__ import annotations

import dataclasses
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mmulab import events as ev
from mmulab.conform.compare import Level, Part, compare, first_difference
from mmulab.conform.recording import KernelRecording, RecordedOp, read_lines, read_recording
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from tests.conform.deaths import cut_short, write

OP = 3
"""The op that the tests change: a read with a walk and a fault."""


@pytest.fixture(scope="module")
def recording(root: Path) -> KernelRecording:
    """A recording with which the model agrees."""
    return read_recording(root / "data/conformance/6.1.192/sh/basic-64.jsonl.xz")


def changed(
    recording: KernelRecording, change: Callable[[RecordedOp], RecordedOp], number: int = OP
) -> KernelRecording:
    """Return the recording with one op changed, as if the kernel had done otherwise."""
    ops = list(recording.ops)
    ops[number] = change(ops[number])
    return dataclasses.replace(recording, ops=tuple(ops))


def without_event(kind: type) -> Callable[[RecordedOp], RecordedOp]:
    """Leave out the first event of a kind."""

    def change(op: RecordedOp) -> RecordedOp:
        at = next(i for i, e in enumerate(op.events) if isinstance(e, kind))
        return dataclasses.replace(op, events=op.events[:at] + op.events[at + 1 :])

    return change


@pytest.mark.parametrize("level", list(Level))
def test_the_model_agrees_with_the_kernel(recording: KernelRecording, level: Level) -> None:
    result = compare(recording, level)
    assert result.difference is None
    assert result.agrees
    assert (
        (result.ops_agree, result.events_agree)
        == (result.ops, result.events)
        == (
            len(recording.ops),
            sum(len(level.events(op.events)) for op in recording.ops),
        )
    )


def test_the_levels_are_nested(recording: KernelRecording) -> None:
    totals = [compare(recording, level).events for level in (Level.OUTCOME, Level.MMU, Level.FULL)]
    assert totals == sorted(totals)
    assert totals[0] == 0 < totals[1] < totals[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [("addr", 1), ("pferr", 2)],
)
def test_any_field_of_an_event_counts(recording: KernelRecording, field: str, value: int) -> None:
    def change(op: RecordedOp) -> RecordedOp:
        at = next(i for i, e in enumerate(op.events) if isinstance(e, ev.kvm_mmu_pagetable_walk))
        events = list(op.events)
        events[at] = events[at]._replace(**{field: value})
        return dataclasses.replace(op, events=tuple(events))

    result = compare(changed(recording, change, 1), Level.MMU)
    assert result.difference is not None
    assert (result.difference.number, result.difference.part) == (1, Part.EVENT)
    assert getattr(result.difference.recorded, field) == value
    assert isinstance(result.difference.model, ev.kvm_mmu_pagetable_walk)
    assert result.ops_agree == result.ops - 1


def test_an_event_missing_in_the_model_is_found(recording: KernelRecording) -> None:
    def change(op: RecordedOp) -> RecordedOp:
        return dataclasses.replace(op, events=(*op.events, ev.kvm_mmu_walker_error(4)))

    result = compare(changed(recording, change), Level.MMU)
    assert result.difference is not None
    assert result.difference.recorded == ev.kvm_mmu_walker_error(4)
    assert result.difference.model is None
    assert result.difference.event == len(Level.MMU.events(recording.ops[OP].events))


def test_each_level_sees_what_it_compares_and_no_more(recording: KernelRecording) -> None:
    missing_exit = changed(recording, without_event(ev.kvm_exit), 1)
    assert compare(missing_exit, Level.MMU).agrees
    assert not compare(missing_exit, Level.FULL).agrees
    missing_walk = changed(recording, without_event(ev.kvm_mmu_pagetable_walk), 1)
    assert compare(missing_walk, Level.OUTCOME).agrees
    assert not compare(missing_walk, Level.MMU).agrees


def test_outcomes_count_at_every_level(recording: KernelRecording) -> None:
    wrong = changed(recording, lambda op: dataclasses.replace(op, outcome={**op.outcome, "rip": 5}))
    for level in Level:
        result = compare(wrong, level)
        assert result.difference is not None
        assert (result.difference.number, result.difference.part) == (OP, Part.OUTCOME)
        assert result.events_agree == result.events


def test_statistics_count_at_level_full_alone(recording: KernelRecording) -> None:
    wrong = changed(recording, lambda op: dataclasses.replace(op, stats={**op.stats, "mmu_unsync": 9}))
    assert compare(wrong, Level.MMU).agrees
    result = compare(wrong, Level.FULL)
    assert result.difference is not None
    assert (result.difference.number, result.difference.part) == (OP, Part.STATS)
    other = changed(recording, lambda op: dataclasses.replace(op, stats={**op.stats, "max_mmu_rmap_size": 9}))
    assert compare(other, Level.FULL).agrees


def test_the_sequence_of_ops_counts(recording: KernelRecording) -> None:
    renamed = changed(recording, lambda op: dataclasses.replace(op, text="nop"))
    result = compare(renamed, Level.OUTCOME)
    assert result.difference is not None
    assert (result.difference.number, result.difference.part) == (OP, Part.OP)
    longer = dataclasses.replace(recording, ops=(*recording.ops, recording.ops[-1]))
    result = compare(longer, Level.OUTCOME)
    assert result.difference is not None
    assert (result.difference.number, result.difference.model) == (len(recording.ops), None)
    shorter = dataclasses.replace(recording, ops=recording.ops[:-1])
    result = compare(shorter, Level.OUTCOME)
    assert result.difference is not None
    assert (result.difference.number, result.difference.recorded) == (len(recording.ops) - 1, None)


def test_a_failure_of_the_model_is_a_difference_where_it_happened(
    recording: KernelRecording, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Machine.execute
    calls = iter(range(1000))

    def failing(machine: Machine, op: Op) -> Outcome:
        if next(calls) == OP:
            raise ZeroDivisionError("in the model")
        return execute(machine, op)

    monkeypatch.setattr(Machine, "execute", failing)
    result = compare(recording, Level.MMU)
    assert result.difference is not None
    assert (result.difference.number, result.difference.part) == (OP, Part.FAILURE)
    assert "ZeroDivisionError: in the model" in result.difference.model
    assert result.ops_agree == OP
    assert not result.agrees


def test_what_the_model_does_not_know_is_a_problem_not_a_difference(root: Path, tmp_path: Path) -> None:
    text = lzma.decompress((root / "data/conformance/6.1.192/sh/basic-pae.jsonl.xz").read_bytes()).decode()
    path = tmp_path / "beyond.jsonl"
    text = re.sub('"lm": ?1', '"lm":0', text, count=1)
    path.write_text(re.sub('"op":"rd [^"]*"', '"op":"smm on"', text, count=1))
    recording = read_recording(path)
    result = compare(recording, Level.MMU)
    assert result.difference is None
    assert not result.agrees
    assert result.problem == f"{recording.path}: line 3: the op smm is not modelled for a guest with lm=0"


def test_first_difference_tells_kinds_apart() -> None:
    # Both are tuples of one number.
    dirty, accessed = ev.kvm_mmu_set_dirty_bit(8), ev.kvm_mmu_set_accessed_bit(8)
    assert first_difference([dirty], [dirty]) is None
    assert first_difference([dirty], [accessed]) == 0
    assert first_difference([dirty, dirty], [dirty]) == 1
    assert first_difference([], []) is None


def test_what_came_before_a_death_is_compared(root: Path, tmp_path: Path, recording: KernelRecording) -> None:
    lines = read_lines(root / "data/conformance/6.1.192/sh/basic-64.jsonl.xz")
    died = read_recording(write(tmp_path / "died.jsonl", cut_short(lines, OP + 2)))
    result = compare(died, Level.FULL)
    assert result.agrees
    assert (result.ops_agree, result.ops) == (OP + 1, OP + 1)
    assert result.events == sum(len(op.events) for op in recording.ops[: OP + 1])
    assert result.fatal == died.ops[OP + 1]
    assert "host_died: BUG: kernel NULL pointer" in result._repr_html_()
    wrong = compare(changed(died, without_event(ev.kvm_exit)), Level.FULL)
    assert not wrong.agrees
    assert wrong.difference is not None
    assert wrong.difference.number == OP


def test_the_model_may_fail_where_the_kernel_died(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = read_lines(root / "data/conformance/6.1.192/sh/basic-64.jsonl.xz")
    died = read_recording(write(tmp_path / "died.jsonl", cut_short(lines, OP + 1)))
    fatal, execute = died.scenario.steps[-1].op, Machine.execute

    def failing(machine: Machine, op: Op) -> Outcome:
        if op == fatal:
            raise ZeroDivisionError("in the model")
        return execute(machine, op)

    monkeypatch.setattr(Machine, "execute", failing)
    assert compare(died, Level.FULL).agrees
