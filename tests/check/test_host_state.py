"""An exit of L2's to an L1 that cannot run: nothing is said of what came of it then, and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.check.guest import plan
from mmulab.check.guests import GUESTS
from mmulab.check.oracle import Oracle, Verdict
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.vmx.vmcs12 import VMCS12
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.grammar import parse_step
from mmulab.scenario.runner import Runner

BLOCK = 0xA000
LEAVES = "wr s 4 8000201000 5"
"""L1's EPT has the page for reading alone."""


def judged(*stores: str, shut_down: bool = False) -> tuple[OutcomeKind, Verdict]:
    """Return how L2 ends at :data:`LEAVES`, where L1's VMCS is changed before, and what is said of it."""
    scenario = plan(GUESTS["nested-ept-64"]).scenario
    steps = tuple(map(parse_step, (*stores, f"vmrun {BLOCK:x}", LEAVES)))
    scenario = replace(scenario, steps=(*scenario.steps, *steps))
    runner = Runner(scenario, config=machine_config(scenario, LINUX_6_1))
    oracle = Oracle(runner.machine)
    for result in runner.results():
        if result.text == LEAVES and shut_down:
            outcome = replace(result.outcome, kind=OutcomeKind.SHUTDOWN, vmexit=None)
            result = replace(result, outcome=outcome)
        verdict = oracle.judge(result)[0]
        if result.text == LEAVES:
            return result.outcome.kind, verdict
    raise AssertionError("L2 never got there")


def store(name: str, value: int) -> str:
    offset, size, *_ = VMCS12[name]
    return f"hw {size} {BLOCK + offset:x} {value:x}"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (store("host_cr3", 0), OutcomeKind.SHUTDOWN),
        (store("host_cr3", 0x13000), OutcomeKind.SHUTDOWN),  # a table, but not the root
        (store("host_rip", 0), OutcomeKind.EXC),
    ],
)
def test_an_l1_that_cannot_run_is_told_nothing(change: str, kind: OutcomeKind) -> None:
    assert judged(change) == (kind, Verdict.UNDECIDED)


def test_an_l1_that_can_run_is_told_of_the_fault() -> None:
    assert judged() == (OutcomeKind.VMEXIT, Verdict.ALLOWED)
    assert judged(shut_down=True) == (OutcomeKind.SHUTDOWN, Verdict.WRONG)
