"""Two runs of a scenario side by side, event by event: what both have, and the fields in which they differ.

Left and right are a real kernel and the model, or two kernels. Events and ops
belong together as ``mmulab diff`` pairs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, NamedTuple

from mmulab import events as ev
from mmulab.check.judged import record_judged
from mmulab.conform.align import align
from mmulab.conform.classify import classify
from mmulab.conform.codec import EVENT_NAMES, encode_event
from mmulab.conform.compare import Level, differing_keys, not_recorded, without_roles
from mmulab.conform.diff import Run, op_pairs
from mmulab.conform.explain import event_words
from mmulab.conform.outcome import outcome_str
from mmulab.conform.recording import RecordedOp, is_around
from mmulab.errors import InputError, quoted
from mmulab.kvm.kernel import Kernel
from mmulab.lab.drift.sides import Side
from mmulab.report.results import Table
from mmulab.scenario.scenario import Scenario

__all__ = ["EventRow", "OpRow", "SideBySide", "model_at"]

BOTH, OTHER, LEFT, RIGHT, MOVED = "=", "#", "<", ">", "~"
"""Marks of a row: both have it, with other fields, left alone, right alone, elsewhere among the others."""
_LEGEND = f"{OTHER} fields differ (marked), {LEFT} left only, {RIGHT} right only, {MOVED} at another place"
_AROUND = 3
"""Events that both have which are shown before and after one that differs."""
MOST_ROWS = 40
"""Rows of an op that are shown."""
MOST_OPS = 120
"""Ops that are shown; those that differ come first."""

_STYLE = """
.mml-sides { max-width: 100%; }
.mml-sides summary { cursor: pointer; font: 0.85rem monospace; padding: 0.15rem 0; white-space: pre-wrap; }
.mml-sides table { table-layout: fixed; width: 100%; margin: 0.25rem 0 0.75rem; border-collapse: collapse; }
.mml-sides td, .mml-sides th { text-align: left; padding: 0.1rem 0.5rem; overflow-wrap: anywhere; }
.mml-sides td { font-family: monospace; font-size: 0.8rem; border-bottom: 1px solid #ddd; }
.mml-sides .mark { width: 1.5rem; text-align: center; }
.mml-sides tr.other td { background: #fff3bf; }
.mml-sides tr.fold td { color: #555; font-family: inherit; }
.mml-sides mark { background: #ffb347; font-weight: bold; }
.mml-sides .differs { background: #fff3bf; font-weight: bold; }
"""


class Word(NamedTuple):
    """A word of an event: its name, or a field; and whether the other side has another one."""

    text: str
    differs: bool = False


class EventRow(NamedTuple):
    """An event of each side, or of one alone.

    Attributes
    ----------
    mark : str
        One of :data:`BOTH`, :data:`OTHER`, :data:`LEFT`, :data:`RIGHT`, :data:`MOVED`.
    left, right : tuple of Word
        Empty: that side has no such event.
    """

    mark: str
    left: tuple[Word, ...]
    right: tuple[Word, ...]


class OpRow(NamedTuple):
    """An op of both sides, or of one alone.

    Attributes
    ----------
    number : int
        -1 for ``init``.
    text : str
    steps : tuple of int
        Which of each side's steps it is; of what the VMM does before a step, that step.
    outcomes : tuple of (str or None)
        Of left and right, in words; None: that side has no such op.
    events : tuple of int
        How many events each side has.
    rows : tuple of EventRow
    others : tuple of str
        Outcome and statistics that differ, as ``mmulab diff`` says them.
    """

    number: int
    text: str
    steps: tuple[int, int]
    outcomes: tuple[str | None, str | None]
    events: tuple[int, int]
    rows: tuple[EventRow, ...]
    others: tuple[str, ...]

    @property
    def event_differences(self) -> int:
        """Events that are not the same on both sides."""
        return sum(row.mark != BOTH for row in self.rows)

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return bool(self.event_differences or self.others)

    @property
    def parted(self) -> int:
        """How many events both sides have before the first that differs; 0, if none does."""
        return next((at for at, row in enumerate(self.rows) if row.mark != BOTH), 0)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Two runs side by side; shows itself as a list of ops, each with its events.

    Attributes
    ----------
    name : str
        Of the results table that it is in a report.
    sides : tuple of str
        What is left and what is right.
    ops : tuple of OpRow
    shown : int or None
        Position of the op whose events stand open.
    """

    name: str
    sides: tuple[str, str]
    ops: tuple[OpRow, ...]
    shown: int | None = None

    @classmethod
    def of(
        cls,
        name: str,
        sides: tuple[str, str],
        runs: tuple[Run, Run],
        *,
        at: str = "first",
        roles: bool = True,
    ) -> SideBySide:
        """Lay two runs beside each other.

        Parameters
        ----------
        name : str
        sides : tuple of str
        runs : tuple of Run
        at : str
            Which op stands open, as :meth:`position` takes it.
        roles : bool
            False: role words may differ, because the sides have other role designs.
        """
        left, right = runs
        steps = [-1, -1]
        found = []
        for i, j in op_pairs(left.ops, right.ops):
            ops = (None if i is None else left.ops[i], None if j is None else right.ops[j])
            for side, op in enumerate(ops):
                steps[side] += op is not None and not is_around(op.text)
            failures = [
                run.failure
                for run, mine, its in ((left, i, j), (right, j, i))
                if run.failure and mine is None and its == len(run.ops)
            ]
            found.append(_op_row(ops, (steps[0], steps[1]), (left.vendor, right.vendor), roles, failures))
        made = cls(name, sides, tuple(found))
        return replace(made, shown=made.position(at))

    @property
    def differing(self) -> list[int]:
        """Positions of the ops that differ."""
        return [at for at, op in enumerate(self.ops) if op.differs]

    def position(self, at: str) -> int:
        """Return the position of an op.

        Parameters
        ----------
        at : str
            ``first`` that differs, ``most`` different, or an op's number; where nothing differs, the one of
            the most events. Beginning and end of the VM count for the most only if there is nothing else.

        Raises
        ------
        InputError
            No op has this number.
        """
        if at not in ("first", "most"):
            numbers = [op.number for op in self.ops]
            if at not in map(str, numbers):
                raise InputError(
                    f"op '{quoted(at)}': neither first nor most nor one of {numbers[0]} to {numbers[-1]}"
                )
            return max(i for i, number in enumerate(numbers) if str(number) == at)
        if at == "first" and self.differing:
            return self.differing[0]
        sizes = [
            (not is_around(op.text), op.event_differences if self.differing else 0, sum(op.events))
            for op in self.ops
        ]
        if self.differing and not any(step and count for step, count, _ in sizes):
            return self.differing[0]
        return max(range(len(sizes)), key=lambda i: (sizes[i], -i))

    @property
    def table(self) -> Table:
        """The ops as a results table."""
        rows = [
            [op.number, op.text, *op.outcomes, *op.events, op.event_differences, len(op.others), agrees]
            for op, agrees in ((op, not op.differs) for op in self.ops)
        ]
        left, right = self.sides
        return Table(
            self.name,
            [
                *("op", "text", f"outcome, {left}", f"outcome, {right}"),
                *(f"events, {left}", f"events, {right}", "events that differ", "other differences", "agrees"),
            ],
            rows,
            self.verdict,
        )

    @property
    def verdict(self) -> str:
        """How much agrees, in one sentence."""
        ops, events = len(self.ops), sum(max(op.events) for op in self.ops)
        if not self.differing:
            return f"All {ops} ops agree, with {events:,} events, outcomes and statistics"
        wrong = sum(op.event_differences for op in self.ops)
        others = sum(len(op.others) for op in self.ops)
        return (
            f"{len(self.differing)} of {ops} ops differ; events: {wrong}, outcomes and statistics: {others}"
        )

    def _repr_html_(self) -> str:
        chosen = self.differing[:MOST_OPS]
        if self.shown is not None and self.shown not in chosen:
            chosen.append(self.shown)
        agreeing = [at for at in range(len(self.ops)) if at not in chosen]
        chosen = sorted([*chosen, *agreeing[: max(0, MOST_OPS - len(chosen))]])
        body = "".join(self._op_html(self.ops[at], at) for at in chosen)
        left_out = len(self.ops) - len(chosen)
        more = f"<p>{left_out:,} more ops are in {escape(self.name)}.csv alone.</p>" if left_out else ""
        return (
            f"<style>{_STYLE}</style><div class='mml-sides'><p><b>{escape(self.verdict)}.</b> "
            f"Left {escape(self.sides[0])}, right {escape(self.sides[1])}. Click on an op for its events: "
            f"{escape(_LEGEND)}.</p>{body}{more}<p>{escape(_names_of([self.ops[at] for at in chosen]))}</p>"
            "</div>"
        )

    def _op_html(self, op: OpRow, at: int) -> str:
        mark = " class='differs'" if op.differs else ""
        word = "differs" if op.differs else "agrees "
        count = " | ".join(f"{n} event{'s' * (n != 1)}" for n in dict.fromkeys(op.events))
        title = f"{op.number:>3}  {op.text} → {' | '.join(_outcomes(op))}"
        opened = " open" if at == self.shown else ""
        heads = "".join(f"<th scope='col'>{escape(side)}</th>" for side in self.sides)
        others = "".join(f"<li><code>{escape(text)}</code></li>" for text in op.others)
        return (
            f"<details{opened}><summary><span{mark}>{word}</span> {escape(title)} ({count})</summary>"
            f"<table><thead><tr><th class='mark'></th>{heads}</tr></thead><tbody>"
            f"{''.join(_rows_html(op.rows))}</tbody></table>"
            f"{f'<ul>{others}</ul>' if others else ''}</details>"
        )

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return {**self.table._repr_mimebundle_(), "text/html": self._repr_html_()}


def model_at(both: SideBySide, side: int, scenario: Scenario, kernel: Kernel) -> Side:
    """Run the model up to the op of `both` that stands open, to step through it from where the sides part.

    Parameters
    ----------
    both : SideBySide
    side : int
        0 or 1: which side the model is.
    scenario, kernel
        What it ran, and as which kernel.
    """
    assert both.shown is not None
    op = both.ops[both.shown]
    recording, ops = record_judged(scenario, kernel=kernel, until=op.steps[side])
    number = ops[max(step for step in ops if step <= op.steps[side])]
    absent = not_recorded(scenario.header)
    told = [not isinstance(e, absent) for e in recording.events_of(number)]
    parted = [at for at, recorded in enumerate(told) if recorded][op.parted :]
    return Side(kernel, recording, number, parted[0] if parted else len(told))


def _op_row(
    sides: tuple[RecordedOp | None, RecordedOp | None],
    steps: tuple[int, int],
    vendors: tuple[str, str],
    roles: bool,
    failures: list[str],
) -> OpRow:
    op = sides[0] or sides[1]
    assert op is not None
    before = is_around(op.text) and op.index >= 0
    events = [() if side is None else side.events for side in sides]
    rows = tuple(_rows(events[0], events[1], vendors, roles))
    outcomes = [None if side is None else outcome_str(side.outcome) for side in sides]
    others = [f"the model failed: {failure}" for failure in failures]
    for delta in classify(*sides, Level.FULL, vendors):
        if not {kind.what for kind in delta.kinds} & set(EVENT_NAMES):
            others += [" → ".join(text for text in (delta.ours, delta.theirs) if text)]
    return OpRow(
        op.index,
        op.text,
        (steps[0] + before, steps[1] + before),
        (outcomes[0], outcomes[1]),
        (len(events[0]), len(events[1])),
        rows,
        tuple(others),
    )


def _rows(
    left: Sequence[ev.Event], right: Sequence[ev.Event], vendors: tuple[str, str], roles: bool
) -> Iterator[EventRow]:
    a, b = (left, right) if roles else (without_roles(left), without_roles(right))
    for i, j, moved in align(a, b):
        if i is None or j is None:
            words = tuple(
                () if at is None else tuple(map(Word, event_words(side[at], vendor).values()))
                for at, side, vendor in zip((i, j), (left, right), vendors, strict=True)
            )
            yield EventRow(RIGHT if i is None else LEFT, words[0], words[1])
            continue
        keys = set(differing_keys(encode_event(a[i], vendors[0]), encode_event(b[j], vendors[1])))
        mark = MOVED if moved else OTHER if keys else BOTH
        one, other = (
            tuple(Word(text, key in keys) for key, text in event_words(event, vendor).items())
            for event, vendor in zip((left[i], right[j]), vendors, strict=True)
        )
        yield EventRow(mark, one, other)


def _outcomes(op: OpRow) -> list[str]:
    """Return both outcomes, once if they are the same."""
    return list(dict.fromkeys("not run" if text is None else text for text in op.outcomes))


def _rows_html(rows: Sequence[EventRow]) -> Iterator[str]:
    """Yield rows of a table; a long stretch that both sides have is folded, and so is what is too much."""
    near = _near(rows)
    shown = hidden = 0
    for at, row in enumerate(rows):
        if at in near and shown < MOST_ROWS:
            if hidden:
                yield _fold(hidden)
            shown, hidden = shown + 1, 0
            yield _row_html(row)
        else:
            hidden += 1
    if hidden:
        yield _fold(hidden)


def _near(rows: Sequence[EventRow]) -> set[int]:
    """Return the positions of what differs and of what is around it; of all, if nothing differs."""
    other = [at for at, row in enumerate(rows) if row.mark != BOTH]
    if not other:
        return set(range(len(rows)))
    return {at + d for at in other for d in range(-_AROUND, _AROUND + 1)}


def _fold(count: int) -> str:
    return f"<tr class='fold'><td></td><td colspan='2'>… {count} more</td></tr>"


def _row_html(row: EventRow) -> str:
    kind = "" if row.mark == BOTH else " class='other'"
    cells = "".join(f"<td>{' '.join(map(_word_html, side))}</td>" for side in (row.left, row.right))
    return f"<tr{kind}><td class='mark'>{escape(row.mark if row.mark != BOTH else '')}</td>{cells}</tr>"


def _word_html(word: Word) -> str:
    return f"<mark>{escape(word.text)}</mark>" if word.differs else escape(word.text)


def _names_of(ops: Sequence[OpRow]) -> str:
    """Say which tracepoints and functions the short names are."""
    seen = {side[0].text for op in ops for row in op.rows for side in (row.left, row.right) if side}
    known = {name: EVENT_NAMES[name].__name__ for name in sorted(seen) if name in EVENT_NAMES}
    spelled = [f"{name}: {full}" for name, full in known.items() if name != full]
    return f"Events in full: {', '.join(spelled)}." if spelled else ""
