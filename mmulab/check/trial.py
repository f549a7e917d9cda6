"""One trial: a fresh machine is given ops, and watchers look at each, until one finds something.

A trial depends on nothing but its scenario, kernel and watchers, so it can be had again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mmulab.check.failure import FAILURES, failure
from mmulab.check.finding import Finding, MakeWatcher
from mmulab.errors import DesignError, InputError
from mmulab.kvm.kernel import Kernel
from mmulab.machine.config import MachineConfig
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.grammar import Step
from mmulab.scenario.runner import Beginning, Result, Runner
from mmulab.scenario.scenario import Scenario

TABLE_FRAMES = 1 << 13
"""Host frames for the tables of one trial."""
Observer = Callable[[Result], None]


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one.

    Attributes
    ----------
    finding : Finding or None
    ops : int
        Ops that ran, helpers and what the runner adds included.
    refused : int or None
        Index of a step that cannot be done where it stands; the trial ended there.
    """

    finding: Finding | None
    ops: int
    refused: int | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """Where trials of one beginning are run.

    Attributes
    ----------
    scenario : Scenario
        The beginning; its own steps come before those of a trial.
    config : MachineConfig
    watchers : tuple of MakeWatcher
    beginning : Beginning
        Of the scenario's header.
    """

    scenario: Scenario
    config: MachineConfig
    watchers: tuple[MakeWatcher, ...]
    beginning: Beginning

    def run(self, steps: Sequence[Step], observe: Observer | None = None) -> Trial:
        """Run a trial of the beginning and these steps."""
        with _uncollected():
            return run_trial(self.whole(steps), self.config, self.watchers, observe, self.beginning)

    def whole(self, steps: Sequence[Step]) -> Scenario:
        """Return the scenario of a trial."""
        return replace(self.scenario, steps=(*self.scenario.steps, *steps))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector away: a trial is short, and nearly all that it looks through is in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def make_bench(scenario: Scenario, kernel: Kernel, watchers: Sequence[MakeWatcher]) -> Bench:
    """Return where trials of a beginning are run under a kernel.

    Raises
    ------
    InputError
        The header contradicts itself, or KVM would not take it.
    """
    config = replace(machine_config(scenario, kernel), table_frames=TABLE_FRAMES)
    return Bench(scenario, config, tuple(watchers), Beginning(scenario.header))


def run_trial(
    scenario: Scenario,
    config: MachineConfig,
    watchers: Sequence[MakeWatcher],
    observe: Observer | None = None,
    beginning: Beginning | None = None,
) -> Trial:
    """Run a scenario up to the first finding.

    Parameters
    ----------
    scenario : Scenario
    config : MachineConfig
        Of a machine for it.
    watchers : sequence of MakeWatcher
    observe : callable, optional
        Gets the result of each op before the watchers do.
    beginning : Beginning, optional
        Of its header, for those who run many.
    """
    runner = Runner(scenario, config=config, beginning=beginning)
    looks = [make(runner.machine).after for make in watchers]
    count = 0
    running = _results(runner)
    for item in running:
        if not isinstance(item, Result):
            return replace(item, ops=count)
        count += 1
        if observe is not None:
            observe(item)
        for look in looks:
            finding = look(item)
            if finding is not None:
                running.close()
                return Trial(finding, count)
    return Trial(None, count)


def _results(runner: Runner) -> Generator[Result | Trial, None, None]:
    """Yield the results; where the run cannot go on, the trial that ends so."""
    try:
        yield from runner.results()
    except DesignError as error:
        yield Trial(failure(runner, error), 0)
    except (InputError, NotImplementedError):
        yield Trial(None, 0, refused=runner.at[0])
    except FAILURES as error:
        yield Trial(failure(runner, error), 0)
