"""The cases of flushes are right, and wrong where what they are about is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.check.control_block import TLB_CONTROL_FLUSH_ALL_ASID, VMCB_TLB_CONTROL
from mmulab.events import kvm_mmu_get_page
from mmulab.kvm.svm import nested as svm_nested
from mmulab.lab.cases.build import GVA_UPPER, LOWER, MOVED, NPT_ROOT, UPPER, VMCB_GPA
from mmulab.lab.cases.flush import (
    OTHER_ROOT,
    ept_dirty_log,
    ept_roots,
    npt_dirty_log,
    npt_flush,
)
from mmulab.lab.cases.run import CaseRun, run_case
from mmulab.machine import op as ops
from mmulab.scenario.scenario import Scenario


def read_at(run: CaseRun, gva: int) -> list[int]:
    """What L2 read there, page by page: each page holds its own number."""
    return [
        (r.outcome.rax & 0xFFFF) << 12 for r in run.results if isinstance(r.op, ops.Read) and r.op.gva == gva
    ]


def without(scenario: Scenario, kind: type[ops.Op]) -> Scenario:
    return replace(scenario, steps=tuple(step for step in scenario.steps if not isinstance(step.op, kind)))


@pytest.mark.parametrize("kind", ["asid", "tlb-control"])
@pytest.mark.parametrize("l1", ["32", "pae", "64", "57"])
def test_l2_sees_the_moved_page_after_the_flush(l1: str, kind: str) -> None:
    run = run_case(npt_flush(l1, 5, kind))
    assert run.wrong is None
    assert read_at(run, GVA_UPPER) == [UPPER, MOVED]


@pytest.mark.parametrize(("kind", "value"), [("asid", 2), ("tlb-control", TLB_CONTROL_FLUSH_ALL_ASID)])
def test_l1_asks_for_the_flush_in_its_vmcb(kind: str, value: int) -> None:
    run = run_case(npt_flush("64", 4, kind))
    memory = run.machine.memory
    at = svm_nested.VMCB["asid"][0] if kind == "asid" else VMCB_TLB_CONTROL
    assert memory.read((memory.backing << 12) + VMCB_GPA + at, 4) == value


def test_a_vmrun_that_syncs_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm_nested, "_transition_tlb_flush", lambda vcpu: None)
    wrong = run_case(npt_flush("64", 4, "asid")).wrong
    assert wrong is not None
    assert (wrong.text, wrong.expected, wrong.reached) == (f"rd s 4 {GVA_UPPER:x}", MOVED, UPPER)


@pytest.mark.parametrize(("l0", "levels"), [(4, 4), (5, 4), (5, 5)])
@pytest.mark.parametrize("ad", [True, False])
def test_each_ept_pointer_leads_to_its_own_pages(l0: int, levels: int, ad: bool) -> None:
    run = run_case(ept_roots(l0, levels, ad=ad))
    assert run.wrong is None
    assert read_at(run, GVA_UPPER) == [UPPER, LOWER, UPPER, MOVED, UPPER]


def test_roots_are_kept_until_invept_names_them() -> None:
    """Going back finds the old root; the one that INVEPT named is looked up again, and synced."""
    run = run_case(ept_roots(4, 4, ad=True))
    facts = run.machine.kvm.config.kernel.design.facts
    looked = [
        (e.gfn << 12, e.created)
        for e in run.events
        if isinstance(e, kvm_mmu_get_page) and facts(e.role).level == 4 and e.gfn << 12 >= NPT_ROOT
    ]
    assert looked == [(NPT_ROOT, True), (OTHER_ROOT, True), (OTHER_ROOT, False)]


def test_without_invept_the_old_translation_stays() -> None:
    """The processor may still have the entry, so that is right; the case needs INVEPT to see another page."""
    run = run_case(without(ept_roots(4, 4, ad=True), ops.Invept))
    assert run.wrong is None
    assert read_at(run, GVA_UPPER)[3] == LOWER


LOGGED = [
    npt_dirty_log("32", 4),
    npt_dirty_log("57", 5),
    ept_dirty_log(4, 4, ad=False),
    ept_dirty_log(5, 5, ad=True),
]


@pytest.mark.parametrize("scenario", LOGGED, ids=["npt-32", "npt-57", "ept-noad", "ept-5-ad"])
def test_logs_name_what_l2_wrote_since_the_last_one(scenario: Scenario) -> None:
    run = run_case(scenario)
    assert run.wrong is None
    logs = [r.outcome.dirty for r in run.results if isinstance(r.op, ops.GetDirtyLog)]
    lower, upper = LOWER >> 12, UPPER >> 12
    assert logs == [[lower, upper], [lower], [lower, upper]]


def test_a_page_that_a_log_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmulab.machine import machine

    get = machine.kvm_get_dirty_log
    wrong_log = [UPPER >> 12]
    monkeypatch.setattr(machine, "kvm_get_dirty_log", lambda *slot: (get(*slot)[0], wrong_log))
    wrong = run_case(npt_dirty_log("64", 4)).wrong
    assert wrong is not None
    assert (wrong.text, wrong.wanted) == ("getdirty 0", f"in the log: gfn {LOWER >> 12:x}")
