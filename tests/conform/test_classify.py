"""Two ops: in what they differ, by kind, in words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given

from mmulab import events as ev
from mmulab.conform.classify import Delta, How, Kind, classify
from mmulab.conform.compare import Level
from mmulab.conform.recording import TEARDOWN, RecordedOp
from tests.conform.test_align import FLUSH, LOAD, lists, requested

AMD = ("amd", "amd")


def op(*events: ev.Event, stats: dict[str, int] | None = None, **outcome: Any) -> RecordedOp:
    return RecordedOp(2, 0, "nop", {"out": "ok", "rip": 0x1801, **outcome}, events, stats or {})


def kinds(ours: RecordedOp | None, theirs: RecordedOp | None, level: Level = Level.FULL) -> list[str]:
    return [str(kind) for delta in classify(ours, theirs, level, AMD) for kind in delta.kinds]


@given(lists)
def test_an_op_does_not_differ_from_itself(events: list[ev.Event]) -> None:
    assert classify(op(*events), op(*events), Level.FULL, AMD) == []


@given(lists, lists)
def test_exchanged_sides_exchange_missing_and_added(ours: list[ev.Event], theirs: list[ev.Event]) -> None:
    other = {How.MISSING: How.ADDED, How.ADDED: How.MISSING}
    there = [k for d in classify(op(*ours), op(*theirs), Level.FULL, AMD) for k in d.kinds]
    back = [k for d in classify(op(*theirs), op(*ours), Level.FULL, AMD) for k in d.kinds]
    assert Counter(k._replace(how=other.get(k.how, k.how)) for k in there) == Counter(back)
    assert bool(there) == (list(map(repr, ours)) != list(map(repr, theirs)))


def test_a_flush_of_a_range_is_added() -> None:
    added = ev.kvm_flush_remote_tlbs_with_address(0x800, 1)
    (delta,) = classify(op(FLUSH), op(added, FLUSH), Level.FULL, AMD)
    assert delta == Delta((Kind("c_flush_range", How.ADDED),), "", "c_flush_range gfn=800 n=1")
    assert delta.lines == ["+ c_flush_range gfn=800 n=1"]


def test_an_event_that_moved_is_said_once() -> None:
    (delta,) = classify(op(FLUSH, LOAD, requested(1)), op(LOAD, requested(1), FLUSH), Level.FULL, AMD)
    assert delta.kinds == (Kind("c_flush", How.MOVED),)
    assert delta.lines == ["~ c_flush"]


def test_each_other_field_is_a_kind() -> None:
    (delta,) = classify(op(requested(1, 2, 1)), op(requested(1, 3, 2)), Level.FULL, AMD)
    assert [str(kind) for kind in delta.kinds] == ["spte_req f other", "spte_req l other"]
    assert delta.lines == ["- spte_req gfn=1 f=2 l=1", "+ spte_req gfn=1 f=3 l=2"]
    narrowed = delta.only(lambda kind: kind.field == "l")
    assert [str(kind) for kind in narrowed.kinds] == ["spte_req l other"]


def test_a_role_is_one_field_although_it_is_spelled_out_too() -> None:
    page = ev.kvm_mmu_get_page(1, 0x20712, 0, 0, False, True)
    assert kinds(op(page), op(page._replace(role=0x20711))) == ["get_page role other"]


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"rip": 5}, ["outcome rip other"]),
        ({"rax": 5}, ["outcome rax other"]),
        ({"out": "exc", "vec": 14, "rip": 7}, ["outcome out other"]),
    ],
)
def test_outcomes_differ_by_key_and_by_name_first(theirs: dict[str, Any], expected: list[str]) -> None:
    for level in Level:
        assert kinds(op(), op(**theirs), level) == expected


def test_statistics_differ_by_name_but_not_of_a_vm_that_is_gone() -> None:
    one, other = op(stats={"pf_taken": 1, "exits": 3}), op(stats={"pf_taken": 2, "mmu_unsync": 1})
    assert kinds(one, other) == ["statistic pf_taken other", "statistic mmu_unsync other"]
    assert kinds(one, other, Level.MMU) == []
    (delta, _) = classify(one, other, Level.FULL, AMD)
    assert delta.lines == ["- statistic pf_taken +1", "+ statistic pf_taken +2"]
    gone = [dataclasses.replace(side, text=TEARDOWN) for side in (one, other)]
    assert kinds(*gone) == []


def test_each_level_sees_its_events_alone() -> None:
    one, other = op(requested(1), LOAD), op(requested(2))
    assert kinds(one, other, Level.OUTCOME) == []
    assert kinds(one, other, Level.MMU) == ["spte_req gfn other"]
    assert kinds(one, other) == ["spte_req gfn other", "c_load missing"]


def test_an_op_that_one_side_lacks() -> None:
    assert kinds(op(), None) == ["op missing"]
    assert kinds(None, op()) == ["op added"]
    assert classify(op(), None, Level.MMU, AMD)[0].lines == ["- op ok rip=1801"]
