"""Views of sync policies: a wrong cell opens where its table went out of sync, a page where it came back."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mmulab.check.access import WrongAccess
from mmulab.events import kvm_mmu_sync_page, kvm_mmu_unsync_page
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.sync.oos_2008 import Oos2008, oos_2008
from mmulab.kvm.sync.unsync_children import unsync_children
from mmulab.kvm.sync.write_protect import write_protect
from mmulab.lab.cases.works import find_works
from mmulab.lab.sync.compare import SyncCell, run_policy
from mmulab.lab.sync.questions import answers, find_variations
from mmulab.lab.sync.view import (
    broken,
    record_work,
    record_wrong,
    resynced,
    resyncs,
    sync_matrix,
    with_witnesses,
    wrong_table,
)

POLICIES = (write_protect, oos_2008, unsync_children)


@pytest.fixture(scope="module")
def cells() -> list[SyncCell]:
    return with_witnesses(POLICIES, [])


def test_the_table_has_each_wrong_access_with_its_sentence(cells: list[SyncCell]) -> None:
    rows = wrong_table(cells).rows
    assert {row[1] for row in rows} == {"oos_2008"}
    assert len(rows) == len(cells) // 3
    assert all(row[4] == "0x302000" for row in rows)
    assert all(row[-1] for row in rows)


def test_a_wrong_cell_opens_where_its_table_went_out_of_sync(cells: list[SyncCell]) -> None:
    matrix = sync_matrix(cells)
    assert {column for _, column in matrix.wrong} == {1}
    assert len(matrix.wrong) == len(matrix.rows)
    for place in matrix.wrong:
        matrix.open(*place)
        assert matrix.rows[place[0]].name in matrix.view.children[0].value
    cell = next(cell for cell in cells if cell.case.name == "sync/second-parent-64" and cell.wrong)
    told = record_wrong(cell)
    first, last = told.moments[0], told.moments[-1]
    event = told.recording.events[told.recording.moment(first[0]).event or 0]
    assert isinstance(event, kvm_mmu_unsync_page)
    assert first[1] == f"op 2: table {event.gfn:#x} goes out of sync"
    assert last[1].startswith("op 6 'rd s 4 40200000' has ended")
    assert "expected gpa 0x302000; reached gpa 0x100000" in matrix.html()


def test_work_that_went_wrong_is_shown_with_the_witnesses() -> None:
    works = find_works(["workload/context-switches/64/shadow", "sync/two-modes-pae"])
    more = [run_policy(oos_2008, case) for case in works]
    names = [cell.case.name for cell in with_witnesses([oos_2008], more)]
    assert "workload/context-switches/64/shadow" not in names
    assert names.count("sync/two-modes-pae") == 2


def test_what_is_correct_cannot_be_opened(cells: list[SyncCell]) -> None:
    with pytest.raises(ValueError, match="is correct under write_protect"):
        record_wrong(cells[0])


def test_a_failure_inside_an_op_is_shown_before_it() -> None:
    """``inuse=freed`` frees a page under a lookup's hands, so the op never ends."""
    (case,) = find_works(["conformance/6.1.192/sh/fuzz-32-mix-00"])
    cell = run_policy(Oos2008(inuse="freed"), case)
    assert cell.wrong is not None
    ((number, title),) = record_wrong(cell).moments
    assert title == f"before op {cell.wrong.op:,} '{cell.wrong.text}', in which the MMU fails"
    assert number > 0
    found = broken(answers(find_variations("inuse"), [case]))
    assert [row[:2] for row in found.rows] == [("inuse=freed", "fuzz-32-mix-00")]
    assert "in which the MMU fails" in found.html()


def test_resynced_pages_are_the_sync_events_and_open_there() -> None:
    (case,) = find_works(["workload/context-switches/64/shadow"])
    places = resynced(unsync_children, case, most=3)
    assert len(places.rows) == 3
    first = resyncs(record_work(case, LINUX_6_1), 3)
    assert [row[2] for row in places.rows] == [f"{one.gfn:#x}" for one in first]
    places.open(0)
    number = places.rows[0][0]
    assert re.fullmatch(r"op \d+(, helper)?", number)
    assert number in places.view.children[0].value
    assert places.html().count('class="view"') == 3


def test_entries_of_a_resync_are_what_the_run_counts() -> None:
    """Text patching uses no INVLPG, so that each entry is one of a page that came back."""
    (case,) = find_works(["workload/text-patching/64/shadow"])
    cell = run_policy(unsync_children, case)
    recording = record_work(case, LINUX_6_1)
    found = resyncs(recording)
    assert sum(one.entries for one in found) == cell.counts.entries
    assert len(found) == cell.counts.syncs
    events = [recording.events[recording.moment(one.moment).event or 0] for one in found]
    assert all(isinstance(event, kvm_mmu_sync_page) for event in events)


def test_a_boot_can_be_looked_at_too() -> None:
    (case,) = find_works(["stream/boot-amd64-4l"], records=9000)
    wrong = WrongAccess(8999, "rd 0", 0, None, "made up", gva=None)
    cell = run_policy(oos_2008, case)
    assert cell.wrong is None
    told = record_wrong(replace(cell, wrong=wrong))
    assert told.moments[-1][1].startswith("record 8,999 'rd 0' has ended")
