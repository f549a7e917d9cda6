"""Coverage: new is what was not met before, and roles of one table are met in pairs."""

from __future__ import annotations

from mmulab import events as ev
from mmulab.check.coverage import Coverage
from mmulab.events import Event
from mmulab.machine import op as ops
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.scenario.runner import Result


def result(*events: Event, op: ops.Op | None = None, kind: OutcomeKind = OutcomeKind.OK) -> Result:
    return Result(0, "nop", op or ops.Nop(), Outcome(kind), list(events), {})


def page(gfn: int, role: int) -> ev.kvm_mmu_get_page:
    return ev.kvm_mmu_get_page(gfn, role, 0, 0, False, True)


def trial(coverage: Coverage, *results: Result) -> int:
    coverage.begin()
    for each in results:
        coverage.note(each)
    return coverage.end()


def test_the_same_again_is_nothing_new() -> None:
    coverage = Coverage()
    assert trial(coverage, result(page(1, 5))) > 0
    assert trial(coverage, result(page(1, 5))) == 0


def test_addresses_are_no_feature_but_roles_and_error_codes_are() -> None:
    coverage = Coverage()
    trial(coverage, result(page(1, 5), ev.kvm_page_fault(0, 0x1000, 2)))
    assert trial(coverage, result(page(2, 5), ev.kvm_page_fault(0, 0x5000, 2))) == 0
    assert trial(coverage, result(page(2, 6), ev.kvm_page_fault(0, 0x5000, 2))) > 0
    assert trial(coverage, result(page(2, 5), ev.kvm_page_fault(0, 0x5000, 7))) > 0


def test_the_op_and_its_outcome_count_beside_the_events() -> None:
    coverage = Coverage()
    trial(coverage, result(page(1, 5)))
    assert trial(coverage, result(page(1, 5), op=ops.Invlpg(0))) > 0
    assert trial(coverage, result(page(1, 5), kind=OutcomeKind.EXC)) > 0


def test_two_roles_of_one_table_in_a_trial_are_more_than_each_alone() -> None:
    coverage = Coverage()
    trial(coverage, result(page(1, 5)), result(page(2, 6)))
    assert trial(coverage, result(page(1, 5)), result(page(1, 6))) > 0
    assert trial(coverage, result(page(3, 6)), result(page(3, 5))) == 0


def test_an_event_that_repeats_is_one() -> None:
    coverage = Coverage()
    flush = ev.kvm_flush_remote_tlbs()
    trial(coverage, result(flush))
    assert trial(coverage, result(flush, flush, flush)) == 0
