"""The link, with this test in the host's place."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.errors import InputError
from mmulab.record.link import Kind, Link, Record

SIZE = 0x400000 + 256
RING = 0x400000


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    made = Link(tmp_path / "link", SIZE)
    yield made
    made.close()


def word(link: Link, number: int) -> int:
    return int(struct.unpack_from("<Q", link.memory, 8 * number)[0])


def put(link: Link, kind: int, data: bytes) -> None:
    """Write a record as vmm/init.c does."""
    at, whole = word(link, 64), (8 + len(data) + 7) // 8 * 8
    assert at + whole - word(link, 3) <= link.ring_bytes
    for i, byte in enumerate(struct.pack("<II", kind, len(data)) + data):
        link.memory[RING + (at + i) % link.ring_bytes] = byte
    struct.pack_into("<Q", link.memory, 512, at + whole)


def test_a_job_lies_in_the_mailbox_before_its_number_changes(link: Link) -> None:
    link.send("ops\nend 0\n")
    assert (word(link, 1), word(link, 2)) == (1, 10)
    assert link.memory[0x1000:0x100A] == b"ops\nend 0\n"
    link.power_off()
    assert word(link, 1) == (1 << 64) - 1


def test_a_job_that_is_too_large_is_refused(link: Link) -> None:
    with pytest.raises(InputError, match="limit"):
        link.send("x" * (RING - 0x1000 + 1))


@given(st.lists(st.binary(max_size=80), max_size=30))
def test_records_come_back_over_the_end_of_the_ring(
    tmp_path_factory: pytest.TempPathFactory, datas: list[bytes]
) -> None:
    link = Link(tmp_path_factory.mktemp("link") / "link", SIZE)
    for data in datas:
        put(link, Kind.TRACE, data)
        assert list(link.records()) == [Record(Kind.TRACE, data)]
    assert not list(link.records())
    link.close()
