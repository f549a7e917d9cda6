"""The walk against the translations of the snapshots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mmulab.workload.snapshot import Snapshot, Truth, load_snapshot
from mmulab.workload.translate import Difference, tlb_flags, translate, translate_files, translate_snapshot
from mmulab.x86.batch import walk_each

if TYPE_CHECKING:
    from tests.conftest import CommandLine

DATA = Path(__file__).resolve().parents[2] / "data" / "snapshots"
FILES = sorted(DATA.glob("*.npz"))
FOUR = DATA / "linux-amd64-4l-1.npz"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_sampled_translation_agrees(path: Path) -> None:
    translation = translate_snapshot(load_snapshot(path))
    assert not translation.differences
    assert translation.agree == translation.total == 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_compiled_walk_agrees_too(path: Path) -> None:
    snapshot = load_snapshot(path)
    frames = np.zeros((int(snapshot.gfn.max()) + 1, 512), np.uint64)
    frames[snapshot.gfn.astype(np.int64)] = snapshot.pages
    gvas = [truth.gva for truth in snapshot.truth]
    pa, errors = walk_each(
        frames, snapshot.paging, snapshot.cr3, gvas, np.zeros(len(gvas)), not_smap=np.ones(len(gvas))
    )
    for truth, reached, error in zip(snapshot.truth, pa.tolist(), errors.tolist(), strict=True):
        assert (None if error == 0 else reached) == truth.gpa
        assert error in (0, -1)


def test_the_samples_hold_pages_of_several_sizes_and_unmapped_addresses() -> None:
    truths = [truth for path in FILES for truth in load_snapshot(path).truth]
    assert {truth.size for truth in truths} >= {1 << 12, 1 << 21, 1 << 22, None}
    assert sum(truth.gpa is None for truth in truths) > 100
    assert sum(truth.flags is not None for truth in truths) > 3000


def with_truth(snapshot: Snapshot, truth: Truth) -> Snapshot:
    return replace(snapshot, truth=(truth,))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("gpa", {"gpa": 0x1000}),
        ("gpa", {"gpa": None}),
        ("size", {"size": 1 << 30}),
        ("flags", {"flags": "-" * 9}),
    ],
)
def test_a_wrong_record_is_a_difference(field: str, change: dict[str, object]) -> None:
    snapshot = load_snapshot(FOUR)
    truth = snapshot.truth[0]
    assert truth.flags is not None
    spoilt = translate_snapshot(with_truth(snapshot, truth._replace(**change)))  # type: ignore[arg-type]
    assert (spoilt.agree, spoilt.total) == (0, 1)
    (difference,) = spoilt.differences
    assert (difference.gva, difference.field) == (truth.gva, field)
    assert difference.recorded != difference.walked


def test_each_bit_of_a_leaf_counts() -> None:
    snapshot = load_snapshot(FOUR)
    truth = next(truth for truth in snapshot.truth if truth.size == 1 << 21)
    w = translate(snapshot, truth.gva)
    assert w.level == 2
    row, word = snapshot.row[w.entry_addr[2] >> 12], (w.entry_addr[2] & 0xFFF) >> 3
    for bit in (1, 2, 3, 4, 5, 6, 8, 63):
        pages = snapshot.pages.copy()
        pages[row, word] ^= np.uint64(1 << bit)
        (difference,) = translate_snapshot(replace(with_truth(snapshot, truth), pages=pages)).differences
        assert difference.field == "flags"


def test_an_unmapped_address_that_is_mapped_is_a_difference() -> None:
    snapshot = load_snapshot(FOUR)
    unmapped = next(truth for truth in snapshot.truth if truth.gpa is None)
    spoilt = translate_snapshot(with_truth(snapshot, unmapped._replace(gpa=0x5000)))
    assert spoilt.differences == (Difference(unmapped.gva, "gpa", "0x5000", "unmapped"),)


@pytest.mark.parametrize(
    ("entry", "level", "flags"),
    [
        (0x163, 1, "-G-DA---W"),
        (0x8000000000000025, 1, "X---A--U-"),
        (0x80000000000001E3, 2, "XGPDA---W"),
        (0xF9, 1, "---DACT--"),
    ],
)
def test_flags_are_written_as_by_the_monitor(entry: int, level: int, flags: str) -> None:
    assert tlb_flags(entry, level) == flags


def test_files_are_summed_in_their_order() -> None:
    seen = []
    summary = translate_files(FILES[:3], lambda translation: seen.append(translation.snapshot.name))
    assert (summary.agree, summary.total, summary.snapshots) == (600, 600, 3)
    assert seen == [path.stem for path in FILES[:3]]


def test_command_ends_with_the_count(command: CommandLine) -> None:
    done = command("translate", *FILES)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == len(FILES) + 1
    assert (
        lines[-1]
        == f"translate: {200 * len(FILES)}/{200 * len(FILES)} addresses agree in {len(FILES)} snapshots"
    )
    masked = [line for line in lines if "bit 5 masked in" in line]
    assert len(masked) == sum("686-pae" in path.stem for path in FILES)


def test_command_in_json(command: CommandLine) -> None:
    answer = json.loads(command("translate", "--json", FOUR).stdout)
    assert (answer["agree"], answer["total"]) == (200, 200)
    assert answer["snapshots"][0]["mode"] == "4level"


def test_command_fails_where_an_address_disagrees(command: CommandLine, tmp_path: Path) -> None:
    spoilt = tmp_path / FOUR.name
    spoilt.write_bytes(FOUR.read_bytes())
    about = json.loads(FOUR.with_suffix(".json").read_text("utf-8"))
    for record in about["truth"][:12]:
        record["gpa"] = "0x123000"
    spoilt.with_suffix(".json").write_text(json.dumps(about), "utf-8")
    done = command("translate", spoilt)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("linux-amd64-4l-1: 188/200 agree")
    assert f"{int(about['truth'][0]['gva'], 0):#x}: gpa recorded 0x123000, walked 0x" in lines[1]
    assert lines[-2:] == ["  and 2 more", "translate: 188/200 addresses agree in 1 snapshots"]


def test_command_refuses_bad_input_in_one_line(command: CommandLine, tmp_path: Path) -> None:
    assert command.error("translate", tmp_path / "none.npz") == f"{tmp_path / 'none.npz'}: no such file"
