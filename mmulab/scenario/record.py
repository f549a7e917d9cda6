"""Recordings of scenarios: run once, looked at anywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmulab.kvm.kernel import Kernel
from mmulab.machine.machine import Machine
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.scenario import Scenario
from mmulab.scenario.text import format_scenario
from mmulab.trace.judge import against_tables
from mmulab.trace.recorder import INTERVAL, Recorder
from mmulab.trace.recording import Info, Judge, Recording

Says = Callable[[Result], str | None]
"""Says what is wrong with an op that has just run, or None."""
_DENSE = 60
"""Ops and events between two checkpoints of a short run: each costs as much as a few ops."""
MakeJudge = Callable[[Machine], Says]
"""Makes what judges the ops of a machine, before the first of them."""


def record(
    scenario: Scenario,
    *,
    kernel: Kernel | None = None,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    judge: Judge | None = against_tables,
    interval: int = INTERVAL,
) -> Recording:
    """Run a scenario and record it, from the registers' first values to the end of the VM.

    Parameters
    ----------
    scenario : Scenario
    kernel : Kernel, optional
        Instead of the scenario's own.
    seed : int, optional
        Of whoever made the scenario.
    options : dict, optional
        What else it was made with.
    judge : callable or None
        Says of each outcome what is wrong with it.
    interval : int
        Ops and events between two checkpoints.

    Raises
    ------
    InputError
        The scenario has an op, or a host, that is not modelled.
    """
    info = Info(scenario.source, format_scenario(scenario), seed, options or {})
    runner = Runner(scenario, config=machine_config(scenario, kernel))
    recorder = Recorder(runner.machine, info=info, judge=judge, interval=interval)
    for result in runner.results():
        recorder.belongs(result.index, helper=is_helper(result))
    return recorder.finish()


def is_helper(result: Result) -> bool:
    """Whether an op is none of the scenario's, and only goes with one."""
    return "~" in result.text


def _interval(scenario: Scenario) -> int:
    """Return an interval for a recording that is stepped: looking is quick, and checkpoints stay few."""
    return min(INTERVAL, max(_DENSE, len(scenario.steps) // 50))


def record_steps(
    scenario: Scenario,
    *,
    kernel: Kernel | None = None,
    until: int | None = None,
    judge: MakeJudge | None = None,
) -> tuple[Recording, dict[int, int]]:
    """Run a scenario, record it, and say which of the recording's ops is which step.

    A recording has ops that are no steps: registers set by the VMM, helper
    instructions, memory written for a VMRUN.

    Parameters
    ----------
    scenario : Scenario
    kernel : Kernel, optional
        Instead of the scenario's own.
    until : int, optional
        Stop after this step; without it the machine is taken down in the end.
    judge : callable, optional
        Makes what judges the ops; see :mod:`mmulab.check.judged`.

    Returns
    -------
    recording : Recording
    ops : dict of int to int
        Index of a step, as :class:`~mmulab.scenario.runner.Result` has it, to the number of its op.

    Raises
    ------
    InputError
        The scenario has an op, or a host, that is not modelled.
    """
    runner = Runner(scenario, config=machine_config(scenario, kernel))
    info = Info(scenario.source, format_scenario(scenario))
    recorder = Recorder(runner.machine, info=info, interval=_interval(scenario))
    says = None if judge is None else judge(runner.machine)
    ops: dict[int, int] = {}
    for result in runner.results():
        recorder.belongs(result.index, helper=is_helper(result))
        said = None if says is None else says(result)
        if said is not None:
            recorder.found_wrong(said)
        ops[result.index] = recorder.op_count - 1
        if result.index == until:
            break
    return recorder.finish(), ops
