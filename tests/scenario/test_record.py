"""Recordings of scenarios: every step is found again among the ops."""

from __future__ import annotations

from mmulab import paths
from mmulab.conform.recording import read_recording
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.cases.build import la57_switch_nested
from mmulab.machine import op as ops
from mmulab.scenario.record import record, record_steps


def test_steps_are_found_among_the_ops_of_a_nested_guest() -> None:
    """VMRUN puts a HostWrite before itself, so steps and ops do not count alike."""
    scenario = la57_switch_nested("64", 5)
    recording, numbers = record_steps(scenario, kernel=LINUX_6_1.with_(design=DESIGNS["pre_fix"]))
    assert recording.config.kernel.design.name == "pre_fix"
    assert [recording.op(numbers[index]) for index in range(len(scenario.steps))] == [
        step.op for step in scenario.steps
    ]
    assert isinstance(recording.op(numbers[len(scenario.steps)]), ops.Teardown)
    assert len(recording.ops) > len(numbers)


def test_steps_behind_helper_instructions() -> None:
    """In PAE paging a sysexit goes before a user's access, under the same index."""
    scenario = read_recording(paths.data("conformance/6.1.192/sh/mode-switch.jsonl.xz")).scenario
    recording, numbers = record_steps(scenario)
    shown = {index: recording.op(number) for index, number in numbers.items()}
    steps = {index: step.op for index, step in enumerate(scenario.steps) if index in shown}
    assert len(steps) > 10
    assert {index: shown[index] for index in steps} == steps
    assert list(recording.events) == list(record(scenario).events)
