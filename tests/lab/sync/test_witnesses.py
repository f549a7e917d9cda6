"""Where the design of 2008 is wrong, and which of its variations is not."""

from __future__ import annotations

import pytest

from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm
from mmulab.kvm.sync.oos_2008 import Oos2008, oos_2008
from mmulab.kvm.sync.unsync_children import unsync_children
from mmulab.kvm.sync.write_protect import write_protect
from mmulab.lab.cases.table import Case
from mmulab.lab.cases.works import find_works
from mmulab.lab.sync.compare import run_policy
from mmulab.lab.sync.witnesses import RECORDED, RECORDED_MORE, witnesses
from mmulab.scenario.text import format_scenario

WITNESSES = {case.name: case for case in witnesses()}


@pytest.mark.parametrize("case", WITNESSES.values(), ids=WITNESSES)
def test_only_the_design_of_2008_is_wrong_and_only_in_the_last_access(case: Case) -> None:
    assert run_policy(unsync_children, case).wrong is None
    assert run_policy(write_protect, case).wrong is None
    wrong = run_policy(oos_2008, case).wrong
    assert wrong is not None
    assert case.scenario is not None
    assert wrong.op == len(case.scenario().steps) - 1
    assert wrong.expected == 0x302000
    assert wrong.reached in (0x100000, 0x300000)
    assert case.note


def test_moving_a_page_mends_the_one_that_lost_its_flag() -> None:
    moving = Oos2008(on_change="move")
    verdicts = {name: run_policy(moving, case).wrong is None for name, case in WITNESSES.items()}
    assert verdicts == {name: name.startswith("sync/global-lost") for name in WITNESSES}


def test_a_witness_is_a_scenario_that_can_be_written_down() -> None:
    for case in WITNESSES.values():
        assert case.scenario is not None
        assert "wr s 4" in format_scenario(case.scenario())


@pytest.mark.parametrize(
    ("folder", "name", "op"),
    [
        *(("conformance", name, op) for name, op in RECORDED.items()),
        *(("conformance-more", name, op) for name, op in RECORDED_MORE.items()),
    ],
)
def test_recordings_that_the_design_of_2008_gets_wrong(folder: str, name: str, op: int) -> None:
    (work,) = find_works([f"{folder}/6.1.192/{name}"])
    cell = run_policy(oos_2008, work)
    assert cell.wrong is not None
    assert cell.wrong.op == op
    assert cell.case.note == "I'm worried about the complexity this (and the rest) introduces."
    assert run_policy(write_protect, work).wrong is None


def test_they_are_wrong_because_a_roots_role_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_role(self: Oos2008, kvm: Kvm, gfn: int) -> ShadowPage | None:
        root = kvm.pages[kvm.vcpus[kvm.running_vcpu].mmu.root_hpa >> 12]
        return root if root.gfn == gfn else None

    monkeypatch.setattr(Oos2008, "_lookup_page_root", by_role)
    (work,) = find_works(["conformance/6.1.192/sh/fuzz-64-mix-16"])
    assert run_policy(oos_2008, work).wrong is None
