"""Differences counted by kind, each with its smallest examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mmulab.conform.classify import Delta, Kind

__all__ = ["Diff", "Example", "OpDiff", "Tally"]

MOST_LINES = 12
"""Differences of an op that an example shows; of an op with more, those of its kind alone."""
WHOLE = -2
"""Number where a whole scenario is meant and not an op."""


class OpDiff(NamedTuple):
    """An op that differs.

    Attributes
    ----------
    number : int
        -1 for ``init``, :data:`WHOLE` for the scenario.
    text : str
    size : int
        Events of both sides.
    deltas : tuple of Delta
    """

    number: int
    text: str
    size: int
    deltas: tuple[Delta, ...]


class Example(NamedTuple):
    """An op that differs, in words; the smaller of two is the one with fewer events, then the shorter text.

    Attributes
    ----------
    size, length : int
        Events of both sides; characters of the op.
    scenario : str
    number : int
    text : str
    lines : tuple of str
        The differences: ``-`` what our side has, ``+`` what theirs has, ``~`` what moved.
    left_out : int
        Differences of the op that are not among them.
    """

    size: int
    length: int
    scenario: str
    number: int
    text: str
    lines: tuple[str, ...]
    left_out: int

    @classmethod
    def of(cls, scenario: str, op: OpDiff, kind: Kind) -> Example:
        """Return an op as an example of a kind of difference."""
        shown = op.deltas if len(op.deltas) <= MOST_LINES else [d for d in op.deltas if kind in d.kinds]
        lines = tuple(line for delta in shown[:MOST_LINES] for line in delta.lines)
        left_out = len(op.deltas) - len(shown[:MOST_LINES])
        return cls(op.size, len(op.text), scenario, op.number, op.text, lines, left_out)

    @property
    def place(self) -> str:
        """The scenario, and the op in it."""
        if self.number == WHOLE:
            return self.scenario
        return f"{self.scenario} op {self.text if self.number == -1 else f'{self.number} {self.text!r}'}"

    def record(self) -> dict[str, Any]:
        """Return the example as plain values."""
        shown: dict[str, Any] = {"scenario": self.scenario}
        if self.number != WHOLE:
            shown |= {"op": self.number, "text": self.text, "events": self.size}
        return {**shown, "differences": list(self.lines), "left_out": self.left_out}


@dataclass(slots=True)
class Tally:
    """How often one kind of difference was found.

    Attributes
    ----------
    scenarios, ops, times : int
        An op may have it several times.
    examples : list of Example
        The smallest ones, smallest first.
    """

    scenarios: int = 0
    ops: int = 0
    times: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class Diff:
    """What was found in some scenarios.

    Attributes
    ----------
    limit : int
        Examples that are kept of each kind.
    scenarios, scenarios_differ, ops, ops_differ : int
    tallies : dict of Kind to Tally
    """

    limit: int = 1
    scenarios: int = 0
    scenarios_differ: int = 0
    ops: int = 0
    ops_differ: int = 0
    tallies: dict[Kind, Tally] = field(default_factory=dict)

    @classmethod
    def of(cls, scenario: str, ops: int, differ: Sequence[OpDiff], limit: int = 1) -> Diff:
        """Return what was found in one scenario of so many ops."""
        found = cls(limit, 1, int(bool(differ)), ops, sum(op.number != WHOLE for op in differ))
        for op in differ:
            for kind, times in Counter(kind for delta in op.deltas for kind in delta.kinds).items():
                one = Tally(1, int(op.number != WHOLE), times, [Example.of(scenario, op, kind)])
                found._count(kind, one, scenarios=0 if kind in found.tallies else 1)
        return found

    def add(self, other: Diff) -> None:
        """Count what was found in other scenarios too."""
        self.scenarios += other.scenarios
        self.scenarios_differ += other.scenarios_differ
        self.ops += other.ops
        self.ops_differ += other.ops_differ
        for kind, tally in other.tallies.items():
            self._count(kind, tally, scenarios=tally.scenarios)

    def _count(self, kind: Kind, more: Tally, *, scenarios: int) -> None:
        tally = self.tallies.setdefault(kind, Tally())
        tally.scenarios += scenarios
        tally.ops += more.ops
        tally.times += more.times
        tally.examples = sorted([*tally.examples, *more.examples])[: self.limit]

    @property
    def kinds(self) -> list[tuple[Kind, Tally]]:
        """The kinds that were found, that of the most ops first."""
        return sorted(self.tallies.items(), key=lambda item: (-item[1].ops, item[0]))

    @property
    def smallest(self) -> Example | None:
        """The smallest example of all."""
        return min((example for tally in self.tallies.values() for example in tally.examples), default=None)
