"""Streams: what they say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmulab.errors import InputError
from mmulab.workload.replay_plan import new_tables
from mmulab.workload.stream import Kind, Registers, entry_owners, load_stream
from mmulab.x86.mode import PAGING_4LEVEL, PAGING_32, PAGING_PAE
from tests.workload.streams import CR0, PAGE, Guest, Records, depth_first

DATA = Path(__file__).resolve().parents[2] / "data" / "stream"


def test_the_first_boot_is_whole() -> None:
    stream = load_stream(DATA / "boot-686-nonpae.npz")
    assert len(stream) == 3_000_000
    assert stream.mode is PAGING_32
    assert stream.entry_bytes == 4
    assert stream.registers == Registers(0x80050033, 0x1E74000, 0, 0)
    counts = stream.counts()
    assert (counts["P"], counts["N"], counts["U"]) == (604_084, 1_842, 1_823)
    assert int(np.count_nonzero(stream.device())) == 766
    assert int(np.argmax(stream.cpl == 3)) == 940_181


def test_the_second_boot_is_whole() -> None:
    stream = load_stream(DATA / "boot-amd64-4l.npz")
    assert len(stream) == 4_000_000
    assert stream.mode is PAGING_4LEVEL
    assert stream.entry_bytes == 8
    assert int(np.count_nonzero(stream.device())) == 731
    assert int(np.argmax(stream.cpl == 3)) == 1_481_353


def test_what_is_written_is_read(tmp_path: Path) -> None:
    guest = Guest("pae", root=0x1020)
    guest.read(0x5000, 0x5000, cpl=3, size=8)
    path = guest.save(tmp_path)
    stream = load_stream(path)
    for name, column in guest.columns().items():
        assert np.array_equal(getattr(stream, name), column)
    assert stream.registers == guest.registers
    assert stream.mode is PAGING_PAE
    assert stream.table_bytes(3) == 32
    assert stream.table_bytes(2) == 4096
    assert stream.table(4) == (0x1020, 3)
    assert stream.counts() == {"r": 1, "C": 4, "N": 3, "e": 514}
    assert repr(stream) == "Stream(small: 522 records, pae paging; r 1, C 4, N 3, e 514)"


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_stream(path)
    message = str(caught.value)
    assert str(path.parent) in message
    assert "\n" not in message
    return message


def small(folder: Path, **changed: np.ndarray | None) -> Path:
    return Guest("32").save(folder, **changed)


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.npz")


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, kept: float) -> None:
    path = small(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept > 1 else kept * len(whole))])
    assert "cut or damaged" in refused(path)


def test_missing_description(tmp_path: Path) -> None:
    path = small(tmp_path)
    path.with_suffix(".json").unlink()
    assert "small.json: no such file; it belongs beside small.npz" in refused(path)


def test_truncated_description(tmp_path: Path) -> None:
    path = small(tmp_path)
    about = path.with_suffix(".json")
    about.write_text(about.read_text()[:-2])
    assert "small.json: cut, or no JSON" in refused(path)


def test_description_of_another_stream(tmp_path: Path) -> None:
    path = small(tmp_path)
    about = path.with_suffix(".json")
    told = json.loads(about.read_text())
    about.write_text(json.dumps({**told, "records": 7}))
    assert f"{len(Guest('32').rows)} records, {about} says 7" in refused(path)
    about.write_text(json.dumps({**told, "kinds": {**told["kinds"], "I": 3}}))
    assert f"0 records of kind 'I', {about} says 3" in refused(path)
    about.write_text(json.dumps({**told, "kinds": 3}))
    assert "field 'kinds' is 3; it must be an object" in refused(path)


@pytest.mark.parametrize("name", ["kind", "cpl", "aux", "gva", "gpa", "val"])
def test_missing_column(tmp_path: Path, name: str) -> None:
    assert f"no column '{name}'" in refused(small(tmp_path, **{name: None}))


@pytest.mark.parametrize("name", ["kind", "aux", "gpa"])
def test_wrong_dtype(tmp_path: Path, name: str) -> None:
    column = Guest("32").columns()[name].astype(np.int32)
    assert f"{name} is int32, expected uint" in refused(small(tmp_path, **{name: column}))


def test_unequal_lengths(tmp_path: Path) -> None:
    val = Guest("32").columns()["val"][:-1]
    message = refused(small(tmp_path, val=val))
    assert "different lengths" in message
    assert f"val {len(val)}" in message


def test_wrong_shape(tmp_path: Path) -> None:
    val = Guest("32").columns()["val"].reshape(-1, 1)
    assert "column 'val' has shape" in refused(small(tmp_path, val=val))


def test_empty_stream(tmp_path: Path) -> None:
    empty = Records(Registers(CR0, 0, 0, 0))
    empty.rows.clear()
    columns = {name: np.zeros(0, column.dtype) for name, column in Guest("32").columns().items()}
    path = tmp_path / "small.npz"
    np.savez(path, **columns)
    path.with_suffix(".json").write_text('{"records": 0, "kinds": {}}')
    assert "records 0 to 3 are not the state at the start" in refused(path)


BAD = {
    "unknown kind": (
        lambda g: g.add("q"),
        r"kind 113 ('q') is unknown; a kind is one of r w x C I F N e P U",
    ),
    "privilege level": (lambda g: g.read(0, 0, cpl=4), "cpl 0x4 is no privilege level"),
    "read beyond the RAM": (
        lambda g: g.read(0x5000, 256 << 20),
        "gpa 0x10000000 is beyond the RAM of 0x10000000 bytes",
    ),
    "fetch beyond the RAM": (lambda g: g.fetch(0x5000, 1 << 40), "gpa 0x10000000000 is beyond the RAM"),
    "store beyond the RAM": (lambda g: g.store(0, 1 << 30, 1, 0, 4), "gpa 0x40000000 is beyond the RAM"),
    "table end beyond the RAM": (lambda g: g.table_end(1 << 30, 1), "gpa 0x40000000 is beyond the RAM"),
    "device in memory": (
        lambda g: (g.read(0x6000, 0x6000), g.read(0x5000, 0x6000, device=True))[1],
        "gpa 0x6000 is a device and, in other records, memory",
    ),
    "wide address": (lambda g: g.read(1 << 32, 0), "gva 0x100000000 is no canonical address of 32 paging"),
    "control register": (
        lambda g: g.control(2, 0),
        "aux 0x2 names no control register; it is one of 0 (cr0)",
    ),
    "late state": (lambda g: g.control(0x103, 0), "aux 0x103 names no control register"),
    "PAE switched on": (lambda g: g.control(4, 0x20), "val 0x20 changes CR4.PAE"),
    "level 0": (lambda g: g.table_end(0x2000, 0), "aux 0x0 is no level"),
    "level 6": (lambda g: g.table_end(0x2000, 6), "aux 0x6 is no level"),
    "store to no level": (lambda g: g.store(0, 0, 7, 0, 4), "names no level of the table stored to"),
    "store of nothing": (lambda g: g.store(0, 0, 1, 0, 0), "aux 0x2 is a store of no bytes"),
    "access of nothing": (lambda g: g.read(0, 0, size=0), "aux 0x0 is an access of no bytes"),
    "misaligned entry": (lambda g: g.store(0, 0x2002, 1, 0, 4), "is not aligned to an entry of 4 bytes"),
    "block behind an access": (
        lambda g: (g.read(0, 0), g.new_table(0x9000, 1))[1],
        "kind 78 ('N') does not stand behind a P or C record",
    ),
    "entry of no table": (
        lambda g: (g.control(3, 0x1000), g.entry(0x9000, 1, 0))[1],
        "kind 101 ('e') belongs to no page announced by N",
    ),
    "entry of another table": (
        lambda g: (g.control(3, 0x1000), g.new_table(0x9000, 1), g.entry(0xA000, 1, 0))[2],
        "gpa 0xa000 is in no table of its level announced by an N",
    ),
    "entry of another level": (
        lambda g: (g.control(3, 0x1000), g.new_table(0x9000, 1), g.entry(0x9004, 2, 0))[2],
        "gpa 0x9004 is in no table of its level announced by an N",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_record(tmp_path: Path, name: str) -> None:
    make, problem = BAD[name]
    guest = Guest("32")
    record = make(guest)
    message = refused(guest.save(tmp_path))
    assert f"small.npz: record {record} ('{chr(guest.rows[record][0])}'): " in message
    assert problem in message
    assert ";" in message


def test_the_first_bad_record_is_named(tmp_path: Path) -> None:
    guest = Guest("32")
    first = guest.read(0, 1 << 30)
    guest.read(0, 1 << 31)
    assert f"record {first} " in refused(guest.save(tmp_path))


def test_non_canonical_address(tmp_path: Path) -> None:
    guest = Guest("4level")
    guest.read(0xFFFF_8000_0000_0000, 0)
    record = guest.read(0x0000_8000_0000_0000, 0)
    assert f"record {record} ('r'): gva 0x800000000000 is no canonical" in refused(guest.save(tmp_path))
    wide = Guest("5level")
    wide.read(0x0000_8000_0000_0000, 0)
    assert len(load_stream(wide.save(tmp_path))) == len(wide.rows)


def test_entry_outside_the_pdpt(tmp_path: Path) -> None:
    guest = Guest("pae")
    guest.control(3, 0x1000)
    guest.new_table(0x8020, 3)
    guest.entry(0x8038, 3, 0)
    record = guest.entry(0x8040, 3, 0)
    assert f"record {record} ('e'): gpa 0x8040 is in no table of its level" in refused(guest.save(tmp_path))


def test_a_stream_begins_with_its_state(tmp_path: Path) -> None:
    guest = Guest("32")
    guest.rows[2], guest.rows[4] = guest.rows[4], guest.rows[2]
    assert "records 0 to 3 are not the state at the start" in refused(guest.save(tmp_path))


def test_what_a_device_is(tmp_path: Path) -> None:
    guest = Guest("32", flags=PAGE)
    outside = guest.read(0x7000, 0xFEE00000, device=True)
    inside = guest.write(0x8000, 0xA0000, device=True)
    guest.fetch(0x9000, 0x9000)
    stream = load_stream(guest.save(tmp_path))
    assert np.flatnonzero(stream.device()).tolist() == [outside, inside]
    assert stream.kind[outside] == Kind.READ


# Blocks that go depth first ------------------------------------------------------------------


def test_an_entry_belongs_to_the_last_announced_table_that_contains_it(tmp_path: Path) -> None:
    guest = depth_first()
    root = len(guest.rows) - 8
    owners = {root + 1: root, root + 3: root, root + 5: root + 4, root + 7: root + 6}
    stream = load_stream(guest.save(tmp_path))
    found = entry_owners(stream.kind, stream.aux, stream.gpa, pae=True)
    entries = np.flatnonzero(stream.kind == Kind.ENTRY).tolist()
    assert {e: n for e, n in zip(entries, found.tolist(), strict=True) if e in owners} == owners
    tables = {table.gpa: table.content for table in new_tables(stream, root)}
    assert list(tables) == [0x200EEA0, 0x200F000, 0x2016000, 0x2018000]
    assert tables[0x200EEA0].tolist() == [0x200F001, 0x2016001, 0, 0]
    assert np.flatnonzero(tables[0x2016000]).tolist() == [0xA8]
    assert not tables[0x200F000].any()


def test_a_table_of_an_earlier_block_is_not_come_back_to(tmp_path: Path) -> None:
    guest = depth_first()
    guest.control(3, 0x200EEA0)
    guest.new_table(0x9000, 1)
    record = guest.entry(0x200EEA8, 3, 1)
    assert f"record {record} ('e'): gpa 0x200eea8 is in no table" in refused(guest.save(tmp_path))
