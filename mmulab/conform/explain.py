"""The first difference between a recording and the model, told so that its reason can be found.

Both sides' events in two columns, the two ops before, and the state of the
model at the moment it came to differ: the run is repeated and stopped inside
the op, at the event in question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from mmulab import events as ev
from mmulab.conform.codec import canonical, encode_event
from mmulab.conform.compare import (
    Comparison,
    Difference,
    Level,
    Part,
    differing_keys,
    first_difference,
    frame_map,
    make_runner,
)
from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.conform.recording import KernelRecording, RecordedOp
from mmulab.conform.state import state_lines
from mmulab.kvm.roles.design import RoleDesign
from mmulab.scenario.grammar import GrammarError, parse_step
from mmulab.scenario.runner import Result

CONTEXT_OPS = 2
"""Ops printed before the one that differs."""

_HOST_KEYS = ("npt", "ept", "eptad", "pml", "tdp_mmu")


class _Stop(Exception):
    """Raised by the sink at the event at which the sides part."""


class _Replay:
    """A run that ends at a difference.

    Attributes
    ----------
    results : list of Result
        Of the ops up to the difference.
    events : list of Event
        Of the op in which the run was stopped, as far as it came.
    """

    def __init__(
        self, recording: KernelRecording, level: Level, difference: Difference, design: RoleDesign | None
    ) -> None:
        self.results: list[Result] = []
        self.events: list[ev.Event] = []
        self._level = level
        self._number = difference.number
        self._part = difference.part
        self._stop_at = difference.event if difference.part is Part.EVENT else None
        self._count = 0
        self.runner = make_runner(recording, design, self._sink)

    def run(self) -> None:
        """Execute up to the difference."""
        try:
            for result in self.runner.results():
                self.results.append(result)
                if len(self.results) > self._number:
                    return
                self.events.clear()
        except _Stop:
            return
        except Exception:
            if self._part is not Part.FAILURE:
                raise

    def _sink(self, event: ev.Event) -> None:
        self.events.append(event)
        if len(self.results) != self._number or self._stop_at is None or not self._level.events((event,)):
            return
        if self._count == self._stop_at:
            raise _Stop
        self._count += 1


def explain(recording: KernelRecording, level: Level, comparison: Comparison) -> str:
    """Return the report of a comparison's first difference.

    Parameters
    ----------
    recording : KernelRecording
    level : Level
        Of the comparison.
    comparison : Comparison
        It must differ.
    """
    difference = comparison.difference
    assert difference is not None
    vendor = recording.scenario.header.vendor
    at = difference.number
    lines = [*_head(recording, comparison, difference), ""]
    for op in recording.ops[max(0, at - CONTEXT_OPS) : at]:
        lines += _agreeing(op, level, vendor)

    # Once to the end of the op for its events, once into it for the state where the sides part.
    design = comparison.design
    whole = _Replay(recording, level, difference._replace(part=Part.FAILURE), design)
    whole.run()
    stopped = _Replay(recording, level, difference, design)
    stopped.run()
    if at < len(recording.ops):
        result = whole.results[at] if at < len(whole.results) else None
        frames = frame_map(whole.runner.machine.memory)
        ours = [canonical(e, frames) for e in level.events(result.events if result else whole.events)]
        lines += _differing(recording.ops[at], result, level, difference, ours, vendor)
    lines += ["", "The model's state at this moment:"]
    machine = stopped.runner.machine
    last = recording.ops[min(at, len(recording.ops) - 1)]
    gva, gpa = _addresses(stopped.events, last, direct=machine.kvm.vcpus[0].mmu.direct)
    lines += [f"  {line}" for line in state_lines(machine, gva, gpa)]
    return "\n".join(lines)


def _head(recording: KernelRecording, comparison: Comparison, difference: Difference) -> Iterator[str]:
    header = recording.scenario.header
    host = " ".join(f"{k}={header.host[k]}" for k in _HOST_KEYS if k in header.host)
    yield f"{recording.path}: {header.vendor} {host} mode {header.mode}{' thp' if header.thp else ''}"
    at = difference.number
    op = recording.ops[at] if at < len(recording.ops) else None
    where = f"line {op.line}, op {op.index}" if op else "after the last op"
    what = f"event {difference.event}" if difference.part is Part.EVENT else str(difference.part)
    yield (
        f"first difference: {where}, {what}"
        f" (ops {comparison.ops_agree}/{comparison.ops},"
        f" events {comparison.events_agree}/{comparison.events})"
    )


def _title(op: RecordedOp) -> str:
    return f"op {op.index}: {op.text}  ->  {outcome_str(op.outcome)}"


def _agreeing(op: RecordedOp, level: Level, vendor: str) -> list[str]:
    events = level.events(op.events)
    return [_title(op), *(f"     = {event_str(e, vendor)}" for e in events)]


def _differing(
    op: RecordedOp,
    result: Result | None,
    level: Level,
    difference: Difference,
    ours: list[ev.Event],
    vendor: str,
) -> list[str]:
    theirs = level.events(op.events)
    lines = ["", f"op {op.index}: {op.text}"]
    if difference.part is Part.OP:
        return [*lines, f">>   recorded {difference.recorded}", f"     model    {difference.model}"]
    left, right = ([event_str(e, vendor) for e in side] for side in (theirs, ours))
    first = first_difference(theirs, ours)
    at = len(left) if first is None else first
    lines += [f"   {number:3} {text}" for number, text in enumerate(left[:at])]
    if at < max(len(left), len(right)):
        width = max([len("recorded"), *map(len, left[at:])])
        lines.append(f"       {'recorded':{width}} | model")
        for mark, number, a, equal, b in _columns(left, right, at):
            lines.append(f"{mark} {number:>3} {a:{width}} {equal} {b}".rstrip())
    if result is None:
        outcome = f"     outcome: recorded {outcome_str(op.outcome)}"
        return [*lines, outcome, ">>   the model failed:", str(difference.model)]
    lines += _two("outcome", op.outcome, encode_outcome(result.outcome))
    lines += _two("stats", level.stats(op.stats), level.stats(result.stats))
    return lines


def _columns(left: list[str], right: list[str], at: int) -> Iterator[tuple[str, str, str, str, str]]:
    """Lay two lists side by side from `at` on; what only one side has stands alone.

    Yields the mark of the first row, the recorded event's number, both events and
    ``|`` where they are equal, ``<`` or ``>`` where one is missing, ``#`` else.
    """
    matcher = SequenceMatcher(None, left[at:], right[at:], autojunk=False)
    mark = ">>"
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        for i, j in zip_longest(range(at + i1, at + i2), range(at + j1, at + j2)):
            a = "" if i is None else left[i]
            b = "" if j is None else right[j]
            equal = ">" if i is None else "<" if j is None else "|" if a == b else "#"
            yield mark, "" if i is None else str(i), a, equal, b
            mark = "  "


def _two(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    keys = differing_keys(theirs, ours)
    if not theirs and not ours:
        return []
    left, right = (outcome_str({"out": what, **side}) for side in (theirs, ours))
    if not keys:
        return [f"     {what}: {left}"]
    return [f">>   {what} ({', '.join(keys)}):", f"         recorded {left}", f"         model    {right}"]


def event_str(event: ev.Event, vendor: str) -> str:
    """Print a canonical event in one short line, under its recorded name, numbers in hex.

    >>> event_str(ev.kvm_mmu_pagetable_walk(0x40000000, 4), "amd")
    'walk addr=40000000 err=U'
    """
    return " ".join(event_words(event, vendor).values())


def event_words(event: ev.Event, vendor: str) -> dict[str, str]:
    """Return the words of that line by the recording's keys; its name by ``e``."""
    record = encode_event(event, vendor)
    words = {"e": record.pop("e")}
    role = record.pop("r", None) if "role" in record else None
    for key, value in record.items():
        if key == "role":
            words[key] = f"{value[2:]}[{role}]"
        elif isinstance(value, dict):
            words[key] = f"{key}={_spte_str(value)}"
        elif isinstance(value, str):
            words[key] = f"{key}={value.removeprefix('0x')}"
        else:
            words[key] = f"{key}={value:x}"
    return words


def _spte_str(record: dict[str, str]) -> str:
    frame = record.get("f")
    value = record["v"].removeprefix("0x")
    return value if frame is None else f"{frame.removeprefix('0x')}:{value}"


def _addresses(events: list[ev.Event], op: RecordedOp, *, direct: bool) -> tuple[int | None, int | None]:
    """Return the virtual address that the op was last about, and the last fault's address in a direct map."""
    walks = [e.addr for e in events if isinstance(e, ev.kvm_mmu_pagetable_walk)]
    faults = [e.fault_address for e in events if isinstance(e, ev.kvm_page_fault)]
    if direct:
        return walks[-1] if walks else _operand(op), faults[-1] if faults else None
    seen = walks or faults
    return seen[-1] if seen else _operand(op), None


def _operand(op: RecordedOp) -> int | None:
    """Return the virtual address that an op names."""
    try:
        return getattr(parse_step(op.text).op, "gva", None)
    except GrammarError:  # init, teardown and helper instructions name none
        return None
