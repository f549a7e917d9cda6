"""Recordings of scenarios: run once, looked at anywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmulab.kvm.derivation import Derivation
from mmulab.kvm.design import RoleDesign
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import Scenario
from mmulab.scenario.text import format_scenario
from mmulab.trace.judge import against_tables
from mmulab.trace.recorder import INTERVAL, Recorder
from mmulab.trace.recording import Info, Judge, Recording


def record(
    scenario: Scenario,
    *,
    design: RoleDesign | None = None,
    derivation: Derivation | None = None,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    judge: Judge | None = against_tables,
    interval: int = INTERVAL,
) -> Recording:
    """Run a scenario and record it, from the registers' first values to the end of the VM.

    Parameters
    ----------
    scenario : Scenario
    design, derivation : optional
        Instead of the machine's own.
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
    config = machine_config(scenario)
    config = replace(config, design=design or config.design, derivation=derivation or config.derivation)
    runner = Runner(scenario, config=config)
    info = Info(scenario.source, format_scenario(scenario), seed, options or {})
    recorder = Recorder(runner.machine, info=info, judge=judge, interval=interval)
    for _ in runner.results():
        pass
    return recorder.finish()
