"""Recordings of replayed boots."""

from __future__ import annotations

from mmulab.kvm.kernel import Kernel
from mmulab.trace.recorder import INTERVAL, Recorder
from mmulab.trace.recording import Info, Recording
from mmulab.workload.replay import Replay
from mmulab.workload.stream import Stream


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
    info = Info(replay.stream.name, options=options)
    return Recorder(replay.machine, info=info, interval=interval, record=lambda: replay.record)


def record_boot(stream: Stream, records: int, kernel: Kernel) -> tuple[Recording, int]:
    """Replay the first records of a stream, recorded; return with it the number of the last one's op."""
    replay = Replay(stream, limit=records, kernel=kernel, one_by_one=True)
    recorder = stream_recorder(replay)
    replay.run()
    last = recorder.op_count - 1
    return recorder.finish(), last
