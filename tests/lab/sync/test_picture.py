"""The guest of the pictures: three tables written, whichever policy looks on."""

from __future__ import annotations

import pytest

from mmulab.kvm.sync.find import find_sync
from mmulab.lab.sync.picture import drawn, stopped, writes_tables
from mmulab.scenario.runner import run


@pytest.mark.parametrize(
    ("policy", "counts"), [("write_protect", (3, 0)), ("oos_2008", (0, 3)), ("unsync_children", (0, 3))]
)
def test_three_writes_are_emulated_or_let_through(policy: str, counts: tuple[int, int]) -> None:
    stat = stopped(find_sync(policy)).kvm.sync_stat
    assert (stat["emulated_writes"], stat["unsyncs"]) == counts
    assert stat["syncs"] == 0, "it stops before anything flushes"
    assert policy in drawn(find_sync(policy)).title


def test_the_guest_sees_no_fault_of_its_own() -> None:
    assert all(result.outcome.vector is None for result in run(writes_tables()))
