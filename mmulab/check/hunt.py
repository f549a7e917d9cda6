"""Looking for trouble in a kernel, in two ways and on one budget: scopes tried whole, guests at random.

Places are gone round in turns, each of which gets more time than the one before: a scope
is begun anew and gets further, a guest's search goes on. So what is shallow anywhere is
found before what is deep somewhere. In a turn one scope of each kind comes first, for what
a kind is aimed at seldom needs just one mode of paging. What the right kernel does as well
is known, and no finding; what Linux itself is known to do wrong is passed over, and the
search goes on behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mmulab.check.asserted import Asserted
from mmulab.check.explore import explore
from mmulab.check.explored import INTERRUPTED, Bounds, Counterexample, Explored
from mmulab.check.finding import Finding, MakeWatcher
from mmulab.check.fuzz import Found, Fuzzer
from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.known import beyond
from mmulab.check.minimal import shrink_found
from mmulab.check.mmu import Invariants
from mmulab.check.oracle import Oracle
from mmulab.check.scopes import MAKERS, find_scope, kinds_first
from mmulab.check.tlb import Adversary
from mmulab.check.trial import make_bench
from mmulab.errors import InputError, quoted
from mmulab.kvm.kernel import Kernel
from mmulab.scenario.scenario import Scenario

FIRST_TURN = 1.0
"""Seconds of each scope's first turn; most are done then."""
LONGER = 3.0
"""How many times as long the next turn is."""
GUESTS_SHARE = 0.25
"""How much of that a guest gets, whose search is not begun anew."""
IN_SCOPES: tuple[MakeWatcher, ...] = (Oracle, Asserted)
"""What watches a scope, besides the invariants of each state (:mod:`mmulab.check.explore`)."""
IN_GUESTS: tuple[MakeWatcher, ...] = (Oracle, Asserted, Invariants, Adversary)
"""What watches a random search."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is looked for, and where.

    Attributes
    ----------
    kernel : Kernel
    right : Kernel or None
        What it does too is known; None: everything is a finding.
    places : tuple of str
        Of :func:`places`.
    seed : int
    budget : float
        Seconds on the clock.
    most : int
        Different findings after which the search ends.
    """

    kernel: Kernel
    right: Kernel | None
    places: tuple[str, ...]
    seed: int
    budget: float
    most: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """A finding in its shortest form.

    Attributes
    ----------
    finding : Finding
        As a replay of `scenario` has it.
    scenario : Scenario
    place : str
    steps : int
        How many steps it had before it was made minimal.
    seconds, cpu_seconds : float
        From the search's beginning until it was found and minimal: on the clock, and of the process.
    """

    finding: Finding
    scenario: Scenario
    place: str
    steps: int
    seconds: float
    cpu_seconds: float


@dataclass(slots=True)
class Hunted:
    """What came of a job.

    Attributes
    ----------
    job : Job
    found : list of Trouble
        No two of one kind and name.
    states : int
        Different ones, in all scopes.
    ops : int
        Executed in random trials.
    free : dict of str to str
        The scopes of which every sequence was tried and nothing found, and how far that goes.
    searched : list of str
        The guests that had a turn.
    known : dict of (str, str) to int
        What the right kernel shows too, by kind and name.
    refused : int
        Tries in scopes and trials of guests that came to an op which is not modelled where it stands.
    deviations : dict of str to int
        What is known of Linux itself (:mod:`mmulab.check.known`), by name, and how often it was passed over.
    interrupted : bool
    place : str
        Where the search is, or was last.
    """

    job: Job
    found: list[Trouble] = field(default_factory=list)
    states: int = 0
    ops: int = 0
    free: dict[str, str] = field(default_factory=dict)
    searched: list[str] = field(default_factory=list)
    known: dict[tuple[str, str], int] = field(default_factory=dict)
    refused: int = 0
    deviations: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
    place: str = ""


def places(patterns: Sequence[str] = ("*",)) -> tuple[str, ...]:
    """Return the names of the scopes and guests that match, a scope of each kind first, in turn with guests.

    Raises
    ------
    InputError
        A pattern matches none.
    """
    scopes, guests = kinds_first(), list(GUESTS)
    many = max(len(scopes), len(guests))
    known = [name for at in range(many) for name in (*scopes[at : at + 1], *guests[at : at + 1])]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            mend = "'mmulab check --list' shows the known names"
            raise InputError(f"scope '{quoted(pattern)}': unknown; {mend}")
    return tuple(name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns))


def hunt(job: Job, stop: Callable[[], bool], progress: Callable[[Hunted], None] | None = None) -> Hunted:
    """Search until the time is over, `job.most` things are found, every place is done, or `stop` says so.

    Parameters
    ----------
    job : Job
    stop : callable
        Asked between trials and between the states of a scope.
    progress : callable, optional
        Called after each turn.
    """
    return _Hunt(job, stop, progress).run()


