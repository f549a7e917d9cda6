"""Outcomes as recordings write them."""

from __future__ import annotations

import pytest

from mmulab.conform.outcome import decode_outcome, encode_outcome, outcome_record, outcome_str
from mmulab.machine.op import Mmio, Outcome, OutcomeKind


@pytest.mark.parametrize(
    ("outcome", "record", "text"),
    [
        (
            Outcome(OutcomeKind.OK, rip=0x1802, rax=0x90, hpa=0x8210000),
            {"out": "ok", "rip": "0x1802", "rax": "0x90"},
            "ok rip=1802 rax=90",
        ),
        (
            Outcome(OutcomeKind.OK, rip=0x1812, rax=5, mmio=[Mmio(True, 0x3000008, 4, 5)]),
            {
                "out": "ok",
                "rip": "0x1812",
                "rax": "0x5",
                "mmio": [{"rw": "w", "gpa": "0x3000008", "len": 4, "data": "0x5"}],
            },
            "ok rip=1812 rax=5 mmio=w4@3000008=5",
        ),
        (
            Outcome(OutcomeKind.OK, rip=0x1893, rax=1, zf=0),
            {"out": "ok", "rip": "0x1893", "rax": "0x1", "zf": 0},
            "ok rip=1893 rax=1 zf=0",
        ),
        (
            Outcome(OutcomeKind.EXC, rip=0x2800, vector=14, error_code=5, cr2=0x40010000),
            {"out": "exc", "vec": 14, "err": "0x5", "rip": "0x2800", "cr2": "0x40010000"},
            "exc vec=e err=5 rip=2800 cr2=40010000",
        ),
        (
            Outcome(OutcomeKind.EXC, rip=0x1840, vector=13, error_code=0),
            {"out": "exc", "vec": 13, "err": "0x0", "rip": "0x1840"},
            "exc vec=d err=0 rip=1840",
        ),
        (Outcome(OutcomeKind.HOST), {"out": "host"}, "host"),
        (Outcome(OutcomeKind.HOST, result=-22), {"out": "host", "ret": -22}, "host ret=-22 EINVAL"),
        (Outcome(OutcomeKind.HOST, result=16), {"out": "host", "ret": 16}, "host ret=16"),
        (Outcome(OutcomeKind.HANG, error=14), {"out": "hang", "errno": 14}, "hang errno=14 EFAULT"),
        (
            Outcome(OutcomeKind.HOST, result=0, dirty=[1, 0x10]),
            {"out": "host", "ret": 0, "dirty": "1,10"},
            "host ret=0 dirty=1,10",
        ),
        (
            Outcome(OutcomeKind.HOST, result=0, dirty=[]),
            {"out": "host", "ret": 0, "dirty": ""},
            "host ret=0 dirty=",
        ),
        (
            Outcome(OutcomeKind.HOST, ring=[(0, 0x10), (0x10003, 1)]),
            {"out": "host", "ring": "0:10,10003:1"},
            "host ring=0:10,10003:1",
        ),
        (Outcome(OutcomeKind.HOST, ring=[]), {"out": "host", "ring": ""}, "host ring="),
        (Outcome(OutcomeKind.DIRTY_RING_FULL), {"out": "dirty_ring_full"}, "dirty_ring_full"),
        (
            Outcome(OutcomeKind.INTERNAL_ERROR, suberror=1),
            {"out": "internal_error", "sub": 1},
            "internal_error sub=1",
        ),
        (Outcome(OutcomeKind.SHUTDOWN), {"out": "shutdown"}, "shutdown"),
    ],
)
def test_a_models_outcome_has_the_recorded_form(
    outcome: Outcome, record: dict[str, object], text: str
) -> None:
    decoded = decode_outcome(record)
    assert encode_outcome(outcome) == decoded
    assert outcome_str(decoded) == text


def test_any_field_makes_a_difference() -> None:
    record = decode_outcome({"out": "exc", "vec": 14, "err": "0x5", "rip": "0x2800", "cr2": "0x8"})
    same = {"rip": 0x2800, "vector": 14, "error_code": 5, "cr2": 8}
    for field in same:
        assert encode_outcome(Outcome(OutcomeKind.EXC, **{**same, field: 99})) != record  # type: ignore[arg-type]
    assert encode_outcome(Outcome(OutcomeKind.OK, rip=0x2800)) != record


def test_the_death_of_a_host_has_the_kernels_words() -> None:
    record = {"out": "host_died", "words": ["BUG: 1", "RIP: 2"]}
    assert outcome_record(decode_outcome(record)) == record
    assert outcome_str(decode_outcome(record)) == "host_died: BUG: 1"
    assert outcome_str(decode_outcome({"out": "host_died", "words": []})) == "host_died"
    with pytest.raises(ValueError, match="is no text"):
        decode_outcome({"out": "host_died", "words": [1]})
