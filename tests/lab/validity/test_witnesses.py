"""Witnesses of role validity: what their sequences really do."""

from __future__ import annotations

import pytest

from mmulab.kvm.validity import VALIDITIES
from mmulab.lab.validity.witness_run import run_witness
from mmulab.lab.validity.witnesses import HIGH, NARROW, WIDE, witnesses
from mmulab.machine import op as ops
from mmulab.scenario.text import format_scenario, parse_scenario


@pytest.mark.parametrize("name", witnesses())
def test_a_witness_is_a_scenario_that_can_be_written_down(name: str) -> None:
    scenario = witnesses()[name].build()
    again = parse_scenario(format_scenario(scenario), scenario.source)
    assert again.header == scenario.header
    assert [step.op for step in again.steps] == [step.op for step in scenario.steps]
    assert any(isinstance(step.op, ops.SetCpuid) for step in scenario.steps)


@pytest.mark.parametrize("name", witnesses())
def test_linux_6_1_would_refuse_exactly_those_that_need_another_rule(name: str) -> None:
    witness = witnesses()[name]
    run = run_witness(witness._replace(cpuid_after_run="refuse"), VALIDITIES["valid"])
    outcomes = [step.outcome for step in run.steps if isinstance(step.op, ops.SetCpuid)]
    assert outcomes[0] == ("host ret=-22 EINVAL" if witness.cpuid_after_run == "allow" else "host ret=0")


def test_the_bit_in_question_lies_between_the_widths() -> None:
    assert HIGH >> NARROW
    assert not HIGH >> WIDE
