"""Two runs of a scenario, recorded or the model's: their ops beside each other, and what differs.

A whole scenario may be on one side only, or begin otherwise: that is a difference too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from difflib import SequenceMatcher
from typing import NamedTuple

from mmulab import events as ev
from mmulab.conform.classify import HEADER, MODEL, Delta, How, Kind, classify
from mmulab.conform.codec import canonical
from mmulab.conform.compare import Level, frame_map, not_recorded
from mmulab.conform.outcome import encode_outcome
from mmulab.conform.recording import TEARDOWN, KernelRecording, RecordedOp
from mmulab.conform.tally import WHOLE, OpDiff
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import Header, Scenario

__all__ = [
    "Run",
    "diff_headers",
    "diff_runs",
    "model_run",
    "only",
    "op_pairs",
    "scenario_run",
    "whole_scenario",
]

_HOST = frozenset(("vendor", "host", "quirks", "kernel"))
"""Fields of a header that say where a scenario ran, not what it is."""


class Run(NamedTuple):
    """A run of a scenario.

    Attributes
    ----------
    vendor : str
    ops : tuple of RecordedOp
    failure : str
        What the model raised in the op behind the last one; empty: nothing.
    """

    vendor: str
    ops: tuple[RecordedOp, ...]
    failure: str = ""

    @classmethod
    def of(cls, recording: KernelRecording) -> Run:
        """Return a recorded run."""
        return cls(recording.scenario.header.vendor, recording.ops)


def model_run(recording: KernelRecording, kernel: Kernel) -> Run:
    """Run a recording's scenario in the model and return its ops as a recording has them.

    Where the recorded kernel died, the model's run ends after that op too: nobody knows what comes next.

    Parameters
    ----------
    recording : KernelRecording
        Its ops give theirs their numbers: a scenario's steps are only those that ran.
    kernel : Kernel

    Raises
    ------
    InputError
        The scenario is more than the model knows.
    """
    ends = len(recording.ops) if recording.fatal is not None else None
    numbers = dict(enumerate([*(op.index for op in recording.steps), recording.end]))
    return scenario_run(recording.scenario, kernel, numbers, ends)


def scenario_run(
    scenario: Scenario, kernel: Kernel, numbers: Mapping[int, int] | None = None, most: int | None = None
) -> Run:
    """Run a scenario in the model and return its ops as a recording has them.

    Parameters
    ----------
    scenario : Scenario
    kernel : Kernel
    numbers : mapping of int to int, optional
        Other numbers of some steps.
    most : int, optional
        Ops after which the run ends; what the runner adds counts too.

    Raises
    ------
    InputError
        The scenario is more than the model knows.
    """
    vendor = scenario.header.vendor
    absent = not_recorded(scenario.header) + ev.CONSOLE
    known = {} if numbers is None else numbers
    ops: list[RecordedOp] = []
    failure = ""
    try:
        runner = Runner(scenario, config=machine_config(scenario, kernel))
        frames = frame_map(runner.machine.memory)
        for result in runner.results():
            events = (e for e in result.events if not isinstance(e, absent))
            ops.append(
                RecordedOp(
                    line=0,
                    index=known.get(result.index, result.index),
                    text=result.text,
                    outcome=encode_outcome(result.outcome),
                    events=tuple([canonical(event, frames) for event in events]),
                    stats=result.stats,
                )
            )
            if len(ops) == most:
                break
    except InputError:
        raise
    except Exception as error:  # the report says which op met it
        failure = f"{type(error).__name__}: {error}"
    return Run(vendor, tuple(ops), failure)


def diff_headers(ours: Header, theirs: Header) -> list[Delta]:
    """Return in what two scenarios begin otherwise; where they ran is not asked."""
    found = []
    for name in (f.name for f in fields(Header) if f.name not in _HOST):
        one, other = getattr(ours, name), getattr(theirs, name)
        if one != other:
            found.append(Delta((Kind(HEADER, How.OTHER, name),), f"{name} {one}", f"{name} {other}"))
    return found


def whole_scenario(*deltas: Delta) -> OpDiff:
    """Return differences that concern no single op."""
    return OpDiff(WHOLE, "", 0, deltas)


def diff_runs(ours: Run, theirs: Run, level: Level) -> tuple[int, list[OpDiff]]:
    """Compare two runs op for op.

    Returns
    -------
    int
        Ops of both sides together, those that both have counted once.
    list of OpDiff
        Those that differ.
    """
    count = 0
    found = []
    for i, j in op_pairs(ours.ops, theirs.ops):
        count += 1
        one = None if i is None else ours.ops[i]
        other = None if j is None else theirs.ops[j]
        if one is not None and other is not None and _same(one, other):
            continue
        deltas = [*_failures(ours, theirs, i, j), *classify(one, other, level, (ours.vendor, theirs.vendor))]
        if deltas:
            op = one or other
            assert op is not None
            size = sum(len(level.events(side.events)) for side in (one, other) if side is not None)
            found.append(OpDiff(op.index, op.text, size, tuple(deltas)))
    return count, found


def only(ops: list[OpDiff], wanted: Callable[[Kind], bool]) -> list[OpDiff]:
    """Return the ops that differ in a wanted kind, without their other differences."""
    kept = []
    for op in ops:
        deltas = tuple(delta for delta in (d.only(wanted) for d in op.deltas) if delta.kinds)
        if deltas:
            kept.append(op._replace(deltas=deltas))
    return kept


def op_pairs(
    ours: tuple[RecordedOp, ...], theirs: tuple[RecordedOp, ...]
) -> Iterator[tuple[int | None, int | None]]:
    """Yield which op is which by number and text; one that was skipped or never came has none beside it."""
    a, b = ([(0 if op.text == TEARDOWN else op.index, op.text) for op in side] for side in (ours, theirs))
    for tag, i, i_end, j, j_end in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            yield from zip(range(i, i_end), range(j, j_end), strict=True)
        else:
            yield from ((at, None) for at in range(i, i_end))
            yield from ((None, at) for at in range(j, j_end))


def _same(one: RecordedOp, other: RecordedOp) -> bool:
    """Whether nothing at all differs, without looking at what kinds there are."""
    return (
        one.events == other.events
        and one.outcome == other.outcome
        and one.stats == other.stats
        and all(type(a) is type(b) for a, b in zip(one.events, other.events, strict=True))
    )


def _failures(ours: Run, theirs: Run, i: int | None, j: int | None) -> Iterator[Delta]:
    """Yield what the model raised in an op that the other side alone has."""
    kind = (Kind(MODEL, How.FAILED),)
    if ours.failure and i is None and j == len(ours.ops):
        yield Delta(kind, ours=ours.failure)
    if theirs.failure and j is None and i == len(theirs.ops):
        yield Delta(kind, theirs=theirs.failure)
