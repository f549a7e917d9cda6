"""What Bochs does otherwise than a processor is not in a recording."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.events import Event
from mmulab.record.bochs_trace import as_of_a_processor

FAULT = ev.kvm_exit("pf", 0x1800, error_code=0, address=0x40000000)
TRAP, LAST = ev.kvm_exit("db", 0x1800), ev.kvm_exit("db", 0x1802)
NESTED = ev.kvm_nested_vmexit("db", 0x4000, 0, 0x80000301, 0)
OK = {"out": "ok"}


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        ([ev.kvm_mmu_load(), TRAP, FAULT, LAST], [ev.kvm_mmu_load(), FAULT, LAST]),
        ([TRAP, NESTED, TRAP, NESTED, LAST, NESTED], [LAST, NESTED]),
        ([TRAP, FAULT, NESTED], [FAULT, NESTED]),
        ([TRAP, LAST], [LAST]),
        ([LAST], [LAST]),
    ],
)
def test_a_trap_after_which_the_op_went_on_is_left_out(events: list[Event], kept: list[Event]) -> None:
    assert as_of_a_processor(events, OK) == (kept, OK)


def violation(qualification: int) -> list[Event]:
    return [
        ev.kvm_exit("ept_violation", 0x1800, qualification=qualification),
        ev.kvm_nested_vmexit("ept_violation", qualification, 0),
        ev.kvm_page_fault(0x1800, 0x10000, qualification),
        ev.kvm_mmu_pagetable_walk(0x10000, 2 | (qualification & 1) << 2),
        ev.kvm_mmu_paging_element(0x20007, 4),
        ev.kvm_mmu_walker_error(2 | (qualification & 1) << 2),
        ev.kvm_nested_vmexit_inject("ept_violation", qualification, 0),
    ]


def test_a_walk_under_ept_ad_reads_and_writes() -> None:
    told = {"out": "vmexit", "reason": "0x30", "qual": "0x82", "gpa": "0x10000"}
    events, outcome = as_of_a_processor(violation(0x82), told)
    assert events == violation(0x83)
    assert outcome == {**told, "qual": "0x83"}


@pytest.mark.parametrize("qualification", [0x81, 0x83, 0x182, 0x1AA, 0x184, 0x2])
def test_other_violations_stay(qualification: int) -> None:
    told = {"out": "vmexit", "qual": hex(qualification)}
    assert as_of_a_processor(violation(qualification), told) == (violation(qualification), told)


def test_what_follows_another_exit_is_no_part_of_the_walk() -> None:
    events = [*violation(0x82), FAULT, ev.kvm_page_fault(0x1800, 0, 2)]
    kept, _ = as_of_a_processor(events, OK)
    assert kept[-2:] == [FAULT, ev.kvm_page_fault(0x1800, 0, 2)]
