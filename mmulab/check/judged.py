"""Recordings whose ops the oracle has judged, those of L2 too."""

from __future__ import annotations

from mmulab.check.judge import Judge
from mmulab.kvm.kernel import Kernel
from mmulab.machine.machine import Machine
from mmulab.scenario.record import Says, record_steps
from mmulab.scenario.runner import Result
from mmulab.scenario.scenario import Scenario
from mmulab.trace.recording import Recording


def oracle_says(machine: Machine) -> Says:
    """Return what judges the ops of a machine that has run none yet."""
    judge = Judge(machine)

    def says(result: Result) -> str | None:
        wrong = judge.judge(result)[2]
        return None if wrong is None else wrong.said

    return says


def record_judged(
    scenario: Scenario, *, kernel: Kernel | None = None, until: int | None = None
) -> tuple[Recording, dict[int, int]]:
    """Run a scenario and record it, with the oracle's verdicts.

    Parameters, result and errors are those of :func:`~mmulab.scenario.record.record_steps`.
    """
    return record_steps(scenario, kernel=kernel, until=until, judge=oracle_says)
