"""The real guests in ``data/``, by name: recorded boots, and snapshots to read through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from mmulab import paths
from mmulab.errors import InputError
from mmulab.workload.snapshot import Snapshot, load_snapshot
from mmulab.workload.snapshot_stream import snapshot_stream
from mmulab.workload.stream import Stream, load_stream

__all__ = ["Guest", "guests", "load_guest", "snapshots"]

MOST_RECORDS = 10_000_000
"""Of a stream that is made from a snapshot: about 300 MiB of columns."""


class Guest(NamedTuple):
    """A guest to replay.

    Attributes
    ----------
    stream : Stream
        A recorded boot, or drawn reads through a snapshot's tables.
    snapshot : Snapshot
        Page tables of a guest with the same kernel and paging.
    files : tuple of pathlib.Path
        All that was read.
    """

    stream: Stream
    snapshot: Snapshot
    files: tuple[Path, ...]


def snapshots() -> list[Path]:
    """Return the snapshots in ``data/``, in the order of their names."""
    return sorted(paths.data("snapshots").glob("*.npz"))


def _streams() -> dict[str, Path]:
    return {path.stem: path for path in sorted(paths.data("stream").glob("*.npz"))}


def guests() -> list[str]:
    """Return the names of all streams, then of all snapshots."""
    return [*_streams(), *(path.stem for path in snapshots())]


def load_guest(name: str, limit: int, seed: int) -> Guest:
    """Load the guest `name`, with records enough for a replay of `limit`.

    Parameters
    ----------
    name : str
        One of :func:`guests`.
    limit : int
    seed : int
        Chooses the snapshot that goes with a stream, and the reads through a snapshot.

    Raises
    ------
    InputError
        The name is unknown; `limit` is more than the stream has, less than a
        snapshot's tables take or above `MOST_RECORDS`; a file is refused.
    """
    streams = _streams()
    if name in streams:
        return _recorded(streams[name], limit, seed)
    found = [path for path in snapshots() if path.stem == name]
    if not found:
        raise InputError(f"guest '{name}': unknown; the guests are {', '.join(guests())}")
    if limit > MOST_RECORDS:
        raise InputError(f"limit {limit}: too many reads through {name}; give at most {MOST_RECORDS}")
    snapshot = load_snapshot(found[0])
    return Guest(snapshot_stream(snapshot, limit, seed), snapshot, _both_files(found[0]))


def _recorded(path: Path, limit: int, seed: int) -> Guest:
    stream = load_stream(path)
    if not 1 <= limit <= len(stream):
        raise InputError(f"limit {limit}: {path.stem} has {len(stream)} records; give 1 to {len(stream)}")
    prefix = f"linux-{path.stem.removeprefix('boot-')}-"
    fitting = [found for found in snapshots() if re.fullmatch(re.escape(prefix) + r"\d+", found.stem)]
    if not fitting:
        raise InputError(f"{path}: no snapshot {prefix}N of this kernel in {paths.data('snapshots')}")
    chosen = fitting[seed % len(fitting)]
    return Guest(stream, load_snapshot(chosen), _both_files(path) + _both_files(chosen))


def _both_files(path: Path) -> tuple[Path, Path]:
    return path, path.with_suffix(".json")