class _Hunt:
    def __init__(self, job: Job, stop: Callable[[], bool], progress: Callable[[Hunted], None] | None) -> None:
        self._job, self._stop, self._progress = job, stop, progress
        self._begin, self._cpu_begin = time.monotonic(), time.process_time()
        self._end = self._begin + job.budget
        self._hunted = Hunted(job)
        self._fuzzers: dict[str, Fuzzer] = {}
        self._in_scope: dict[str, int] = {}
        self._refused: dict[str, int] = {}

    def run(self) -> Hunted:
        """Go round the places until there is no reason to."""
        left, turn = list(self._job.places), FIRST_TURN
        try:
            while left and not self._is_over():
                for name in list(left):
                    if self._is_over():
                        break
                    self._hunted.place = name
                    longest = self._end - time.monotonic()
                    if name not in MAKERS:
                        self._guest(name, min(turn * GUESTS_SHARE, longest))
                    elif self._scope(name, min(turn, longest)):
                        left.remove(name)
                    self._tell()
                turn *= LONGER
        except KeyboardInterrupt:
            self._hunted.interrupted = True
        self._hunted.interrupted |= self._stop()
        self._tell()
        return self._hunted

    def _is_over(self) -> bool:
        enough = len(self._hunted.found) >= self._job.most
        return enough or self._stop() or time.monotonic() >= self._end

    def _tell(self) -> None:
        hunted = self._hunted
        hunted.states = sum(self._in_scope.values())
        progress = [fuzzer.progress for fuzzer in self._fuzzers.values()]
        hunted.ops = sum(each.ops for each in progress)
        hunted.refused = sum(self._refused.values()) + sum(each.refused for each in progress)
        if self._progress is not None:
            self._progress(hunted)

    def _scope(self, name: str, seconds: float) -> bool:
        """Try a scope for some time; return whether every sequence was tried."""
        kernel, right = self._job.kernel, self._job.right
        bounds = Bounds(seconds=seconds, first=self._job.most == 1, stop=self._is_over)
        watchers = self._beyond(IN_SCOPES) if right is None else IN_SCOPES
        explored = explore(find_scope(name), kernel, watchers, bounds, known=self._known_in_scope(right))
        self._in_scope[name] = max(explored.states, self._in_scope.get(name, 0))
        self._refused[name] = max(explored.refused, self._refused.get(name, 0))
        for example in explored.found:
            self._keep(example.finding, Found(example.finding, example.scenario, 0), name)
        if explored.complete and not explored.found:
            self._hunted.free[name] = _how_far(explored)
        if explored.interrupted == INTERRUPTED:
            raise KeyboardInterrupt  # it ended the scope's search, and is to end this one
        return explored.complete

    def _beyond(self, watchers: Sequence[MakeWatcher]) -> Sequence[MakeWatcher]:
        """Return watchers that pass over what Linux is known to do wrong.

        Not in a scope of a kernel with a bug: the right kernel tells there, which is more exact,
        and a sequence that ends early is one of many.
        """
        return beyond(watchers, self._hunted.deviations)

    def _known_in_scope(self, right: Kernel | None) -> Callable[[Counterexample], bool] | None:
        if right is None:
            return None
        watchers = (*IN_SCOPES, Invariants)

        def known(example: Counterexample) -> bool:
            other = make_bench(example.scenario, right, watchers).run(()).finding
            return other is not None and other.op <= example.finding.op

        return known

    def _guest(self, name: str, seconds: float) -> None:
        """Search a guest at random for some time; it is never done."""
        if name not in self._fuzzers:
            made = plan(GUESTS[name])
            job = self._job
            watchers = self._beyond(IN_GUESTS)
            self._fuzzers[name] = Fuzzer(made, job.kernel, watchers, seed=job.seed, right=job.right)
            self._hunted.searched.append(name)
        fuzzer, end = self._fuzzers[name], time.monotonic() + seconds
        found = fuzzer.run(lambda _: time.monotonic() < end and not self._is_over())
        if found is not None:
            self._keep(found.finding, found, name)
        self._hunted.known = {}
        for other in self._fuzzers.values():
            for key, count in other.progress.known.items():
                self._hunted.known[key] = self._hunted.known.get(key, 0) + count

    def _keep(self, finding: Finding, found: Found, place: str) -> None:
        """Make a finding minimal and keep it, unless one of its kind and name is there."""
        key = finding.kind, finding.name
        if any((old.finding.kind, old.finding.name) == key for old in self._hunted.found):
            return
        job = self._job
        watchers: Sequence[MakeWatcher] = (*IN_SCOPES, Invariants) if place in MAKERS else IN_GUESTS
        if place not in MAKERS or job.right is None:
            watchers = beyond(watchers, {})
        scenario = shrink_found(found, job.kernel, watchers, job.right)
        again = make_bench(scenario, job.kernel, watchers).run(()).finding
        assert again is not None
        clock, cpu = time.monotonic() - self._begin, time.process_time() - self._cpu_begin
        trouble = Trouble(again, scenario, place, len(found.scenario.steps), clock, cpu)
        self._hunted.found.append(trouble)


def _how_far(explored: Explored) -> str:
    ops = f"{len(explored.scope.ops)} ops, {explored.states} states"
    if explored.refused:
        ops += f", but for what follows {explored.refused} refused op{'s' if explored.refused > 1 else ''}"
    return f"{'at any depth' if explored.closed else f'up to depth {explored.depth}'} of {ops}"
