"""From one way of paging to another: the guest runs on, in whatever order the registers change."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from mmulab.check.alphabet import Alphabet
from mmulab.check.guest import CONTROL_BLOCKS, plan
from mmulab.check.guests import GUESTS
from mmulab.check.paging_switch import switch_ops
from mmulab.kvm.state import Vcpu
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, OutcomeKind
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import Regs
from mmulab.scenario.tables import mode_of

SWITCHING = [name for name, guest in GUESTS.items() if guest.modes and guest.vendor != "intel"] + [
    "intel-shadow-modes",
    "ept-modes",
]


def paging_of(vcpu: Vcpu) -> str:
    return mode_of(Regs(vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer)).name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SWITCHING)
def test_each_way_of_paging_is_reached_and_its_addresses_lead_somewhere(name: str, seed: int) -> None:
    made, rng = plan(GUESTS[name]), Random(seed)
    for regs in (*made.modes, made.regs):
        builder = ScenarioBuilder.of(made.scenario)
        (area,) = (a for a in made.areas if a.mode is mode_of(regs) and a.name == "L1")
        for op in switch_ops(rng, made.modes[-1]) + switch_ops(rng, regs):
            builder.op(op)
        builder.op(ops.Read(Mode.SUPERVISOR, 4, area.addresses[0]))
        runner = Runner(builder.build())
        kinds = {result.outcome.kind for result in runner.results()}
        assert kinds == {OutcomeKind.OK, OutcomeKind.HOST}  # init and teardown are the host's
        assert paging_of(runner.machine.kvm.vcpus[0]) == mode_of(regs).name


def test_l2_goes_to_the_paging_of_l1s_other_guest() -> None:
    made = plan(GUESTS["nested-ept-modes"])
    builder = ScenarioBuilder.of(made.scenario).op(ops.Vmrun(CONTROL_BLOCKS[0]))
    for op in switch_ops(Random(0), made.l2_regs[1], efer=False):
        builder.op(op)
    runner, met = Runner(builder.build()), []
    for _ in runner.results():
        vcpu = runner.machine.kvm.vcpus[0]
        met.append((bool(vcpu.guest_mode), paging_of(vcpu)))
    assert [mode for inside, mode in dict.fromkeys(met) if inside] == ["pae", "nonpaging", "32"]


@pytest.mark.parametrize("name", ["shadow-modes", "nested-npt-modes"])
def test_the_phrase_looks_in_the_other_way_of_paging(name: str) -> None:
    made = plan(GUESTS[name])
    alphabet = Alphabet(made, Random(1))
    steps = [step for _ in range(30) for step in alphabet.paging()]
    runner, looked = Runner(replace(made.scenario, steps=(*made.scenario.steps, *steps))), set()
    for result in runner.results():
        if isinstance(result.op, ops.Read) and result.outcome.kind is OutcomeKind.OK:
            looked.add(paging_of(runner.machine.kvm.vcpus[0]))
    assert {"4level", "pae"} <= looked
