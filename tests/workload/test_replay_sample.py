"""Samples of a replay: they add up to what the replay itself reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmulab.workload.replay import Replay
from mmulab.workload.replay_sample import FAULT_CLASSES, Sampler
from mmulab.workload.stream import load_stream
from tests.workload.streams import PAGE, TABLE, Guest

DATA = Path(__file__).resolve().parents[2] / "data" / "stream"


def test_samples_of_a_real_boot() -> None:
    stream = load_stream(DATA / "boot-686-nonpae.npz")
    sampler = Sampler(9_700)
    replay = Replay(stream, limit=25_000, sampler=sampler)
    result = replay.run()
    columns = sampler.columns()
    assert columns["record"].tolist() == [9_700, 19_400, 25_000]
    assert all(len(column) == 3 for column in columns.values())
    assert [int(columns[name][-1]) for name in FAULT_CLASSES] == list(result.faults.values())
    for name, value in result.stats.items():
        assert columns[name][-1] == value
    faults = sum(columns[name] for name in FAULT_CLASSES)
    assert np.array_equal(faults, columns["pf_taken"])
    assert (np.diff(faults) >= 0).all()
    assert 0 < faults[0] < faults[-1]
    assert columns["shadow_pages"][-1] == result.shadow_pages_in_use
    assert result == Replay(stream, limit=25_000).run()


def test_shadow_pages_by_role_add_up() -> None:
    sampler = Sampler(5_000)
    Replay(load_stream(DATA / "boot-686-nonpae.npz"), limit=20_000, sampler=sampler).run()
    roles = sampler.roles()
    total = sum(count.pages for count in roles)
    assert np.array_equal(total, sampler.columns()["shadow_pages"])
    levels = [count.facts.level for count in roles]
    assert levels == sorted(levels, reverse=True)
    assert set(levels) == {2, 1}
    # A directory of 32-bit paging is shadowed in four quadrants, a table in two.
    assert {count.facts.quadrant for count in roles if count.facts.level == 2} == {0, 1, 2, 3}
    assert {count.facts.quadrant for count in roles if count.facts.level == 1} == {0, 1}


def test_a_sample_shows_the_state_before_its_record() -> None:
    guest = Guest("32")
    guest.read(0x60000, 0x60000)
    second = guest.read(0x70000, 0x70000)
    guest.fetch(0x30000, 0x30000, cpl=0)
    sampler = Sampler(second)
    Replay(guest.stream(), sampler=sampler).run()
    columns = sampler.columns()
    assert columns["record"].tolist() == [second, second + 2]
    assert columns["read_supervisor"].tolist() == [1, 2]
    assert columns["fetch_supervisor"].tolist() == [0, 1]


def test_live_tables_are_counted() -> None:
    guest = Guest("32")
    guest.set_entry(1 << 22, 0x20000 | TABLE, level=2)
    guest.new_table(0x20000, 1)
    guest.read(0x5000, 0x5000)
    at = guest.set_entry(1 << 22, 0, level=2)
    guest.table_end(0x20000, 1)
    sampler = Sampler(at)
    Replay(guest.stream(), sampler=sampler).run()
    assert sampler.columns()["guest_tables"].tolist() == [3, 2]


def test_pages_out_of_sync_are_counted() -> None:
    guest = Guest("32")
    guest.set_entry(0x60000, 0x60000 | PAGE)
    sampler = Sampler(len(guest.rows))
    Replay(guest.stream(), sampler=sampler).run()
    assert sampler.columns()["unsync_pages"].tolist() == [1]


def test_no_sample_yet() -> None:
    sampler = Sampler(3)
    assert {name: len(column) for name, column in sampler.columns().items()} == {"record": 0}
    assert sampler.roles() == []


@pytest.mark.parametrize("every", [0, -1])
def test_every_is_a_distance(every: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Sampler(every)
