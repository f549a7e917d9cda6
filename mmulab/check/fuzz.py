"""A random search over the ops of one guest, guided by what earlier trials met.

Trials are drawn anew or made of kept ones: a step dropped, moved, repeated, given another
value, phrases put in, two trials spliced. Kept is what met something new
(:mod:`mmulab.check.coverage`). The search depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from mmulab.check.alphabet import Alphabet
from mmulab.check.coverage import Coverage
from mmulab.check.finding import Finding, MakeWatcher
from mmulab.check.guest import Plan
from mmulab.check.mutate import mutated
from mmulab.check.trial import make_bench
from mmulab.kvm.kernel import Kernel
from mmulab.scenario.grammar import Step
from mmulab.scenario.scenario import Scenario

STEPS = 60
"""Steps of a new trial, and about half as many more at most of a kept one."""
FRESH = 0.25
"""Share of trials that are drawn anew."""
CORPUS = 400
"""Trials kept at most; the oldest go."""


class Found(NamedTuple):
    """A finding and the scenario that has it.

    Attributes
    ----------
    finding : Finding
    scenario : Scenario
        Up to the op of the finding.
    trial : int
        Number of the trial.
    """

    finding: Finding
    scenario: Scenario
    trial: int


@dataclass(slots=True)
class Progress:
    """How far a search is.

    Attributes
    ----------
    trials, ops, features, refused : int
        `refused` trials ended at a step that is not modelled where it stands.
    known : dict of (str, str) to int
        What was found with the right kernel too, by kind and name: no finding of this one.
    """

    trials: int = 0
    ops: int = 0
    features: int = 0
    refused: int = 0
    known: dict[tuple[str, str], int] = field(default_factory=dict)


class Fuzzer:
    """A search of one guest.

    Parameters
    ----------
    plan : Plan
    kernel : Kernel
    watchers : sequence of MakeWatcher
    seed : int
    right : Kernel, optional
        What is found with this kernel as well is known, and not reported.

    Attributes
    ----------
    progress : Progress
    """

    def __init__(
        self,
        plan: Plan,
        kernel: Kernel,
        watchers: Sequence[MakeWatcher],
        *,
        seed: int,
        right: Kernel | None = None,
    ) -> None:
        self.plan = plan
        self.progress = Progress()
        self._rng = Random(f"{seed} {plan.guest.name}")
        self._alphabet = Alphabet(plan, self._rng)
        self._bench = make_bench(plan.scenario, kernel, watchers)
        self._right = None if right is None else make_bench(plan.scenario, right, watchers)
        self._coverage = Coverage()
        self._corpus: list[tuple[Step, ...]] = []

    def run(self, go_on: Callable[[Progress], bool]) -> Found | None:
        """Search until something is found, or until `go_on`, asked before each trial, says no."""
        while go_on(self.progress):
            found = self.trial()
            if found is not None:
                return found
        return None

    def trial(self) -> Found | None:
        """Do one trial."""
        steps = self._draw()
        self._coverage.begin()
        trial = self._bench.run(steps, self._coverage.note)
        self.progress.trials += 1
        self.progress.ops += trial.ops
        self.progress.refused += trial.refused is not None
        fresh = self._coverage.end()
        self.progress.features = len(self._coverage.seen)
        finding = trial.finding
        ended = trial.refused if finding is None else finding.op
        kept = steps if ended is None else steps[: max(0, ended - len(self._bench.scenario.steps))]
        if fresh:
            self._keep(kept)
        if finding is None or self._is_known(steps, finding):
            return None
        count = finding.op + 1 - len(self._bench.scenario.steps)
        return Found(finding, self._bench.whole(steps[: max(0, count)]), self.progress.trials)

    def _draw(self) -> tuple[Step, ...]:
        if not self._corpus or self._rng.random() < FRESH:
            steps: list[Step] = []
            while len(steps) < STEPS:
                steps += self._alphabet.phrase()
            return tuple(steps)
        # The later ones stand for what is rarer.
        at = max(self._rng.randrange(len(self._corpus)) for _ in range(2))
        return mutated(self._corpus[at], self._corpus, self._alphabet, self._rng, STEPS + STEPS // 2)

    def _keep(self, steps: tuple[Step, ...]) -> None:
        if steps:
            self._corpus.append(steps)
            del self._corpus[:-CORPUS]

    def _is_known(self, steps: Sequence[Step], finding: Finding) -> bool:
        """Whether the right kernel shows it too, at the same op or before."""
        if self._right is None:
            return False
        count = max(0, finding.op + 1 - len(self._bench.scenario.steps))
        other = self._right.run(steps[:count]).finding
        known = other is not None and other.op <= finding.op
        if known:
            key = finding.kind.value, finding.name
            self.progress.known[key] = self.progress.known.get(key, 0) + 1
        return known
