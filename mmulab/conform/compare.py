"""Comparison of a recording with the model's run of the same scenario.

Three nested levels: what the guest and the VMM see, the MMU's events, every
event and statistic. A scenario conforms at a level when each op agrees on it,
in order, with all fields.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from mmulab import events as ev
from mmulab.conform.codec import canonical
from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.conform.recording import TEARDOWN, KernelRecording, RecordedOp
from mmulab.conform.values import FrameMap
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.kvm.roles.design import RoleDesign
from mmulab.memory.host import HostMemory
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.scenario import Header
from mmulab.x86.markup import facts_html

MMU_EVENTS = frozenset((*ev.KVMMMU, ev.kvm_page_fault, ev.kvm_inj_exception))
"""Types compared at level ``mmu``."""

NOT_RECORDED: dict[str, tuple[type[ev.Event], ...]] = {"amd": (ev.kvm_nested_vmenter,), "intel": ()}
"""Tracepoints that were off when a vendor's recordings were made."""


def not_recorded(header: Header) -> tuple[type[ev.Event], ...]:
    """Return the events that no recording of a host like this has."""
    return NOT_RECORDED[header.vendor] + find_kernel(header.kernel).events.not_recorded()


_STAT_PREFIXES = ("mmu_", "pages_", "pf_", "remote_tlb_flush")
_STATS = ("invlpg", "tlb_flush", "nx_lpage_splits")


class Level(StrEnum):
    """How much is compared; each level includes the ones before."""

    OUTCOME = "outcome"
    MMU = "mmu"
    FULL = "full"

    def events(self, events: Iterable[ev.Event]) -> list[ev.Event]:
        """Return those of `events` that this level compares."""
        if self is Level.OUTCOME:
            return []
        if self is Level.MMU:
            return [e for e in events if type(e) in MMU_EVENTS]
        return [e for e in events if type(e) not in ev.CONSOLE]

    def stats(self, stats: dict[str, int]) -> dict[str, int]:
        """Return those of `stats` that this level compares."""
        if self is not Level.FULL:
            return {}
        return {k: v for k, v in stats.items() if v and (k in _STATS or k.startswith(_STAT_PREFIXES))}


class Part(StrEnum):
    """What of an op differs."""

    OP = "op"
    OUTCOME = "outcome"
    EVENT = "event"
    STATS = "stats"
    FAILURE = "failure"
    """The model raised an exception, which is a bug of the model."""


class Difference(NamedTuple):
    """Where a recording and the model part.

    Attributes
    ----------
    number : int
        Position in the recording's ops, ``init`` being 0.
    part : Part
    event : int
        For an event: its position among those that the level compares.
    recorded, model : object or None
        Op, outcome, event or statistics of both sides; None if the side has no more.
        After a failure `model` is the traceback.
    """

    number: int
    part: Part
    event: int
    recorded: Any
    model: Any


@dataclass(slots=True)
class Comparison:
    """How far a recording and the model agree.

    Attributes
    ----------
    path : str
    ops, ops_agree : int
    events, events_agree : int
        Recorded events of the level; those that agree up to the first difference of their op.
    difference : Difference or None
        The first one.
    design : RoleDesign or None
        Whose words the model's pages had, if they are not the recorded kernel's.
    problem : str or None
        Why the model could not run the scenario to its end.
    fatal : RecordedOp or None
        The op that the recorded kernel did not survive. It is not compared, nor counted: its trace is cut.
    """

    path: str
    ops: int
    events: int
    ops_agree: int = 0
    events_agree: int = 0
    difference: Difference | None = None
    problem: str | None = None
    design: RoleDesign | None = None
    fatal: RecordedOp | None = None

    @property
    def agrees(self) -> bool:
        """Whether every op agrees that is compared."""
        return self.difference is None and self.problem is None

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {
            "ops that agree": f"{self.ops_agree} of {self.ops}",
            "events that agree": f"{self.events_agree} of {self.events}",
        }
        if self.problem is not None:
            facts["not run to its end"] = self.problem
        if self.fatal is not None:
            op = self.fatal
            facts["not compared"] = f"op {op.index} {op.text}: {outcome_str(op.outcome)}"
        if self.difference is not None:
            facts["first difference"] = f"op {self.difference.number}, {self.difference.part}"
            facts["recorded"] = self.difference.recorded
            facts["model"] = self.difference.model
        return facts_html(facts, f"{self.path}: {'agrees' if self.agrees else 'differs'}")


