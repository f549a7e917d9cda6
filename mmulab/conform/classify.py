"""Two recorded ops: in what they differ, by kind.

An event is missing or added, has moved, or has another field; the outcome or a
statistic has another value; the op itself is on one side only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from mmulab import events as ev
from mmulab.conform.align import align
from mmulab.conform.codec import encode_event
from mmulab.conform.compare import Level, differing_keys
from mmulab.conform.explain import event_str
from mmulab.conform.outcome import HOST_DIED, outcome_str
from mmulab.conform.recording import TEARDOWN, RecordedOp

__all__ = ["Delta", "How", "Kind", "classify"]

OUTCOME = "outcome"
STATISTIC = "statistic"
OP = "op"
SCENARIO = "scenario"
HEADER = "header"
MODEL = "model"
OTHER_THINGS = (OUTCOME, STATISTIC, OP, SCENARIO, HEADER, MODEL)
"""What may differ besides events."""


class How(StrEnum):
    """What became of a thing, seen from the first side."""

    MISSING = "missing"
    ADDED = "added"
    MOVED = "moved"
    OTHER = "other"
    FAILED = "failed"
    """The model raised an exception, which is a bug of the model or what a kernel would have met."""


class Kind(NamedTuple):
    """A kind of difference.

    Attributes
    ----------
    what : str
        An event's recorded name, or one of :data:`OTHER_THINGS`.
    how : How
        The second side against the first one.
    field : str
        The key that is another one.
    """

    what: str
    how: How
    field: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.field, self.how) if part)


class Delta(NamedTuple):
    """One difference.

    Attributes
    ----------
    kinds : tuple of Kind
        More than one where an event has several other fields.
    ours, theirs : str
        As the sides have it, in words; empty: that side has nothing.
    """

    kinds: tuple[Kind, ...]
    ours: str = ""
    theirs: str = ""

    @property
    def lines(self) -> list[str]:
        """The difference as diff(1) shows one; ``~`` marks an event that moved."""
        if any(kind.how is How.MOVED for kind in self.kinds):
            return [f"~ {self.ours}"]
        return [f"{sign} {text}" for sign, text in (("-", self.ours), ("+", self.theirs)) if text]

    def only(self, wanted: Callable[[Kind], bool]) -> Delta:
        """Return the difference with those of its kinds that are wanted."""
        return self._replace(kinds=tuple(kind for kind in self.kinds if wanted(kind)))


def classify(
    ours: RecordedOp | None, theirs: RecordedOp | None, level: Level, vendors: tuple[str, str]
) -> list[Delta]:
    """Return in what two ops differ at a level, in the order of their events.

    Parameters
    ----------
    ours, theirs : RecordedOp or None
        None: that side has no such op.
    level : Level
    vendors : tuple of str
        Of the two sides; they name some keys of events.
    """
    if ours is None or theirs is None:
        how = How.ADDED if ours is None else How.MISSING
        texts = ("" if op is None else f"{OP} {outcome_str(op.outcome)}" for op in (ours, theirs))
        return [Delta((Kind(OP, how),), *texts)]
    return [
        *_events(ours, theirs, level, vendors),
        *_outcomes(ours.outcome, theirs.outcome),
        *_stats(ours, theirs, level),
    ]


def _events(ours: RecordedOp, theirs: RecordedOp, level: Level, vendors: tuple[str, str]) -> Iterator[Delta]:
    a, b = level.events(ours.events), level.events(theirs.events)
    for i, j, moved in align(a, b):
        pair = (None if i is None else a[i], None if j is None else b[j])
        if pair[0] != pair[1] or moved:
            texts = [_text(event, vendor) for event, vendor in zip(pair, vendors, strict=True)]
            yield Delta(_event_kinds(*pair, vendors, moved), *texts)


def _text(event: ev.Event | None, vendor: str) -> str:
    return "" if event is None else event_str(event, vendor)


def _event_kinds(
    ours: ev.Event | None, theirs: ev.Event | None, vendors: tuple[str, str], moved: bool
) -> tuple[Kind, ...]:
    if ours is None:
        assert theirs is not None
        return (Kind(encode_event(theirs, vendors[1])["e"], How.ADDED),)
    record = encode_event(ours, vendors[0])
    if theirs is None or moved:
        return (Kind(record["e"], How.MOVED if moved else How.MISSING),)
    keys = differing_keys(record, encode_event(theirs, vendors[1]))
    if "role" in keys:
        keys.remove("r")  # the role again, in words
    return tuple(Kind(record["e"], How.OTHER, key) for key in keys)


def _outcomes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Delta]:
    """Yield what differs in two outcomes; of two that end otherwise, the same key means nothing.

    Of two deaths the first words are compared: registers and addresses follow them, which are the boot's.
    """
    keys = differing_keys(_brief(ours), _brief(theirs))
    if keys:
        kinds = tuple(Kind(OUTCOME, How.OTHER, key) for key in (["out"] if "out" in keys else keys))
        yield Delta(kinds, *(f"{OUTCOME} {outcome_str(dict(side))}" for side in (ours, theirs)))


def _brief(outcome: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**outcome, "words": outcome["words"][:1]} if outcome["out"] == HOST_DIED else outcome


def _stats(ours: RecordedOp, theirs: RecordedOp, level: Level) -> Iterator[Delta]:
    """Yield each statistic that differs; those of a VM that is gone cannot be read."""
    if ours.text == TEARDOWN:
        return
    a, b = level.stats(ours.stats), level.stats(theirs.stats)
    for name in differing_keys(a, b):
        texts = (f"{STATISTIC} {name} {side.get(name, 0):+}" for side in (a, b))
        yield Delta((Kind(STATISTIC, How.OTHER, name),), *texts)
