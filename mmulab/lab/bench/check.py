"""How fast the checker is: ops a second in random trials, states a second in scopes tried whole.

Rates are of processor time, so that others on the machine count less; each is the median
of several measurements of the same work. The bare trials are the peer: what the model costs,
and what each watcher adds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from mmulab.check.asserted import Asserted
from mmulab.check.explore import explore
from mmulab.check.explored import Bounds, Explored
from mmulab.check.finding import MakeWatcher
from mmulab.check.fuzz import Fuzzer
from mmulab.check.guest import Plan, plan
from mmulab.check.guests import GUESTS
from mmulab.check.hunt import IN_GUESTS, IN_SCOPES
from mmulab.check.mmu import Invariants
from mmulab.check.oracle import Oracle
from mmulab.check.scopes import find_scope
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.bench.measure import Measure

IN_TRIALS: Mapping[str, tuple[MakeWatcher, ...]] = MappingProxyType(
    {
        "bare": (),
        "oracle": (Oracle,),
        "oracle, assertions, invariants": (Oracle, Asserted, Invariants),
        "all watchers": IN_GUESTS,
    }
)
"""What watches the trials that are measured; the last adds the adversary to what a search has."""
TRIAL_GUESTS = ("shadow-64", "shadow-pae", "npt-64")
SCOPES = ("paths-64", "upper-paths-64", "linked-64", "npt-la57", "rights-pae", "moved-32", "hosts-64")
"""The first four are small and searched whole, the last level too, which adds few states."""
WARM_UP = 3
"""Trials before the first that is measured."""


def bench_check(
    *, trials: int = 40, states: int = 600, repeat: int = 3, seed: int = 1
) -> tuple[Measure, ...]:
    """Measure random trials of a few guests, and scopes.

    Parameters
    ----------
    trials : int
        Trials in each measurement.
    states : int
        States in each measurement of a scope, unless it is whole before.
    repeat : int
        Measurements; their median counts.
    seed : int
        Chooses the trials.
    """
    found = []
    for guest in TRIAL_GUESTS:
        made = plan(GUESTS[guest])
        for name, watchers in IN_TRIALS.items():
            rate = _median(repeat, partial(_ops, made, watchers, trials, seed))
            found.append(Measure(f"trials of {guest}, {name}", rate, "ops/s"))
    many, seconds = 0, 0.0
    for scope in SCOPES:
        searched = [_explored(scope, states) for _ in range(repeat)]
        spent = statistics.median(explored.cpu_seconds for explored in searched)
        found.append(Measure(f"scope {scope}", searched[0].states / spent, "states/s"))
        many, seconds = many + searched[0].states, seconds + spent
    found.append(Measure("scopes together", many / seconds, "states/s"))
    return tuple(found)


def _median(repeat: int, measure: Callable[[], float]) -> float:
    return statistics.median(measure() for _ in range(repeat))


def _ops(made: Plan, watchers: tuple[MakeWatcher, ...], trials: int, seed: int) -> float:
    """Return the ops a second of a search's first trials."""
    fuzzer = Fuzzer(made, find_kernel("6.1"), watchers, seed=seed)
    for _ in range(WARM_UP):
        fuzzer.trial()
    before, start = fuzzer.progress.ops, time.process_time()
    for _ in range(trials):
        fuzzer.trial()
    return (fuzzer.progress.ops - before) / (time.process_time() - start)


def _explored(scope: str, states: int) -> Explored:
    """Search a scope, up to so many states."""
    return explore(find_scope(scope), find_kernel("6.1"), IN_SCOPES, Bounds(states=states))
