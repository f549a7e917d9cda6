"""Snapshots: what loads, what is refused and how, and what the tables hold."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmulab.errors import InputError
from mmulab.workload.snapshot import Snapshot, load_snapshot
from mmulab.x86.mode import PT_BASE_ADDR_MASK

DATA = Path(__file__).resolve().parents[2] / "data" / "snapshots"
FILES = sorted(DATA.glob("*.npz"))
SIZES = {"4K": 1 << 12, "2M": 1 << 21, "4M": 1 << 22, "1G": 1 << 30}
NONPAE, PAE, FOUR = (DATA / f"linux-{name}-1.npz" for name in ("686-nonpae", "686-pae", "amd64-4l"))


def description(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text("utf-8"))  # type: ignore[no-any-return]


def test_the_data_have_every_mode() -> None:
    assert len(FILES) >= 22
    assert {load_snapshot(path).mode.name for path in FILES} == {"32", "pae", "4level", "5level"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_tables_are_those_that_the_capture_counted(path: Path) -> None:
    about, snapshot = description(path), load_snapshot(path)
    summary = snapshot.summary()
    assert {str(row.level): row.tables for row in summary} == {
        level: count for level, count in about["table_pages_by_level"].items() if count
    }
    leaves = {row.page_size: row.leaves for row in summary if row.leaves}
    assert leaves == {SIZES[size]: count for size, count in about["leaf_entries_by_walker"].items()}
    assert snapshot.leaf_counts == about["leaf_entries_by_walker"]
    links = sum(row.links for row in summary) - (1 if snapshot.mode.has_pdptes else 0)
    assert links == about["table_links"]


@pytest.mark.parametrize("path", [NONPAE, PAE], ids=lambda path: path.stem)
def test_bits_of_leaves_are_those_that_the_emulator_counted(path: Path) -> None:
    """Where no table is shared, the emulator's count of lines is one of entries."""
    counted, summary = description(path)["info_tlb_counts"], load_snapshot(path).summary()
    assert all(row.shared == 0 for row in summary)
    for field in ("user", "dirty", "accessed", "nx", "writable"):
        assert sum(getattr(row, field) for row in summary) == counted[field], field
    assert sum(row.global_ for row in summary) == counted["global"]


def test_shared_tables_are_counted() -> None:
    bottom = load_snapshot(FOUR).summary()[-1]
    assert bottom.level == 1
    assert bottom.shared > 0
    assert bottom.links > bottom.tables
    assert bottom.entries == 512 * bottom.tables
    assert bottom.leaves == bottom.present <= bottom.entries


