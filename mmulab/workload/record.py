"""Recordings of replayed boots."""

from __future__ import annotations

from mmulab.trace.recorder import INTERVAL, Recorder
from mmulab.trace.recording import Info
from mmulab.workload.replay import Replay


def stream_recorder(replay: Replay, *, interval: int = INTERVAL) -> Recorder:
    """Return a recorder of a replay that has not begun; it must have been made ``one_by_one``.

    Where accesses went is compared with the stream by the replay itself, so
    nothing else judges them.

    Raises
    ------
    ValueError
        The replay's hits would not be ops.
    """
    if not replay.one_by_one:
        raise ValueError("a replay is recorded with one_by_one=True")
    kernel = replay.machine.config.kernel
    options = {"records": replay.records, "derivation": kernel.derivation.name, "kernel": kernel.name}
    return Recorder(replay.machine, info=Info(replay.stream.name, options=options), interval=interval)
