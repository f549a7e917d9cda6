"""Sync policies on the same work."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.kvm.sync.oos_2008 import Oos2008, oos_2008
from mmulab.kvm.sync.unsync_children import unsync_children
from mmulab.kvm.sync.write_protect import write_protect
from mmulab.lab.cases.works import find_works
from mmulab.lab.sync.compare import compare_syncs

THREE = (unsync_children, write_protect, oos_2008)


def test_on_a_boot_all_agree_and_each_costs_something_else() -> None:
    cells = compare_syncs(THREE, find_works(["stream/boot-amd64-4l"], records=60_000))
    assert [cell.verdict for cell in cells] == ["correct"] * 3
    assert len({cell.judged for cell in cells}) == 1
    merged, protected, old = (cell.counts for cell in cells)
    assert merged.unsyncs > 0 == protected.unsyncs
    assert merged.emulated_writes <= old.emulated_writes <= protected.emulated_writes
    assert merged.cr3_writes == protected.cr3_writes == protected.idle_cr3_writes
    assert merged.peak_bytes > old.peak_bytes > protected.peak_bytes == 0
    assert {*merged.refused} == {"upper_level"}
    assert cells[0].record()["counts"]["policy"] == "unsync_children"


def test_a_recording_is_right_as_recorded_or_as_the_tables_say() -> None:
    """In ``pt-write-unsync-64`` the real guest reads through an entry that it has cleared."""
    works = find_works(["conformance/6.1.192/sh/pt-write-unsync-64", "conformance/6.1.192/sh/dirtylog-32"])
    cells = compare_syncs(THREE, works)
    assert [cell.wrong for cell in cells] == [None] * 6
    assert cells[0].judged == cells[0].ops


def test_policies_are_named_once() -> None:
    with pytest.raises(InputError, match=r"oos_2008\+index=lru' is there 2 times"):
        compare_syncs(["oos_2008+index=lru", Oos2008(index="lru")], [])
