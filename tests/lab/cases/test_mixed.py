"""The mixed cases do what they say: each mode is entered, each rule bites, nothing stale is judged."""

from __future__ import annotations

import pytest

from mmulab.lab.cases.build import LOWER, MOVED, UPPER
from mmulab.lab.cases.mixed import (
    TURN,
    mixed_access,
    mixed_direct,
    mixed_halves,
    mixed_modes,
    mixed_npt_modes,
    mixed_npt_nx,
    mixed_rights,
)
from mmulab.lab.cases.run import CaseRun, run_case, runner_of
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.scenario import Scenario
from mmulab.x86.mode import paging_mode
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_PRESENT_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK

P, W, U, F = PFERR_PRESENT_MASK, PFERR_WRITE_MASK, PFERR_USER_MASK, PFERR_FETCH_MASK


def right(scenario: Scenario) -> CaseRun:
    run = run_case(scenario)
    assert run.wrong is None
    return run


def faults(run: CaseRun) -> list[int | None]:
    return [r.outcome.error_code for r in run.results if r.outcome.kind is OutcomeKind.EXC]


@pytest.mark.parametrize("mode", ["32", "pae", "64"])
def test_each_rule_ends_in_its_fault(mode: str) -> None:
    assert faults(right(mixed_rights(mode, wp=True))) == [P | W]
    assert faults(right(mixed_rights(mode, smep=True))) == [P | F]
    assert faults(right(mixed_rights(mode, smap=True))) == [P]


@pytest.mark.parametrize("mode", ["32", "pae", "64"])
def test_rights_are_those_of_the_way(mode: str) -> None:
    assert faults(right(mixed_access(mode))) == [P | W, P | U, P | W | U]


def test_both_halves_are_looked_at_again() -> None:
    read = [r.outcome.hpa for r in right(mixed_halves()).results[1:]]
    assert read[1] == read[3] != read[0] & ~0xFFF
    assert read[0] == read[2]


def test_the_directory_at_0_is_direct_and_not() -> None:
    run = right(mixed_direct())
    assert run.results[1].outcome.rax == 0xC0DE0000 | LOWER >> 12
    facts = run.machine.kvm.config.kernel.design.facts
    at_0 = {(facts(s.role).direct, facts(s.role).level) for s in run.machine.kvm.pages.values() if s.gfn == 0}
    assert {(False, 2), (True, 2)} <= at_0


def test_a_bit_of_the_npt_is_reserved_while_efer_nx_is_0() -> None:
    exits = [r.outcome.vmexit for r in right(mixed_npt_nx(4)).results if r.outcome.vmexit]
    npf = [found for found in exits if found["code"] == 0x400]
    assert [found["info1"] for found in npf] == [0x1_0000_000D], "P, RSVD and U, at the final address"


@pytest.mark.parametrize(
    "scenario", [mixed_modes(4, nested=False), mixed_modes(5, nested=True), mixed_npt_modes(5)]
)
def test_modes_are_entered_in_turn(scenario: Scenario) -> None:
    runner = runner_of(scenario, "passthrough")
    seen = []
    for result in runner.results():
        vcpu = runner.machine.kvm.vcpus[0]
        mode = paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer).name
        if result.text.startswith(("rd s", "wr s")) and not vcpu.guest_mode and seen[-1:] != [mode]:
            seen.append(mode)
    own = [{"32": "32", "pae": "pae", "64": "4level"}[mode] for mode in TURN]
    assert seen == own


def test_the_shared_entry_moves_in_each_mode() -> None:
    run = right(mixed_modes(4, nested=False))
    read = {r.outcome.rax for r in run.results if r.text in ("rd s 4 8000", "rd s 4 40004000")}
    assert read == {0xC0DE0000 | page >> 12 for page in (LOWER, UPPER, MOVED)}
