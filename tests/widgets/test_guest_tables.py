"""Figures of a guest's page tables: what they count is what the snapshot's own program counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from mmulab.widgets.guest_tables import directory_map, leaf_flags, size_str
from mmulab.workload.snapshot import load_snapshot


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (1, "1 bytes"),
        (32, "32 bytes"),
        (4096, "4 KiB"),
        (6 << 20, "6 MiB"),
        (1 << 30, "1 GiB"),
        (1 << 48, "256 TiB"),
    ],
)
def test_sizes(size: int, shown: str) -> None:
    assert size_str(size) == shown


@pytest.mark.parametrize(
    ("name", "size", "letter"),
    [("linux-686-nonpae-1", "4 MiB", "4M"), ("linux-amd64-4l-1", "2 MiB", "2M")],
)
def test_leaf_counts(root: Path, name: str, size: str, letter: str) -> None:
    counted = json.loads((root / f"data/snapshots/{name}.json").read_text("utf-8"))["leaf_entries_by_walker"]
    svg = str(leaf_flags(load_snapshot(root / f"data/snapshots/{name}.npz")).svg)
    tips = dict(re.findall(r"<title>([^<:]+): ([\d,]+)</title>", svg))
    assert int(tips[f"{size} pages (level 2)"].replace(",", "")) == counted[letter]
    assert int(tips["4 KiB pages (level 1)"].replace(",", "")) == counted["4K"]
    assert {label.split(", ")[-1] for label in tips if ", " in label} == {
        "user",
        "writable",
        "NX",
        "accessed",
        "dirty",
        "global",
    }


def test_directory_map_has_a_cell_for_each_entry(root: Path) -> None:
    name = "linux-686-nonpae-1"
    about = json.loads((root / f"data/snapshots/{name}.json").read_text("utf-8"))
    figure = directory_map(load_snapshot(root / f"data/snapshots/{name}.npz"))
    kinds = Counter(kind for _, kind in re.findall(r"<title>(\d+): ([^<]+)</title>", str(figure.svg)))
    assert kinds.total() == 1024
    large = kinds["4 MiB page, supervisor"] + kinds["4 MiB page, user"]
    assert large == about["leaf_entries_by_walker"]["4M"]
    assert kinds["page table"] == about["table_pages_by_level"]["1"]
    assert f"gfn {int(about['cr3'], 16) >> 12:#x}" in figure.svg.title


def test_directory_map_passes_over_a_directory_of_one_entry(root: Path) -> None:
    snapshot = load_snapshot(root / "data/snapshots/linux-amd64-4l-1.npz")
    figure = directory_map(snapshot)
    kinds = [kind for _, kind in re.findall(r"<title>(\d+): ([^<]+)</title>", str(figure.svg))]
    assert len(kinds) == 512
    assert "2 MiB page, supervisor" in kinds
    (gfn,) = re.findall(r"gfn (0x\w+)", figure.svg.title)
    assert len(set(snapshot.entries(int(gfn, 16) << 12, 2).tolist())) > 50
