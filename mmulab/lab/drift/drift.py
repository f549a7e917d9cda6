"""What each change between two kernels does: alone in the first, and alone left out of the second.

The effect of all changes at once need not be the sum of each one's: one may take
away what another acts on. So each is measured twice, and the sums are shown
beside the whole.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, NamedTuple

from mmulab import pool
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.lab.cases.table import Case
from mmulab.lab.drift.track import Effects, Track, Tracks, first_difference
from mmulab.pool import Jobs

__all__ = ["ALL", "Drift", "Effect", "Part", "drift_each", "parts"]

ALL = "all at once"
"""The change that stands for all of them."""
_FIELDS = ("design", "derivation", "validity", "cpuid_after_run", "free_roots_lock", "eager_split", "bugs")
"""What two kernels may differ in besides behaviours."""


class Part(NamedTuple):
    """One change between two kernels.

    Attributes
    ----------
    name : str
        A behaviour's, or the field of :class:`~mmulab.kvm.kernel.Kernel`.
    alone : Kernel
        The first kernel with this change.
    without : Kernel
        The second kernel but for this change.
    """

    name: str
    alone: Kernel
    without: Kernel


def parts(base: Kernel, other: Kernel) -> list[Part]:
    """Return the changes from one kernel to another; raises InputError if there are none."""
    found = [
        Part(name, base.toggled(**{name: on}), other.toggled(**{name: not on}))
        for name, on in other.changes_from(base).items()
    ]
    for name in _FIELDS:
        ours, theirs = getattr(base, name), getattr(other, name)
        if ours is not theirs and ours != theirs:
            found.append(Part(name, base.with_(**{name: theirs}), other.with_(**{name: ours})))
    if not found:
        raise InputError(f"kernels {base} and {other} are the same; name two that differ")
    return found


class Effect(NamedTuple):
    """What a change does to a piece of work.

    Attributes
    ----------
    work : str
    change : str
        A part's name, or :data:`ALL`.
    added : bool
        The first kernel with and without the change; False: the second one.
    effects : Effects
        How much more with the change.
    first : int or None
        The op, or a boot's record, from which something is different; None: nothing is.
    text : str
        That op; empty for a boot.
    end : str
        How the work ended with the change, if not as it should.
    """

    work: str
    change: str
    added: bool
    effects: Effects
    first: int | None
    text: str = ""
    end: str = ""

    @property
    def place(self) -> str:
        """Where something is first different, in words."""
        if self.first is None:
            return "nowhere"
        if not self.text:
            return f"{self.work} record {self.first}"
        return f"{self.work} op {self.text if self.first == -1 else f'{self.first} {self.text!r}'}"


def _effect(case: Case, change: str, added: bool, plain: Track, changed: Track) -> Effect:
    first = first_difference(plain, changed)
    text = "" if first is None else changed.texts.get(first, "")
    return Effect(case.name, change, added, changed.effects.minus(plain.effects), first, text, changed.end)


def _effects(case: Case, base: Kernel, other: Kernel) -> Iterator[Effect]:
    work = Tracks(case)
    ours, theirs = work.on(base, watched=True), work.on(other, watched=True)
    yield _effect(case, ALL, True, ours, theirs)
    for part in parts(base, other):
        behaviour = part.name not in _FIELDS
        if not behaviour or part.name in ours.asked:
            yield _effect(case, part.name, True, ours, work.on(part.alone))
        if not behaviour or part.name in theirs.asked:
            yield _effect(case, part.name, False, work.on(part.without), theirs)


class _Work(NamedTuple):
    case: Case
    base: Kernel
    other: Kernel


def _work(work: _Work) -> list[Effect]:
    return list(_effects(*work))


def drift_each(
    base: Kernel, other: Kernel, works: Sequence[Case], *, jobs: Jobs = 1
) -> Generator[list[Effect], None, None]:
    """Yield the effects on each piece of work as soon as it is done, in order.

    A change that a run does not ask for has no effect on it, and none is given.

    Parameters
    ----------
    base, other : Kernel
    works : sequence of Case
        See :func:`mmulab.lab.cases.works.find_works`.
    jobs : int or Workers
        Processes, or others (:mod:`mmulab.pool`).

    Raises
    ------
    InputError
        The kernels are the same, or a piece of work cannot be read or run.
    """
    parts(base, other)
    with closing(pool.each(_work, [_Work(case, base, other) for case in works], jobs)) as rows:
        yield from rows


@dataclass(frozen=True)
class Drift:
    """The effects of each change between two kernels on some works.

    Attributes
    ----------
    base, other : Kernel
    works : tuple of str
    effects : tuple of Effect
    """

    base: Kernel
    other: Kernel
    works: tuple[str, ...]
    effects: tuple[Effect, ...]

    @classmethod
    def of(cls, base: Kernel, other: Kernel, rows: Sequence[Sequence[Effect]]) -> Drift:
        """Return what :func:`drift_each` gave, together."""
        return cls(base, other, tuple(row[0].work for row in rows), tuple(e for row in rows for e in row))

    def of_work(self, work: str) -> Drift:
        """Return the effects on one piece of work."""
        return replace(self, works=(work,), effects=tuple(e for e in self.effects if e.work == work))

    @cached_property
    def changes(self) -> list[str]:
        """The changes, in the order of the table of behaviours."""
        return [part.name for part in parts(self.base, self.other)]

    @cached_property
    def _seen(self) -> dict[tuple[str, bool], list[Effect]]:
        """The effects where something is different, by change and side."""
        found: dict[tuple[str, bool], list[Effect]] = {}
        for effect in self.effects:
            if effect.first is not None:
                found.setdefault((effect.change, effect.added), []).append(effect)
        return found

    @cached_property
    def shown(self) -> list[str]:
        """Those of them that make a difference on some work."""
        return [change for change in self.changes if self.first(change) is not None]

    def count(self, change: str) -> int:
        """Return on how many works a change makes a difference."""
        return len({e.work for added in (True, False) for e in self.seen(change, added=added)})

    def seen(self, change: str, *, added: bool = True) -> list[Effect]:
        """Return the effects of a change where something is different."""
        return self._seen.get((change, added), [])

    def total(self, change: str, *, added: bool = True) -> Effects:
        """Return the effects of a change on all works together."""
        return _sum([e.effects for e in self.seen(change, added=added)])

    def sum(self, *, added: bool = True) -> Effects:
        """Return the sum of the changes' effects."""
        return _sum([self.total(change, added=added) for change in self.changes])

    def first(self, change: str) -> Effect | None:
        """Return where a change first shows: alone, or if it needs others, beside them."""
        return next(iter(self.seen(change) or self.seen(change, added=False)), None)

    def records(self) -> list[dict[str, Any]]:
        """Return the effects as plain values."""
        return [{**e._asdict(), "effects": e.effects._asdict()} for e in self.effects]


def _sum(effects: Sequence[Effects]) -> Effects:
    return reduce(Effects.plus, effects, Effects())
