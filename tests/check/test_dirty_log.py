"""A log that leaves out a page that was written is found out; one that names too many is not."""

from __future__ import annotations

import pytest

from mmulab.check.dirty_log import DirtyLog
from mmulab.machine import op as ops
from mmulab.machine.op import Outcome, OutcomeKind
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.runner import Runner

SLOT, GPA = 1, 0x2000000
GFN = GPA >> 12


def log_of(flags: int = KVM_MEM_LOG_DIRTY_PAGES) -> DirtyLog:
    """Return the log of a guest whose second slot has some flags."""
    builder = ScenarioBuilder("32")
    builder.slot(0, 0, 0x800000).slot(SLOT, GPA, 0x200000, flags, 0x800000)
    return DirtyLog(Runner(builder.build()).machine)


def got(*offsets: int, result: int = 0) -> Outcome:
    return Outcome(OutcomeKind.OK, result=result, dirty=list(offsets))


def test_a_written_page_must_be_named_once() -> None:
    log = log_of()
    log.write(0, GPA + 0x3000, 0)
    log.write(0, GPA + 0x5008, 1)
    assert log.missing(ops.GetDirtyLog(SLOT), got(3, 9), 2) == [GFN + 5]
    assert log.missing(ops.GetDirtyLog(SLOT), got(), 3) == []


def test_a_log_that_could_not_be_read_owes_its_pages_still() -> None:
    log = log_of()
    log.write(0, GPA, 0)
    assert log.missing(ops.GetDirtyLog(SLOT), got(result=-2), 1) == []
    assert log.missing(ops.GetDirtyLog(SLOT), got(), 2) == [GFN]


@pytest.mark.parametrize("flags", [0, KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY])
def test_a_slot_that_logs_nothing_owes_nothing(flags: int) -> None:
    log = log_of(flags)
    log.write(0, GPA, 0)
    assert log.on == bool(flags)
    assert log.missing(ops.GetDirtyLog(SLOT), got(), 1) == []


def test_a_slot_that_is_set_anew_begins_anew() -> None:
    log = log_of()
    log.write(0, GPA, 0)
    again = ops.SetMemslot(SLOT, GPA, 0x200000, KVM_MEM_LOG_DIRTY_PAGES, 0x800000)
    assert log.missing(again, Outcome(OutcomeKind.OK), 1) == []
    assert log.missing(ops.GetDirtyLog(SLOT), got(), 2) == []
