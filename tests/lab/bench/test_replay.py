"""The replay's speed: what is measured is a replay that agrees; no figure is tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.lab.bench.replay import bench_replay
from tests.workload.streams import PAGE, Guest


def test_both_lines_are_there_and_relate_to_the_walk(tmp_path: Path) -> None:
    guest = Guest("4level")
    for page in range(0x40, 0x80):
        guest.read(page << 12, page << 12)
        guest.set_entry(page << 12, page << 12 | PAGE)
    walk, replay = bench_replay(guest.save(tmp_path), repeat=2)
    assert walk.name == "batch walk of a stream's accesses"
    assert replay.name == "replay of small"
    assert walk.ratio == 1
    assert replay.ratio == pytest.approx(walk.per_second / replay.per_second)
    assert replay.per_second > 0


def test_a_replay_that_goes_wrong_is_no_measurement(tmp_path: Path) -> None:
    guest = Guest("32")
    record = guest.read(0x60000, 0x61000)
    with pytest.raises(RuntimeError, match=f"record {record}: KVM's handling of its fault"):
        bench_replay(guest.save(tmp_path), repeat=1)
