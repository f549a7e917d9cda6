"""What a search of a scope is asked, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mmulab.check.finding import Finding
from mmulab.check.scope import Scope
from mmulab.scenario.scenario import Scenario

INTERRUPTED = "Ctrl-C"
"""Why a search ended that the user ended."""
MOST_STATES = 180_000


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A finding, and the shortest way to it.

    Attributes
    ----------
    finding : Finding
    choices : tuple of int
        The scope's ops that lead there.
    scenario : Scenario
        The same as a scenario, to be saved or stepped.
    states, seconds : int, float
        What the search had seen, and how long it had run, when it was found.
    """

    finding: Finding
    choices: tuple[int, ...]
    scenario: Scenario
    states: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Explored:
    """What a search came to.

    Attributes
    ----------
    scope : Scope
    kernel : str
    states, tries, refused : int
        Different states, ops that were executed to find them, and those of them that are not
        modelled where they stand: nothing is known behind such a one.
    depth : int
        Up to which depth every sequence was tried.
    found : tuple of Counterexample
        One for each kind and name of a finding, in the order of their lengths.
    complete : bool
        Every sequence of the scope's depth was tried.
    closed : bool
        No op leads to a state that was not seen: what holds, holds for sequences of any length.
    interrupted : str
        Why not: "", "Ctrl-C", "time", "states", "found", "stopped".
    seconds, cpu_seconds : float
        On the clock, and of this process.
    """

    scope: Scope
    kernel: str
    states: int
    tries: int
    refused: int
    depth: int
    found: tuple[Counterexample, ...]
    complete: bool
    closed: bool
    interrupted: str
    seconds: float
    cpu_seconds: float

    def __str__(self) -> str:
        rate = f"{self.states} states, {self.states / max(self.cpu_seconds, 1e-9):.0f}/s"
        many = f"{len(self.scope.ops)} ops" + (f", {self.refused} not modelled" if self.refused else "")
        if self.found:
            names = ", ".join(f"{c.finding.name} after {len(c.choices)}" for c in self.found)
            return f"{self.scope.name}: {self.kernel}: {rate}: {names}"
        if self.complete:
            far = "at any depth" if self.closed else f"up to depth {self.depth}"
            return f"{self.scope.name}: {self.kernel}: free {far} of {many}: {rate}"
        why = f"interrupted ({self.interrupted})"
        return f"{self.scope.name}: {self.kernel}: nothing up to depth {self.depth} of {many}, {why}: {rate}"


class Progress(NamedTuple):
    """How far a search is: the depth at work, states so far, and how many of the depth are left."""

    depth: int
    states: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a search ends before the scope does.

    Attributes
    ----------
    seconds : float or None
    states : int
        Each is kept until its ops were tried, in some 5 KiB: by default they stay below 1 GiB.
    first : bool
        At the first finding.
    stop : callable or None
        Asked after each state's ops.
    """

    seconds: float | None = None
    states: int = MOST_STATES
    first: bool = False
    stop: Callable[[], bool] | None = None
