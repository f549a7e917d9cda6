"""What a command runs that takes FILE: a scenario, a recording's, or a case by its name."""

from __future__ import annotations

import os
from pathlib import Path

from mmulab.cli.options import KernelChoice
from mmulab.conform.recording import SUFFIXES, read_recording
from mmulab.errors import InputError, named, near
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.cases.table import read_case, scenario_of
from mmulab.lab.cases.works import find_works
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.scenario import Scenario
from mmulab.scenario.text import read_scenario


def on_kernel(scenario: Scenario, choice: KernelChoice) -> Scenario:
    """Return a scenario whose header names the kernel that was asked for, so that what is kept says so."""
    if choice.kernel is None or choice.is_own:
        return scenario
    return ScenarioBuilder.of(scenario).kernel(find_kernel(choice.kernel).name).build()


def read_work(file: str) -> Scenario:
    """Return the scenario that `file` names.

    Raises
    ------
    InputError
        It is neither a file that can be read nor the name of a case.
    """
    if file.endswith(SUFFIXES):
        return read_recording(Path(file)).scenario
    if not file or os.path.lexists(file):
        return read_scenario(file)
    known = {case.name: case for case in find_works(["*", "sync/*", "conformance/*", "workload/*"])}
    if file in known:
        return scenario_of(read_case(known[file]))
    hint = near(file, known)
    raise InputError(f"{named(file)}: neither a file nor a case; {hint}'mmulab cases' lists the cases")
