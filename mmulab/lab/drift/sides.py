"""Both sides of a change: the op where it first shows, recorded on either kernel, to step through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from mmulab.check.judged import record_judged
from mmulab.events import Event
from mmulab.ftrace.wording import event_text
from mmulab.kvm.kernel import Kernel
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.table import Case, read_boot, read_case, scenario_of
from mmulab.lab.cases.works import find_works
from mmulab.lab.drift.drift import ALL, Drift, Effect, parts
from mmulab.trace.recording import Moment, Recording
from mmulab.widgets.blocks import panels_html
from mmulab.widgets.scene import Svg, table
from mmulab.widgets.session import Session
from mmulab.widgets.stepper import Stepper
from mmulab.widgets.steps import Step, Steps
from mmulab.workload.record import record_boot

__all__ = ["Side", "both_sides", "side_by_side"]

MOST = 5
"""Moments of an op that :attr:`Side.steps` shows, from the first that differs."""


@dataclass(frozen=True, slots=True)
class Side:
    """A kernel's way through the op where a change first shows.

    Attributes
    ----------
    kernel : Kernel
    recording : Recording
        Up to the end of that op.
    op : int
        Its number in the recording.
    at : int
        The position, among its events, of the first that differs; their number, if it has no more.
    """

    kernel: Kernel
    recording: Recording
    op: int
    at: int = 0

    @property
    def events(self) -> list[Event]:
        """The op's events."""
        return self.recording.events_of(self.op)

    @property
    def texts(self) -> list[str]:
        """The op's events, as the kernel's trace would have them."""
        return [event_text(event, self.kernel) for event in self.events]

    @property
    def moment(self) -> int:
        """Number of the moment at which the sides part."""
        return self._moments[0][0]

    @property
    def _moments(self) -> list[tuple[int, str]]:
        first = self.recording.first_event(self.op)
        recording = self.recording
        named = [
            (recording.number(Moment(self.op, first + at)), f"event {at + 1}: {recording.name_of(event)}")
            for at, event in enumerate(self.events)
        ]
        return [*named, (recording.number(Moment(self.op, None)), "the op has ended")][self.at :]

    def steps(self) -> Steps:
        """Return the moments from where the sides part, to step through without a Jupyter kernel."""
        session = Session(self.recording)
        told = self._moments
        chosen = told if len(told) <= MOST else [*told[: MOST - 1], told[-1]]
        steps = []
        for number, title in chosen:
            session.goto(number)
            steps.append(Step(title, panels_html(session.panels())))
        return Steps(steps, name=f"{self.recording.info.source} on {self.kernel}")

    def stepper(self) -> Stepper:
        """Return the whole run, to step through with a kernel, from where the sides part."""
        return Stepper(self.recording, at=self.moment)


def both_sides(drift: Drift, change: str) -> tuple[Side, Side]:
    """Record where a change first shows: without it and with it.

    Parameters
    ----------
    drift : Drift
    change : str
        One of ``drift.shown``, or :data:`~mmulab.lab.drift.drift.ALL`.

    Raises
    ------
    ValueError
        It shows nowhere.
    """
    effect = drift.first(change)
    if effect is None or effect.first is None:
        raise ValueError(f"{change} shows nowhere in these {len(drift.works)} pieces of work")
    (case,) = find_works([effect.work])
    one, other = (_record(case, kernel, effect.first) for kernel in _kernels(drift, effect))
    at = _apart(one.texts, other.texts)
    return replace(one, at=at), replace(other, at=at)


def _kernels(drift: Drift, effect: Effect) -> tuple[Kernel, Kernel]:
    if effect.change == ALL:
        return drift.base, drift.other
    (part,) = (part for part in parts(drift.base, drift.other) if part.name == effect.change)
    return (drift.base, part.alone) if effect.added else (part.without, drift.other)


def _record(case: Case, kernel: Kernel, first: int) -> Side:
    if case.kind is CaseKind.BOOT:
        return Side(kernel, *record_boot(read_boot(case), first + 1, kernel))
    recording, ops = record_judged(scenario_of(read_case(case)), kernel=kernel, until=first)
    return Side(kernel, recording, ops[first])


def _apart(ours: list[str], theirs: list[str]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(ours), len(theirs)))


def side_by_side(one: Side, other: Side, *, title: str) -> Svg:
    """Draw the events of the op on both sides, what only one has framed."""
    rows = list(_aligned(one.texts, other.texts))
    marked = [number for number, (left, right) in enumerate(rows) if left != right]
    return table([str(one.kernel), str(other.kernel)], rows, title=title, marked=marked)


def _aligned(ours: list[str], theirs: list[str]) -> Iterator[tuple[str, str]]:
    """Yield equal events beside each other, and one that has no match beside nothing."""
    for _, i, j, k, n in SequenceMatcher(a=ours, b=theirs, autojunk=False).get_opcodes():
        left, right = ours[i:j], theirs[k:n]
        if left == right:
            yield from zip(left, right, strict=True)
        else:
            yield from ((text, "") for text in left)
            yield from (("", text) for text in right)
