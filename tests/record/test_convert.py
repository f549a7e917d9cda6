"""What a host said becomes the recording that it is."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest

from mmulab.conform.recording import read_lines
from mmulab.errors import InputError
from mmulab.machine.op import Age
from mmulab.record.convert import outcome, recorded_lines
from mmulab.record.link import Kind, Record
from mmulab.record.take import Take, TakenOp
from mmulab.scenario.grammar import Step
from tests.record.conftest import Sample


def test_a_take_is_the_recording_to_the_byte(sample: Sample) -> None:
    lines, wanted = recorded_lines(sample.work, sample.take, sample.facts), read_lines(sample.path)
    assert lines[1:] == wanted[1:]
    assert list(json.loads(lines[0]).items()) == list(json.loads(wanted[0]).items())


def test_an_op_that_the_host_did_not_survive_has_the_kernels_words(sample: Sample) -> None:
    cut = replace(sample.take, ops=[*sample.take.ops[:3], TakenOp(2, "wr s 4 0 0")], total="", done=False)
    lines = [json.loads(line) for line in recorded_lines(sample.work, cut, sample.facts, ["BUG: test"])]
    assert lines[4] == {
        "i": 2,
        "op": "wr s 4 0 0",
        "out": {"out": "host_died", "words": ["BUG: test"]},
        "ev": [],
    }
    whole = read_lines(sample.path)
    assert lines[1:4] == [json.loads(line) for line in whole[1:4]]
    assert lines[-1] == {"end": 1, "stats_total": {}}


def test_the_header_says_that_memory_was_not_locked(sample: Sample) -> None:
    scenario = sample.work.scenario
    aged = replace(scenario, steps=(*scenario.steps, Step(Age(0, 0x1000))))
    work = replace(sample.work, scenario=aged)
    assert json.loads(recorded_lines(work, sample.take, sample.facts)[0])["nolock"] == 1


def test_frames_that_nobody_knows_are_counted(sample: Sample) -> None:
    header = json.loads(recorded_lines(sample.work, replace(sample.take, frames=[]), sample.facts)[0])
    assert header["unknown_host_frames"] > 0


def test_an_op_after_which_frames_are_others_names_pages_by_either(sample: Sample) -> None:
    """Pages that have changed places before the first op are those that its events name."""
    first = sample.take.frames[0]
    places = (first[1], first[0], *first[2:])
    take = Take()
    take.add(Record(Kind.FRAMES, struct.pack(f"<{len(first)}Q", *places)))
    for op in sample.take.ops:
        take.add(Record(Kind.BEGIN, f"{op.index} {op.text}".encode()))
        take.ops[-1].outcome, take.ops[-1].pages = op.outcome, op.pages
        if after := first if len(take.ops) == 1 else op.frames:
            take.add(Record(Kind.FRAMES, struct.pack(f"<{len(first)}Q", *after)))
    take.total = sample.take.total
    assert take.ops[0].frames == first
    assert not take.ops[1].frames
    assert recorded_lines(sample.work, take, sample.facts)[1:] == read_lines(sample.path)[1:]


def test_a_gap_in_the_trace_is_said(sample: Sample) -> None:
    op = sample.take.ops[1]
    op.pages[0] = op.pages[0][:8] + (int.from_bytes(op.pages[0][8:16], "little") | 1 << 31).to_bytes(
        8, "little"
    )
    with pytest.raises(InputError, match="dropped events"):
        recorded_lines(sample.work, sample.take, sample.facts)


def test_numbers_of_an_outcome_are_those_of_recordings() -> None:
    assert outcome(["mmio=r:f0000000:4:d0d0d0d0", "out=ok", "rip=1802", "rax=d0d0d0d0", "zf=1"]) == {
        "out": "ok",
        "rip": "0x1802",
        "rax": "0xd0d0d0d0",
        "zf": 1,
        "mmio": [{"rw": "r", "gpa": "0xf0000000", "len": 4, "data": "0xd0d0d0d0"}],
    }
    assert outcome(["out=host", "ret=-22", "dirty=1,2"]) == {"out": "host", "ret": -22, "dirty": "1,2"}
    assert outcome(["out=host", "ring=0:10,10001:5"]) == {"out": "host", "ring": "0:10,10001:5"}
    assert outcome(["out=host", "ring="]) == {"out": "host", "ring": ""}
    assert outcome(["out=dirty_ring_full"]) == {"out": "dirty_ring_full"}
