"""A search for a bug, followed: what it had seen at which time, and in which place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from mmulab.check.hunt import Hunted, Job, Trouble, hunt
from mmulab.errors import InputError, quoted
from mmulab.kvm.bug import Bug
from mmulab.kvm.bugs import find_bug
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel

__all__ = ["Followed", "Sample", "Search", "find_switches", "follow", "switched"]


class Search(NamedTuple):
    """What a search does, and within which bounds.

    Attributes
    ----------
    kernel : str
        The right one.
    places : tuple of str
        Of :func:`mmulab.check.hunt.places`.
    seed : int
    budget : float
        Seconds on the clock, for each bug.
    """

    kernel: str
    places: tuple[str, ...]
    seed: int
    budget: float


class Sample(NamedTuple):
    """What a search had done at the end of a place's turn: seconds on the clock, and counts in all."""

    seconds: float
    place: str
    states: int
    ops: int


@dataclass(slots=True)
class Followed:
    """A search for a bug, from its beginning to its end.

    Attributes
    ----------
    bug : Bug
    hunted : Hunted
    samples : list of Sample
        One a turn, the first of nothing at all.
    """

    bug: Bug
    hunted: Hunted
    samples: list[Sample] = field(default_factory=lambda: [Sample(0.0, "", 0, 0)])

    @property
    def trouble(self) -> Trouble | None:
        """What was found first, in its shortest form."""
        return self.hunted.found[0] if self.hunted.found else None

    @property
    def seconds(self) -> float:
        """How long it took, on the clock, until the finding was minimal, or until the search ended."""
        return self.samples[-1].seconds if self.trouble is None else self.trouble.seconds

    @property
    def said(self) -> str:
        """How it ended, in one sentence."""
        hunted, found = self.hunted, self.trouble
        seen = f"{hunted.states:,} states and {hunted.ops:,} random ops"
        if found is not None:
            long = f"{_many(found.steps, 'op')}, {len(found.scenario.steps)} after shrinking"
            return f"{self.bug.id}: found in {found.place} after {found.seconds:.1f} s, {seen}: {long}"
        if hunted.interrupted:
            return f"{self.bug.id}: interrupted after {self.seconds:.1f} s, {seen}; nothing found"
        return f"{self.bug.id}: not found in {self.seconds:.1f} s, {seen}"

    def by_place(self, most: int) -> list[Sample]:
        """Return what was done in each place, the `most` that took longest and the rest together."""
        spent: dict[str, list[Sample]] = {}
        for before, after in pairwise(self.samples):
            turn = (after.seconds - before.seconds, after.states - before.states, after.ops - before.ops)
            spent.setdefault(after.place, []).append(Sample(turn[0], after.place, turn[1], turn[2]))
        ranked = sorted((_sum(place, turns) for place, turns in spent.items()), key=lambda s: -s.seconds)
        rest = ranked[most:]
        return [*ranked[:most], *([_sum(f"{len(rest)} others", rest)] if rest else [])]


def _sum(place: str, turns: Sequence[Sample]) -> Sample:
    seconds = sum(turn.seconds for turn in turns)
    return Sample(seconds, place, sum(turn.states for turn in turns), sum(turn.ops for turn in turns))


def _many(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' * (count != 1)}"


def switched(bug: str, kernel: str) -> tuple[Bug, Kernel, Kernel]:
    """Return a bug, a kernel with it, and the kernel without.

    Raises
    ------
    InputError
        The bug is unknown or has no switch, or the kernel is unknown.
    """
    found, right = find_bug(bug), find_kernel(kernel)
    if not found.has_switch:
        raise InputError(f"bug {found.id} has no switch: {found.missing}")
    return found, find_kernel(f"{kernel}+{found.id}"), right


def find_switches(text: str, every: Sequence[str]) -> list[str]:
    """Return the bugs that a list names, in its order: ``B17,B24``; ``*`` is every one that has a switch.

    Raises
    ------
    InputError
        One is unknown, has no switch, or is there twice.
    """
    if text == "*":
        return list(every)
    names = [find_bug(word.strip()).id for word in text.split(",")]
    for name in names:
        if name not in every:
            raise InputError(f"bug {name} has no switch: {find_bug(name).missing}")
        if names.count(name) > 1:
            raise InputError(f"switches '{quoted(text)}': {name} is there twice")
    return names


def follow(bug: str, search: Search, tell: Callable[[Followed], None] = lambda followed: None) -> Followed:
    """Search a kernel with a bug until something is found that the kernel without it lacks.

    Parameters
    ----------
    bug : str
    search : Search
    tell : callable
        Called after each turn.

    Raises
    ------
    InputError
        The bug is unknown or has no switch, or the kernel is unknown.
    """
    found, wrong, right = switched(bug, search.kernel)
    job = Job(wrong, right, search.places, search.seed, search.budget, 1)
    followed = Followed(found, Hunted(job))
    begin = time.monotonic()

    def note(hunted: Hunted) -> None:
        followed.hunted = hunted
        sample = Sample(time.monotonic() - begin, hunted.place, hunted.states, hunted.ops)
        followed.samples.append(sample)
        tell(followed)

    followed.hunted = hunt(job, lambda: False, note)
    return followed
