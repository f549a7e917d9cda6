"""A recorded boot is the boot that the fast replay runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab import events as ev
from mmulab.trace.file import open_recording
from mmulab.workload.record import stream_recorder
from mmulab.workload.replay import Replay
from mmulab.workload.stream import load_stream
from tests.conftest import CommandLine

STREAM = Path(__file__).parents[2] / "data" / "stream" / "boot-686-nonpae.npz"
RECORDS = 30_000


def test_recorded_replay_is_the_fast_one() -> None:
    stream = load_stream(STREAM)
    events: list[ev.Event] = []
    fast = Replay(stream, limit=RECORDS, emit=events.append)
    wanted = fast.run()
    slow = Replay(stream, limit=RECORDS, one_by_one=True)
    recorder = stream_recorder(slow)
    result = slow.run()
    recording = recorder.finish()
    assert result.mismatch is None
    assert (result.faults, result.agree, result.shadow_pages) == (
        wanted.faults,
        wanted.agree,
        wanted.shadow_pages,
    )
    kept = [e for e in recording.events if not isinstance(e, ev.kvm_exit)]
    assert kept == [e for e in events if not isinstance(e, ev.kvm_exit)]
    assert len(recording.ops) > RECORDS // 2
    for event in (5, len(recording.events) // 2, len(recording.events) - 1):
        assert recording.at(event).event == recording.events[event]


def test_hits_that_are_no_ops_cannot_be_recorded() -> None:
    with pytest.raises(ValueError, match="one_by_one"):
        stream_recorder(Replay(load_stream(STREAM), limit=100))


def test_command_keeps_the_run(command: CommandLine, tmp_path: Path) -> None:
    done = command("replay", STREAM, "--limit", "5000", "--record", "boot.mmr")
    assert done.returncode == 0, done.stderr
    recording = open_recording(tmp_path / "boot.mmr")
    assert recording.info.source == "boot-686-nonpae"
    assert recording.info.options == {"records": 5000, "derivation": "parity", "kernel": "6.1.192"}
    assert len(recording.events) > 100