def test_load_reads_entries_of_the_mode_s_width() -> None:
    snapshot = load_snapshot(NONPAE)
    root = snapshot.cr3 & PT_BASE_ADDR_MASK
    words = snapshot.pages[snapshot.row[root >> 12]]
    for index in range(1024):
        assert snapshot.load(root + 4 * index) == int(words[index // 2]) >> 32 * (index % 2) & 0xFFFFFFFF
    wide = load_snapshot(FOUR)
    assert wide.load((wide.cr3 & PT_BASE_ADDR_MASK) + 8 * 511) == int(
        wide.pages[wide.row[wide.cr3 >> 12], 511]
    )
    assert wide.load(0) is None


def test_only_bit_5_of_the_four_pdptes_is_masked() -> None:
    with np.load(PAE) as archive:
        raw = archive["pages"]
    snapshot = load_snapshot(PAE)
    differ = raw ^ snapshot.pages
    first = (snapshot.cr3 & 0xFE0) >> 3
    row = snapshot.row[snapshot.cr3 >> 12]
    assert set(zip(*(axis.tolist() for axis in np.nonzero(differ)), strict=True)) <= {
        (row, first + i) for i in range(4)
    }
    assert set(differ.ravel().tolist()) == {0, 1 << 5}
    assert snapshot.masked_pdptes == np.count_nonzero(differ) > 0
    assert f"bit 5 masked in {snapshot.masked_pdptes} PDPTEs" in repr(snapshot)
    for path in (NONPAE, FOUR):
        with np.load(path) as archive:
            assert np.array_equal(load_snapshot(path).pages, archive["pages"])
        assert "masked" not in repr(load_snapshot(path))


def test_it_shows_what_it_is() -> None:
    snapshot = load_snapshot(NONPAE)
    assert repr(snapshot).startswith("Snapshot(linux-686-nonpae-1: 32 paging, cr3 0x")
    html = snapshot._repr_html_()
    assert html.count("<tr>") == 1 + 2
    assert f"<td>{snapshot.summary()[1].leaves:,}</td>" in html


# What is refused -------------------------------------------------------------


class Copy:
    """A copy of a snapshot, to be spoilt."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.path = folder / source.name
        shutil.copy(source, self.path)
        shutil.copy(source.with_suffix(".json"), folder)
        self.json = self.path.with_suffix(".json")

    def columns(self, change: Callable[[dict[str, np.ndarray]], None]) -> None:
        """Rewrite the columns."""
        with np.load(self.path) as archive:
            columns = {name: archive[name] for name in archive.files}
        change(columns)
        np.savez_compressed(self.path, **columns)

    def description(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Rewrite the description."""
        about = json.loads(self.json.read_text("utf-8"))
        change(about)
        self.json.write_text(json.dumps(about), "utf-8")

    def refused(self) -> str:
        """Load it, and return the one line that refuses it, without the file's name."""
        with pytest.raises(InputError) as caught:
            load_snapshot(self.path)
        (line,) = str(caught.value).splitlines()
        assert line.startswith((f"{self.path}: ", f"{self.json}: "))
        return line.partition(": ")[2]


@pytest.fixture
def pae(tmp_path: Path) -> Copy:
    return Copy(PAE, tmp_path)


def test_an_untouched_copy_loads(pae: Copy) -> None:
    assert isinstance(load_snapshot(pae.path), Snapshot)


def test_missing_files(pae: Copy) -> None:
    pae.json.unlink()
    assert pae.refused() == "no such file; it belongs beside linux-686-pae-1.npz"
    pae.path.unlink()
    assert pae.refused() == "no such file"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_columns(pae: Copy, share: float) -> None:
    whole = pae.path.read_bytes()
    pae.path.write_bytes(whole[: int(share * len(whole))])
    assert pae.refused() == "cut or damaged, or no archive; copy it again from where it came"


def test_damaged_columns(pae: Copy) -> None:
    whole = bytearray(pae.path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    pae.path.write_bytes(whole)
    assert "is cut or damaged" in pae.refused()


def test_another_kind_of_file(pae: Copy) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    pae.path.write_bytes(buffer.getvalue())
    assert "cut or damaged, or no archive" in pae.refused()


@pytest.mark.parametrize("name", ["gfn", "pages", "levels"])
def test_missing_column(pae: Copy, name: str) -> None:
    pae.columns(lambda columns: columns.pop(name) is None)
    assert pae.refused().startswith(f"no column '{name}', it has ")


@pytest.mark.parametrize(("name", "dtype"), [("gfn", "int64"), ("pages", "uint32"), ("levels", "uint64")])
def test_wrong_dtype(pae: Copy, name: str, dtype: str) -> None:
    pae.columns(lambda columns: columns.update({name: columns[name].astype(dtype)}))
    assert pae.refused().startswith(f"{name} is {dtype}, expected ")


def test_wrong_shape(pae: Copy) -> None:
    pae.columns(lambda columns: columns.update(pages=columns["pages"][:, :511]))
    assert pae.refused().startswith("column 'pages' has shape (25, 511); write it as (n, 512)")


def test_different_lengths(pae: Copy) -> None:
    pae.columns(lambda columns: columns.update(levels=columns["levels"][1:]))
    assert pae.refused().startswith("columns of different lengths (gfn 25, pages 25, levels 24)")


def test_address_beyond_ram(pae: Copy) -> None:
    def move(columns: dict[str, np.ndarray]) -> None:
        columns["gfn"][3] = 1 << 18

    pae.columns(move)
    assert pae.refused().startswith("gfn[3] 0x40000 is beyond the RAM of 0x40000000 bytes")


def test_page_named_twice(pae: Copy) -> None:
    def repeat(columns: dict[str, np.ndarray]) -> None:
        columns["gfn"][3] = columns["gfn"][4]

    pae.columns(repeat)
    assert "names a page twice" in pae.refused()


def test_table_that_is_not_there(pae: Copy) -> None:
    pae.columns(lambda columns: columns.update({name: array[:-1] for name, array in columns.items()}))
    line = pae.refused()
    assert "is not in column 'gfn'; take the snapshot again" in line
    assert line.startswith("entry ")


def test_root_that_is_not_there(pae: Copy) -> None:
    pae.description(lambda about: about.update(cr3="0x2000"))
    assert pae.refused().startswith("gfn 0x2, the root's page by cr3 0x2000, is not in column 'gfn'")


def test_levels_of_another_snapshot(pae: Copy) -> None:
    def change(columns: dict[str, np.ndarray]) -> None:
        columns["levels"][7] = 1 << 4

    pae.columns(change)
    line = pae.refused()
    assert line.startswith("levels[7] of gfn ")
    assert "is 0x10" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mode": "six"}, "field 'mode' is \"six\"; it must be one of nonpae, pae, 4level, 5level"),
        (
            {"cr4": "0x0"},
            "field 'mode' is \"pae\"; it must be that of cr0, cr4 and efer, which select 32 paging",
        ),
        ({"cr3": "what"}, "field 'cr3' is \"what\"; it must be a number such as 31 or '0x1f'"),
        ({"cr3": -1}, "field 'cr3' is -1; it must be an unsigned number of 64 bits"),
        ({"cr3": None}, "field 'cr3' is null; it must be an unsigned number of 64 bits"),
        ({"cpl": 5}, "field 'cpl' is 5; it must be an unsigned number of 2 bits"),
        ({"kernel": 6}, "field 'kernel' is 6; it must be a text"),
        ({"truth": {}}, "field 'truth' is {}; it must be a list of objects"),
        ({"leaf_entries_by_walker": []}, "field 'leaf_entries_by_walker' is []; it must be an object of"),
    ],
)
def test_wrong_description(pae: Copy, change: dict[str, Any], said: str) -> None:
    pae.description(lambda about: about.update(change))
    assert pae.refused().startswith(said)


@pytest.mark.parametrize("name", ["mode", "cr0", "maxphyaddr", "ram_bytes", "truth", "kernel", "cpl"])
def test_description_without_a_field(pae: Copy, name: str) -> None:
    pae.description(lambda about: about.pop(name) is None)
    assert pae.refused().startswith(f"no field '{name}'")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gva": "0x100000000"}, "'gva' is \"0x100000000\"; it must be a canonical address of pae paging"),
        ({"gpa": "0x10000000000000"}, "'gpa' is "),
        ({"size": 4194304}, "'size' is 4194304; it must be the size of a page in pae paging"),
        ({"flags": "WU"}, "'flags' is \"WU\"; it must be XGPDACTUW with '-' for a clear bit"),
    ],
)
def test_wrong_truth(pae: Copy, change: dict[str, Any], said: str) -> None:
    pae.description(lambda about: about["truth"][17].update(change))
    assert pae.refused().startswith(f"truth[17]: field {said}")


@pytest.mark.parametrize(("text", "said"), [('{"mode": "pae"', "cut, or no JSON"), ("[]", "no JSON object")])
def test_truncated_description(pae: Copy, text: str, said: str) -> None:
    pae.json.write_text(text, "utf-8")
    assert pae.refused().startswith(said)
