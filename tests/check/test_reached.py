"""Values that cross a page: each page's part goes by that page's own translation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from mmulab.check.oracle import Verdict
from mmulab.check.reached import Operand, Piece
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mmio
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Result
from tests.check.test_oracle import GVA, INVLPG, NEW, OLD, Change, builder, judged, without

LEFT, RIGHT = GVA - 0x1000, OLD
"""The page before the one that ``builder`` maps, and where that is."""
BEFORE = 0x104000
AT = GVA - 2
CROSSING_READ, CROSSING_WRITE = f"rd s 4 {AT:x}", f"wr s 4 {AT:x} 11223344"


def two_pages(flags: int = 0) -> ScenarioBuilder:
    """Return a guest with pages on both sides of :data:`GVA`, of a table each."""
    b = builder(flags=flags).map(LEFT, BEFORE)
    return b.value(4, BEFORE + 0xFFC, 0xAABBCCDD)


def shown(value: int) -> Change:
    """Let a read have another value."""

    def change(machine: Machine, result: Result) -> Result:
        return replace(result, outcome=replace(result.outcome, rax=value))

    return change


def lost(gpa: int) -> Change:
    """Let two bytes of memory be as if nothing was written there."""

    def change(machine: Machine, result: Result) -> Result:
        machine.memory.write((machine.memory.backing << 12) + gpa, 2, 0x7777)
        return result

    return change


def test_an_operand_has_a_piece_in_each_page() -> None:
    assert Operand(0x1FFC, 4).pieces == (Piece(0x1FFC, 4, 0, is_all=True),)
    assert Operand(0x1FFD, 8).pieces == (
        Piece(0x1FFD, 3, 0, is_all=False),
        Piece(0x2000, 5, 24, is_all=False),
    )


def test_a_read_sees_both_pages() -> None:
    seen = 0x001DAABB  # 16 bits of each
    assert judged(two_pages(), CROSSING_READ, changes={0: shown(seen)})[0] is Verdict.ALLOWED
    assert judged(two_pages(), CROSSING_READ)[0] is Verdict.ALLOWED
    for wrong in (seen ^ 1, seen ^ 1 << 31):
        assert judged(two_pages(), CROSSING_READ, changes={0: shown(wrong)})[0] is Verdict.WRONG


@pytest.mark.parametrize("gpa", [BEFORE + 0xFFE, RIGHT])
def test_a_write_is_in_both_pages(gpa: int) -> None:
    assert judged(two_pages(), CROSSING_WRITE)[0] is Verdict.ALLOWED
    assert judged(two_pages(), CROSSING_WRITE, changes={0: lost(gpa)})[0] is Verdict.WRONG


def test_the_second_page_may_be_remembered_until_it_is_flushed() -> None:
    """The first one never changes, and its part of the value neither."""
    edit = f"wr s 4 50000000 {NEW | 0x67:x}"
    stale: Mapping[int, Change] = {2: shown(0x001DAABB), 4: shown(0x001DAABB)}
    found = judged(two_pages(), CROSSING_READ, edit, CROSSING_READ, INVLPG, CROSSING_READ, changes=stale)
    assert [found[2], found[4]] == [Verdict.ALLOWED, Verdict.WRONG]


def test_a_fault_of_either_page_is_right() -> None:
    right = builder()
    assert judged(right, CROSSING_READ)[0] is Verdict.ALLOWED  # the first is not there
    assert judged(two_pages(), f"rd s 4 {GVA + 0xFFE:x}")[0] is Verdict.ALLOWED  # nor the second


def test_a_device_has_its_part() -> None:
    """What lies in no slot is the VMM's, and what lies in one is memory."""
    device = two_pages().map(LEFT, 0x3000000)
    assert judged(device, CROSSING_WRITE)[0] is Verdict.ALLOWED

    def unasked(machine: Machine, result: Result) -> Result:
        return replace(result, outcome=replace(result.outcome, mmio=None))

    def elsewhere(machine: Machine, result: Result) -> Result:
        mmio = [Mmio(write=True, gpa=0x3000000, size=2, value=0x3344)]
        return replace(result, outcome=replace(result.outcome, mmio=mmio))

    for change in (unasked, elsewhere):
        device = two_pages().map(LEFT, 0x3000000)
        assert judged(device, CROSSING_WRITE, changes={0: change})[0] is Verdict.WRONG


@pytest.mark.parametrize("gpa", [BEFORE, RIGHT])
def test_a_dirty_log_names_both_pages(gpa: int) -> None:
    steps = (CROSSING_WRITE, "getdirty 0")
    logged = KVM_MEM_LOG_DIRTY_PAGES
    assert Verdict.WRONG not in judged(two_pages(logged), *steps)
    assert judged(two_pages(logged), *steps, changes={1: without(gpa >> 12)})[1] is Verdict.WRONG
