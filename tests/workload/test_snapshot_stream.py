"""Snapshots as streams: real tables through the shadow MMU, compared with another program's answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmulab.errors import InputError
from mmulab.workload.replay import Replay
from mmulab.workload.snapshot import load_snapshot
from mmulab.workload.snapshot_stream import snapshot_stream
from mmulab.workload.stream import AUX_DEVICE, Kind

NAMES = (
    "linux-686-nonpae-1",
    "linux-686-pae-1",
    "linux-amd64-4l-pti-2",
    "linux-amd64-4l-pti-4",
    "linux-amd64-5l-1",
)
"""A snapshot in every mode; of KPTI the kernel's and the user's root."""
RECORDS = 30_000


@pytest.mark.parametrize("name", NAMES)
def test_every_read_reaches_the_recorded_page(root: Path, name: str) -> None:
    stream = snapshot_stream(load_snapshot(root / "data/snapshots" / f"{name}.npz"), RECORDS, seed=1)
    reads = int(np.count_nonzero(stream.kind == Kind.READ))
    assert reads > 10_000
    result = Replay(stream).run()
    assert result.mismatch is None
    assert (result.accesses, result.agree) == (reads, reads)
    assert result.faults["read_supervisor"] >= 100
    assert result.shadow_pages > stream.mode.root_level


def test_a_wrong_answer_is_found(root: Path) -> None:
    stream = snapshot_stream(load_snapshot(root / f"data/snapshots/{NAMES[0]}.npz"), RECORDS, seed=1)
    memory = np.flatnonzero((stream.kind == Kind.READ) & (stream.aux & AUX_DEVICE == 0))
    record = int(memory[5000])
    stream.gpa[record] ^= np.uint64(1 << 12)
    mismatch = Replay(stream).run().mismatch
    assert mismatch is not None
    assert mismatch.record == record
    assert mismatch.reached is not None
    assert mismatch.reached ^ mismatch.gpa == 1 << 12


def test_reads_are_drawn_by_the_seed(root: Path) -> None:
    snapshot = load_snapshot(root / f"data/snapshots/{NAMES[0]}.npz")
    first, again, other = (snapshot_stream(snapshot, RECORDS, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.gva, again.gva)
    assert np.array_equal(first.gpa, again.gpa)
    assert not np.array_equal(first.gva, other.gva)


def test_working_set_grows_to_all_that_is_mapped(root: Path) -> None:
    snapshot = load_snapshot(root / f"data/snapshots/{NAMES[0]}.npz")
    stream = snapshot_stream(snapshot, 200_000, seed=0)
    gva = stream.gva[stream.kind == Kind.READ]
    pages = {truth.gva >> 12 for truth in snapshot.truth if truth.gpa is not None}
    assert {int(address) >> 12 for address in gva} == pages
    quarter = len(gva) // 4
    assert len(np.unique(gva[:quarter])) <= len(pages) // 4 + 2


def test_stream_without_a_read_is_refused(root: Path) -> None:
    snapshot = load_snapshot(root / f"data/snapshots/{NAMES[0]}.npz")
    tables = int(np.count_nonzero(snapshot_stream(snapshot, RECORDS, 0).kind != Kind.READ))
    assert len(snapshot_stream(snapshot, tables + 1, 0)) == tables + 1
    with pytest.raises(InputError, match=f"registers and tables alone are {tables}, ask for more"):
        snapshot_stream(snapshot, tables, 0)
