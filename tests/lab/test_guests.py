"""The real guests in data/, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab import paths
from mmulab.errors import InputError
from mmulab.lab.guests import guests, load_guest, snapshots


def test_all_of_data_is_named(root: Path) -> None:
    stems = [path.stem for path in sorted((root / "data/stream").glob("*.npz"))]
    assert guests() == stems + [path.stem for path in snapshots()]
    assert len(snapshots()) == 22


def test_seed_chooses_a_snapshot_of_the_same_kernel() -> None:
    chosen = [load_guest("boot-686-nonpae", 10, seed) for seed in range(5)]
    assert [guest.snapshot.name for guest in chosen] == [f"linux-686-nonpae-{n}" for n in (1, 2, 3, 4, 1)]
    assert all(guest.snapshot.mode is guest.stream.mode for guest in chosen)
    assert {path.name for path in chosen[0].files} == {
        "boot-686-nonpae.json",
        "boot-686-nonpae.npz",
        "linux-686-nonpae-1.json",
        "linux-686-nonpae-1.npz",
    }


def test_snapshot_makes_a_stream_of_the_wanted_length() -> None:
    guest = load_guest("linux-686-pae-2", 20_000, seed=0)
    assert len(guest.stream) == 20_000
    assert guest.stream.name == guest.snapshot.name == "linux-686-pae-2"


@pytest.mark.parametrize(
    ("name", "limit", "says"),
    [
        ("boot-vax", 1, "guest 'boot-vax': unknown; the guests are boot-686-nonpae, boot-amd64-4l, linux-"),
        ("boot-686-nonpae", 0, "limit 0: boot-686-nonpae has 3000000 records; give 1 to 3000000"),
        ("boot-686-nonpae", 3_000_001, "limit 3000001: boot-686-nonpae has 3000000 records"),
        ("linux-686-pae-2", 5, "linux-686-pae-2: 5 records hold no read"),
        ("linux-686-pae-2", 10**12, "limit 1000000000000: too many reads through linux-686-pae-2; give at"),
    ],
)
def test_bad_guests_are_refused(name: str, limit: int, says: str) -> None:
    with pytest.raises(InputError) as refused:
        load_guest(name, limit, 0)
    assert str(refused.value).startswith(says)


def test_stream_of_a_kernel_without_a_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = paths.data("stream/boot-686-nonpae.npz")
    for folder in ("stream", "snapshots", "notebooks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for source in (stream, stream.with_suffix(".json")):
        (tmp_path / "data" / "stream" / source.name).symlink_to(source)
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    with pytest.raises(InputError, match="no snapshot linux-686-nonpae-N of this kernel"):
        load_guest("boot-686-nonpae", 10, 0)
