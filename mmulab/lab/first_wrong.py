"""The first op of a scenario that goes wrong, in a recording that can be stepped."""

from __future__ import annotations

from typing import NamedTuple

from mmulab.check.failure import FAILURES
from mmulab.check.finding import Finding
from mmulab.check.hunt import IN_GUESTS
from mmulab.check.judged import record_judged
from mmulab.check.trial import make_bench
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.scenario.scenario import Scenario
from mmulab.trace.recording import Moment, Recording


class FirstWrong(NamedTuple):
    """Where a run goes wrong first.

    Attributes
    ----------
    recording : Recording
    at : int
        The moment at which the wrong op has ended; if the MMU fails in it, the one before it.
    finding : Finding or None
        None: nothing is wrong, and `at` is the beginning.
    """

    recording: Recording
    at: int
    finding: Finding | None


def first_wrong(scenario: Scenario, kernel: Kernel) -> FirstWrong:
    """Run a scenario under every watcher, and record it up to what they say first.

    Raises
    ------
    InputError
        The scenario is not modelled, or the MMU fails before anything can be looked at.
    """
    finding = make_bench(scenario, kernel, IN_GUESTS).run(()).finding
    if finding is None:
        return FirstWrong(record_judged(scenario, kernel=kernel)[0], 0, None)
    recording, ops = record_until(scenario, kernel, finding.op)
    at = recording.number(Moment(ops[max(ops)], None))
    return FirstWrong(recording, at, finding)


def record_until(scenario: Scenario, kernel: Kernel, last: int) -> tuple[Recording, dict[int, int]]:
    """Record a run up to a step, or where the MMU fails in it, up to the step before.

    Returns
    -------
    recording : Recording
    ops : dict of int to int
        As :func:`~mmulab.scenario.record.record_steps` has it; without `last` if the MMU fails there.

    Raises
    ------
    InputError
        The MMU fails before anything can be looked at.
    """
    for until in (last, last - 1):
        try:
            return record_judged(scenario, kernel=kernel, until=until)
        except FAILURES as error:
            if isinstance(error, InputError):
                raise
    raise InputError(f"{scenario.source}: the MMU fails in the first op; nothing before it can be shown")
