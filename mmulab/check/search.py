"""Searching a kernel for trouble: round the guests, and each finding made minimal.

What a kernel does wrong that the right one does as well is not its own fault; it is
counted, and not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mmulab.check.finding import Finding, MakeWatcher
from mmulab.check.fuzz import Found, Fuzzer
from mmulab.check.guest import Guest, plan
from mmulab.check.shrink import shrink
from mmulab.check.trial import make_bench
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.scenario.scenario import Scenario

ROUND = 50
"""Trials of a guest before it is the next one's turn."""


@dataclass(frozen=True, slots=True)
class Minimal:
    """A finding in its shortest form.

    Attributes
    ----------
    finding : Finding
        As a replay of `scenario` has it.
    scenario : Scenario
    guest : str
    trial : int
        Number of the guest's trial that had it.
    steps : int
        How many steps that trial had up to it.
    seconds : float
        From the search's beginning until it was found; shrinking comes after.
    """

    finding: Finding
    scenario: Scenario
    guest: str
    trial: int
    steps: int
    seconds: float


@dataclass(slots=True)
class Searched:
    """What came of a search.

    Attributes
    ----------
    found : list of Minimal
    trials, ops : int
    features : dict of str to int
        Met in each guest.
    known : dict of (str, str) to int
        What the right kernel shows too, by kind and name.
    seconds : float
    interrupted : bool
        By Ctrl-C; what was found until then is there.
    """

    found: list[Minimal] = field(default_factory=list)
    trials: int = 0
    ops: int = 0
    features: dict[str, int] = field(default_factory=dict)
    known: dict[tuple[str, str], int] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: bool = False


def search(
    kernel: Kernel,
    guests: Iterable[Guest],
    watchers: Sequence[MakeWatcher],
    *,
    seed: int,
    budget: float,
    right: Kernel | None = None,
    most: int = 1,
    progress: Callable[[Searched], None] | None = None,
) -> Searched:
    """Search a kernel until `most` different things are found or the time is over.

    Parameters
    ----------
    kernel : Kernel
    guests : iterable of Guest
        Gone round in turns of :data:`ROUND` trials.
    watchers : sequence of MakeWatcher
    seed : int
        With the guests and the watchers it decides which trials are made; `budget`, how many.
    budget : float
        Seconds; shrinking what was found may take a few more.
    right : Kernel, optional
        What it shows too is known.
    most : int
        Findings that differ in kind or name.
    progress : callable, optional
        Called after each turn.
    """
    searched, begin = Searched(), time.monotonic()
    end = begin + budget
    try:
        fuzzers = [Fuzzer(plan(guest), kernel, watchers, seed=seed, right=right) for guest in guests]
        while fuzzers and len(searched.found) < most and time.monotonic() < end:
            for fuzzer in fuzzers:
                if len(searched.found) >= most or time.monotonic() >= end:
                    break
                _turn(searched, fuzzer, kernel, right, watchers, begin, end)
                _sum(searched, fuzzers)
                searched.seconds = time.monotonic() - begin
                if progress is not None:
                    progress(searched)
    except KeyboardInterrupt:
        searched.interrupted = True
    searched.seconds = time.monotonic() - begin
    return searched


def _turn(
    searched: Searched,
    fuzzer: Fuzzer,
    kernel: Kernel,
    right: Kernel | None,
    watchers: Sequence[MakeWatcher],
    begin: float,
    end: float,
) -> None:
    """Give a guest its trials; shrink and keep what is found, unless it was found before."""
    last = fuzzer.progress.trials + ROUND
    found = fuzzer.run(lambda progress: progress.trials < last and time.monotonic() < end)
    if found is None:
        return
    seconds = time.monotonic() - begin
    if any(_same(found.finding, old.finding) for old in searched.found):
        return
    scenario = shrink_found(found, kernel, watchers, right)
    finding = make_bench(scenario, kernel, watchers).run(()).finding
    assert finding is not None
    name, steps = fuzzer.plan.guest.name, len(found.scenario.steps)
    searched.found.append(Minimal(finding, scenario, name, found.trial, steps, seconds))


def shrink_found(
    found: Found, kernel: Kernel, watchers: Sequence[MakeWatcher], right: Kernel | None = None
) -> Scenario:
    """Return the shortest scenario with the same kind and name of finding, which `right` has not.

    Its header names the kernel, if that can be had by a name.
    """

    def still(scenario: Scenario) -> bool:
        finding = make_bench(scenario, kernel, watchers).run(()).finding
        if finding is None or not _same(finding, found.finding):
            return False
        if right is None:
            return True
        other = make_bench(scenario, right, watchers).run(()).finding
        return other is None or other.op > finding.op

    scenario = shrink(found.scenario, still)
    return replace(scenario, header=replace(scenario.header, kernel=_name(kernel, scenario)))


def _name(kernel: Kernel, scenario: Scenario) -> str:
    """Return the name by which a scenario finds the kernel; one that has none stays the header's."""
    try:
        return kernel.name if find_kernel(kernel.name) == kernel else scenario.header.kernel
    except InputError:
        return scenario.header.kernel


def _same(one: Finding, other: Finding) -> bool:
    return (one.kind, one.name) == (other.kind, other.name)


def _sum(searched: Searched, fuzzers: Sequence[Fuzzer]) -> None:
    searched.trials = sum(fuzzer.progress.trials for fuzzer in fuzzers)
    searched.ops = sum(fuzzer.progress.ops for fuzzer in fuzzers)
    searched.features = {fuzzer.plan.guest.name: fuzzer.progress.features for fuzzer in fuzzers}
    searched.known = {}
    for fuzzer in fuzzers:
        for key, count in fuzzer.progress.known.items():
            searched.known[key] = searched.known.get(key, 0) + count
