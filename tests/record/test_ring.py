"""Pages of the ring buffer, and the formats of events."""

from __future__ import annotations

import struct

import pytest

from mmulab.errors import InputError
from mmulab.record.ring import in_order, parse_format, payloads

FORMAT = """name: kvm_mmu_set_spte
ID: 1234
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:u64 gfn;\toffset:8;\tsize:8;\tsigned:0;
\tfield:signed char u;\toffset:16;\tsize:1;\tsigned:1;
\tfield:__u8 insn[15];\toffset:17;\tsize:15;\tsigned:0;

print fmt: "gfn %llx", REC->gfn
"""


def page(*pieces: bytes, flags: int = 0, time: int = 77) -> bytes:
    """A page of the ring buffer: a time, the bytes that are used, and these."""
    body = b"".join(pieces)
    return struct.pack("<QQ", time, len(body) | flags) + body


def head(kind: int, delta: int = 1) -> bytes:
    return struct.pack("<I", kind | delta << 5)


def test_a_format_has_its_own_fields_and_how_they_are_read() -> None:
    layout = parse_format(FORMAT)
    assert (layout.id, layout.name) == (1234, "kvm_mmu_set_spte")
    assert [field.name for field in layout.fields] == ["gfn", "u", "insn"]
    assert layout.printed.strip() == '"gfn %llx", REC->gfn'
    data = struct.pack("<8xQb15s", 0x100, -1, b"\x90\xc3")
    assert layout.decode(data) == {"gfn": 0x100, "u": -1, "insn": b"\x90\xc3".ljust(15, b"\0")}


def test_a_format_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="no name or ID"):
        parse_format("nonsense")


def test_short_and_long_events_come_in_order() -> None:
    short = head(2) + b"abcdefgh"
    long = head(0) + struct.pack("<I", 4 + 5) + b"12345" + bytes(3)
    assert list(payloads(page(short, long, short))) == [
        (78, b"abcdefgh"),
        (79, b"12345"),
        (80, b"abcdefgh"),
    ]


def test_a_time_may_be_extended_or_set_and_discarded_events_have_none() -> None:
    extend, stamp = head(30, 2) + struct.pack("<I", 1), head(31, 500) + bytes(4)
    discarded = head(29) + struct.pack("<I", 8) + bytes(4)
    event = head(1) + b"wxyz"
    assert list(payloads(page(extend, event))) == [(77 + 2 + (1 << 27) + 1, b"wxyz")]
    assert list(payloads(page(extend, stamp, discarded, event))) == [(501, b"wxyz")]


def test_events_of_two_cpus_come_in_the_order_of_their_clock() -> None:
    first = page(head(1) + b"1st ", head(1, 5) + b"4th ", time=10)
    second = page(head(1, 3) + b"2nd ", head(1, 2) + b"3rd ", time=9)
    assert in_order([first, second]) == [b"1st ", b"2nd ", b"3rd ", b"4th "]


def test_padding_ends_a_page() -> None:
    assert list(payloads(page(head(1) + b"wxyz", head(29, 0), b"rubbish!"))) == [(78, b"wxyz")]


def test_events_that_were_dropped_are_said() -> None:
    with pytest.raises(InputError, match="dropped events"):
        list(payloads(page(head(1) + b"wxyz", flags=1 << 31)))
