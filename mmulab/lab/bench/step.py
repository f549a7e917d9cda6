"""How fast a recording is made, opened and looked at.

The run is a guest of the conformance corpus that goes through its ops again and
again. Its peer is the same run without a recorder: the ratio says what
recording costs. Times depend on the machine.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mmulab import paths
from mmulab.conform.recording import read_recording
from mmulab.lab.bench.measure import Measure
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import Scenario
from mmulab.trace.file import open_recording, save
from mmulab.trace.recorder import Recorder
from mmulab.trace.recording import Recording
from mmulab.widgets.stepper import Stepper

T = TypeVar("T")

GUEST = "conformance/6.1.192/sh/os-64-00.jsonl.xz"


def bench_step(*, events: int = 1_000_000, visits: int = 50, seed: int = 1) -> tuple[Measure, ...]:
    """Record a run of at least so many events and visit random places of it.

    Parameters
    ----------
    events : int
    visits : int
        Places whose median counts.
    seed : int
        Chooses the places.
    """
    scenario = read_recording(paths.data(GUEST)).scenario
    recorder = Recorder(_machine(scenario))
    recorded, rounds = _time(lambda: _record(recorder, scenario, events))
    bare = _machine(scenario)
    plain, _ = _time(lambda: _run(bare, scenario, rounds))
    recording = recorder.finish()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.mmr"
        save(recording, path)
        size = path.stat().st_size
        opening, opened = _time(lambda: open_recording(path))
    choose = random.Random(seed)
    states = [_time(lambda: opened.at(choose.randrange(len(opened.events))))[0] for _ in range(visits)]
    clicks = _clicks(opened, choose, visits)
    return (
        Measure("events recorded", len(recording.events), "events"),
        Measure("run with a recorder, against one without", recorded / plain, "x"),
        Measure("recording in memory", recording.nbytes / 1e6, "MB"),
        Measure("recording as a file", size / 1e6, "MB"),
        Measure("opening the file", opening, "s"),
        Measure("state at an event, median", statistics.median(states) * 1e3, "ms"),
        Measure("stepper drawn anew, median", statistics.median(clicks) * 1e3, "ms"),
    )


def _machine(scenario: Scenario) -> Machine:
    machine = Runner(scenario).machine
    machine.emit = None
    return machine


def _run(machine: Machine, scenario: Scenario, rounds: int) -> None:
    """Go through the scenario's ops so many times, each from its registers on."""
    init = ops.SetSregs(**scenario.header.regs._asdict())
    for _ in range(rounds):
        machine.execute(init)
        for step in scenario.steps:
            machine.execute(step.op)


def _record(recorder: Recorder, scenario: Scenario, events: int) -> int:
    """Go through the ops until there are enough events; return how often."""
    rounds = 0
    while recorder.event_count < events:
        _run(recorder.machine, scenario, 1)
        rounds += 1
    return rounds


def _clicks(recording: Recording, choose: random.Random, visits: int) -> list[float]:
    """Return the seconds from a click to the widget's HTML, at random places."""
    stepper = Stepper(recording)
    return [_time(lambda: stepper.goto(choose.randrange(1, len(recording))))[0] for _ in range(visits)]


def _time(run: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result