def frame_map(memory: HostMemory) -> FrameMap:
    """Return which frames of a machine are the guest's backing."""
    return FrameMap(memory.backing, memory.backing_frames)


def compare_op(
    recorded: RecordedOp,
    result: Result,
    level: Level,
    frames: FrameMap,
    number: int,
    *,
    not_recorded: tuple[type[ev.Event], ...] = (),
    roles: bool = True,
) -> tuple[Difference | None, int]:
    """Compare one op; return the first difference and the number of events that agree.

    The numbers of the ops may differ: a recording has none for a step that was skipped. Without
    `roles`, the events' role words are not compared.
    """
    if recorded.text != result.text:
        return Difference(number, Part.OP, 0, recorded.text, result.text), 0
    theirs_events = level.events(recorded.events)
    ours_events = [
        canonical(e, frames) for e in level.events(result.events) if not isinstance(e, not_recorded)
    ]
    at = (
        first_difference(theirs_events, ours_events)
        if roles
        else first_difference(without_roles(theirs_events), without_roles(ours_events))
    )
    if at is not None:
        pair = (_item(theirs_events, at), _item(ours_events, at))
        return Difference(number, Part.EVENT, at, *pair), at
    agree = len(theirs_events)
    outcome = encode_outcome(result.outcome)
    if outcome != recorded.outcome:
        return Difference(number, Part.OUTCOME, 0, recorded.outcome, outcome), agree
    theirs_stats, ours_stats = level.stats(recorded.stats), level.stats(result.stats)
    # The statistics of a VM that is gone cannot be read.
    if theirs_stats != ours_stats and recorded.text != TEARDOWN:
        return Difference(number, Part.STATS, 0, theirs_stats, ours_stats), agree
    return None, agree


def without_roles(events: Sequence[ev.Event]) -> list[ev.Event]:
    """Return events whose role words are 0, so that those of other role designs compare."""
    return [e._replace(role=0) if "role" in e._fields else e for e in events]


def first_difference(theirs: list[ev.Event], ours: list[ev.Event]) -> int | None:
    """Return the first position at which two lists of events differ, None if they are equal."""
    for at, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        if type(a) is not type(b) or a != b:
            return at
    return None if len(theirs) == len(ours) else min(len(theirs), len(ours))


def _item(items: list[ev.Event], at: int) -> ev.Event | None:
    return items[at] if at < len(items) else None


def make_runner(
    recording: KernelRecording,
    design: RoleDesign | None,
    emit: ev.EventSink | None = None,
    kernel: Kernel | None = None,
) -> Runner:
    """Return a runner of a recording's scenario, with the recorded kernel's role words or a design's."""
    return Runner(recording.scenario, emit, machine_config(recording.scenario, kernel, design))


def compare(
    recording: KernelRecording,
    level: Level,
    design: RoleDesign | None = None,
    kernel: Kernel | None = None,
) -> Comparison:
    """Run a recording's scenario in the model and compare op for op.

    Parameters
    ----------
    recording : KernelRecording
    level : Level
    design : RoleDesign, optional
        Another than the recorded kernel's: role words are not compared then.
    kernel : Kernel, optional
        Another than the recorded one.
    """
    fatal = recording.fatal
    ops = recording.ops if fatal is None else recording.ops[:-1]
    absent = not_recorded(recording.scenario.header)
    total = sum(len(level.events(op.events)) for op in ops)
    done = Comparison(recording.path, len(ops), total, design=design, fatal=fatal)
    count = 0
    end: Difference | None = None
    try:
        runner = make_runner(recording, design, kernel=kernel)
        frames = frame_map(runner.machine.memory)
        for result in runner.results():
            if count >= len(ops):
                end = None if fatal else Difference(count, Part.OP, 0, None, result.text)
                break
            difference, agree = compare_op(
                ops[count],
                result,
                level,
                frames,
                count,
                not_recorded=absent,
                roles=design is None,
            )
            done.difference = done.difference or difference
            done.ops_agree += difference is None
            done.events_agree += agree
            count += 1
            if fatal is not None and count == len(ops):
                break
    except InputError as error:  # more than the model knows
        done.problem = str(error)
        return done
    except Exception:  # a bug of the model; the report says which op met it
        end = Difference(count, Part.FAILURE, 0, None, traceback.format_exc())
    if end is None and count < len(ops):
        end = Difference(count, Part.OP, 0, ops[count].text, None)
    done.difference = done.difference or end
    return done


def differing_keys(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two outcomes or statistics differ, in order."""
    return [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
