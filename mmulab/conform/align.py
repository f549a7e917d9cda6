"""Two lists of events laid beside each other: which event of one is which of the other.

Equal events in equal order come first. Of what is left, an event that both
sides have is one that moved; between two events that agree, events of one type
belong together, those about one place before others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from mmulab import events as ev

__all__ = ["Pair", "align"]

_PLACE = ("gfn", "level", "addr", "gpa", "gva", "cr2_or_gpa", "fault_address", "start_gfn", "sptep", "ecx")
"""Fields that say what an event is about, not what became of it."""

_Events = Sequence[ev.Event]
_Gap = tuple[Sequence[int], Sequence[int]]
"""Positions on both sides between two pairs."""
_Pairs = list[tuple[int, int]]


class Pair(NamedTuple):
    """An event of each side, or of one alone.

    Attributes
    ----------
    ours, theirs : int or None
        Positions; None: that side has no such event.
    moved : bool
        Both sides have the event, each elsewhere among the others.
    """

    ours: int | None
    theirs: int | None
    moved: bool = False


def align(ours: _Events, theirs: _Events) -> list[Pair]:
    """Pair two lists of events; each position is in one pair.

    Exchanged, the sides give the same pairs, exchanged.

    Returns
    -------
    list of Pair
        In order; one that moved stands where our side has it.
    """
    a, b = list(map(_whole, ours)), list(map(_whole, theirs))
    start = _common(a, b)
    rest = min(len(a), len(b)) - start
    end = _common(a[::-1][:rest], b[::-1][:rest])
    gap = range(start, len(a) - end), range(start, len(b) - end)
    # Of equally good matches SequenceMatcher takes the first: the sides are put in an order of their own.
    if _rank(ours, gap[0]) <= _rank(theirs, gap[1]):
        fixed, moved = _find(ours, theirs, gap)
    else:
        fixed, moved = (_exchanged(pairs) for pairs in _find(theirs, ours, gap[::-1]))
    fixed += [(at, at) for at in range(start)]
    fixed += [(len(a) - at, len(b) - at) for at in range(1, end + 1)]
    return list(_merged(sorted(fixed), dict(moved), (len(a), len(b))))


def _whole(event: ev.Event) -> Hashable:
    return type(event), event


def _place(event: ev.Event) -> Hashable:
    return type(event), *(getattr(event, name, None) for name in _PLACE)


def _common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Return how many items both sides begin with."""
    unequal = (at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(unequal, min(len(a), len(b)))


def _rank(events: _Events, at: Sequence[int]) -> tuple[int, list[str]]:
    return len(at), [repr(events[i]) for i in at]


def _exchanged(pairs: _Pairs) -> _Pairs:
    return [(theirs, ours) for ours, theirs in pairs]


def _find(a: _Events, b: _Events, gap: _Gap) -> tuple[_Pairs, _Pairs]:
    """Return the pairs that stand in one order on both sides, and those that moved."""
    fixed, gaps = _matched(a, b, [gap], _whole)
    moved = _moved(a, b, gaps)
    gone = {i for i, _ in moved}, {j for _, j in moved}
    gaps = [
        ([i for i in ours if i not in gone[0]], [j for j in theirs if j not in gone[1]])
        for ours, theirs in gaps
    ]
    for key in (_place, type):
        more, gaps = _matched(a, b, gaps, key)
        fixed += more
    return fixed, moved


def _matched(
    a: _Events, b: _Events, gaps: Sequence[_Gap], key: Callable[[ev.Event], Hashable]
) -> tuple[_Pairs, list[_Gap]]:
    """Pair what has equal keys inside each gap; return the pairs, and the gaps that are left."""
    pairs: _Pairs = []
    left: list[_Gap] = []
    for ours, theirs in gaps:
        keys = [key(a[i]) for i in ours], [key(b[j]) for j in theirs]
        i = j = 0
        for block in SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks():
            left.append((ours[i : block.a], theirs[j : block.b]))
            i, j = block.a + block.size, block.b + block.size
            pairs += zip(ours[block.a : i], theirs[block.b : j], strict=True)
    return pairs, left


def _moved(a: _Events, b: _Events, gaps: Sequence[_Gap]) -> _Pairs:
    """Pair equal events of different gaps, the first of one side with the first of the other."""
    places: defaultdict[Hashable, list[int]] = defaultdict(list)
    for _, theirs in gaps:
        for j in theirs:
            places[_whole(b[j])].append(j)
    pairs = []
    for ours, _ in gaps:
        for i in ours:
            if found := places.get(_whole(a[i])):
                pairs.append((i, found.pop(0)))
    return pairs


def _merged(fixed: _Pairs, moved: dict[int, int], ends: tuple[int, int]) -> Iterator[Pair]:
    """Yield all pairs in order, what only one side has between those that both have."""
    elsewhere = set(moved.values())
    i = j = 0
    for ours, theirs in [*fixed, ends]:
        for at in range(i, ours):
            yield Pair(at, moved.get(at), at in moved)
        for at in range(j, theirs):
            if at not in elsewhere:
                yield Pair(None, at)
        if (ours, theirs) != ends:
            yield Pair(ours, theirs)
        i, j = ours + 1, theirs + 1
