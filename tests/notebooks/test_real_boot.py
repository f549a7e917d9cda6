"""notebooks/real_boot.ipynb at a small limit: its tables, its stops, its refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mmulab.report.page import remote_references
from mmulab.workload.replay import Replay
from mmulab.workload.stream import load_stream
from tests.conftest import CommandLine
from tests.notebooks.conftest import Papermill, Refusal
from tests.reported import GIVEN, report

LIMIT = GIVEN["real_boot"]["limit"]
TABLES = {"counts.csv", "guest_tables.csv", "roles.csv", "snapshots.csv"}


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "real_boot" / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page(folder: Path) -> str:
    return (folder / "real_boot" / "real_boot.html").read_text("utf-8")


def test_counts_are_those_of_the_replay(boot_report: Path, root: Path) -> None:
    result = Replay(load_stream(root / "data/stream/boot-686-nonpae.npz"), limit=LIMIT).run()
    counts = {row["count"]: int(row["value"]) for row in rows(boot_report, "counts")}
    assert counts["accesses"] == counts["accesses that agree"] == result.accesses
    assert counts["page faults taken by KVM"] == sum(result.faults.values()) > 100
    assert counts["shadow pages created"] == result.shadow_pages
    assert {name: counts.get(name, 0) for name in result.stats} == result.stats
    last = f"replay: accesses {result.agree}/{result.accesses} agree, faults {sum(result.faults.values())}"
    assert last in page(boot_report)
    assert f'<p class="result">0 of {result.accesses:,} accesses wrong</p>' in page(boot_report)


def test_every_quadrant_is_there(boot_report: Path) -> None:
    roles = [row["as the trace prints it"].split()[:3] for row in rows(boot_report, "roles")]
    assert {quadrant for level, _, quadrant in roles if level == "l2"} == {"q0", "q1", "q2", "q3"}
    assert {quadrant for level, _, quadrant in roles if level == "l1"} == {"q0", "q1"}
    assert {width for _, width, _ in roles} == {"4-byte"}


def test_all_snapshots_agree(boot_report: Path, root: Path) -> None:
    names = [path.stem for path in sorted((root / "data/snapshots").glob("*.npz"))]
    found = rows(boot_report, "snapshots")
    assert [row["snapshot"] for row in found] == names
    assert all(row["agree"] == row["addresses"] == "200" for row in found)
    assert f"translate: {200 * len(names)}/{200 * len(names)} addresses agree" in page(boot_report)


def test_guest_tables_are_those_its_snapshot_counted(boot_report: Path, root: Path) -> None:
    about = json.loads((root / "data/snapshots/linux-686-nonpae-1.json").read_text("utf-8"))
    leaves = {row["leaf maps"]: int(row["leaves"]) for row in rows(boot_report, "guest_tables")}
    assert leaves == {
        "4 MiB": about["leaf_entries_by_walker"]["4M"],
        "4 KiB": about["leaf_entries_by_walker"]["4K"],
    }


def test_page_needs_nothing_from_elsewhere(boot_report: Path) -> None:
    assert remote_references(page(boot_report)) == []
    assert {path.name for path in (boot_report / "real_boot/tables").iterdir()} == TABLES
    inputs = json.loads((boot_report / "real_boot/manifest.json").read_text("utf-8"))["inputs"]
    assert "data/stream/boot-686-nonpae.npz" in inputs
    assert sum(name.startswith("data/snapshots/") for name in inputs) == 44


def test_progress_leaves_no_trace(boot_report: Path) -> None:
    assert f"{LIMIT:,} of 3,000,000 records" in page(boot_report), "the notebook says what it replays"
    assert f"of {LIMIT:,} records" not in page(boot_report)
    assert "of 22 snapshots" not in page(boot_report)


@pytest.mark.slow
def test_same_again(boot_report: Path, root: Path, tmp_path: Path) -> None:
    again = report([root / "notebooks/real_boot.ipynb"], tmp_path / "again", {"limit": LIMIT}).parent
    for name in sorted(TABLES):
        first, second = (folder / "real_boot/tables" / name for folder in (boot_report, again))
        assert first.read_bytes() == second.read_bytes()
    assert page(again) == page(boot_report)


def test_copied_quadrant_stops_and_shows_where(root: Path, tmp_path: Path) -> None:
    given = {"limit": LIMIT, "derivation": "copied"}
    out = report([root / "notebooks/real_boot.ipynb"], tmp_path / "out", given).parent
    assert "Stopped at record" in page(out)
    assert "guest walk of" in page(out)
    assert "shadow path of" in page(out)
    counts = {row["count"]: int(row["value"]) for row in rows(out, "counts")}
    assert 0 < counts["accesses that agree"] < counts["accesses"]


def test_snapshot_as_source(root: Path, tmp_path: Path) -> None:
    given = {"source": "linux-amd64-5l-1", "limit": LIMIT, "design": "D0", "seed": 7}
    out = report([root / "notebooks/real_boot.ipynb"], tmp_path / "out", given).parent
    counts = {row["count"]: int(row["value"]) for row in rows(out, "counts")}
    assert counts["accesses"] == counts["accesses that agree"] > 5_000
    assert "linux-amd64-5l-1 has entries of 8 bytes: every shadow page has quadrant 0." in page(out)
    assert {row["as the trace prints it"][:2] for row in rows(out, "roles")} == {"l5", "l4", "l3", "l2", "l1"}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("design", "D9", "parameter 'design' is 'D9'; it must be one of "),
        ("derivation", "none", "parameter 'derivation' is 'none'; it must be one of parity, copied"),
        ("source", "boot-vax", "parameter 'source' is 'boot-vax'; it must be one of boot-686-nonpae, "),
        ("limit", "0", "parameter 'limit' is 0; it must be an integer of at least 1"),
        ("limit", "3000001", "limit 3000001: boot-686-nonpae has 3000000 records"),
        ("speed", "9", "unknown parameter 'speed'; the notebook has source, limit, "),
    ],
)
def test_bad_parameters_are_refused(refusal: Refusal, name: str, value: str, says: str) -> None:
    assert refusal("real_boot", **{name: value}).startswith(says)


def test_report_refuses_before_it_runs(command: CommandLine) -> None:
    line = command.error("report", "--notebook", "real_boot", "-p", "speed", "9", "--out", "out")
    assert line.startswith(
        "real_boot.ipynb: unknown parameter 'speed'; it has source, limit, kernel, design,"
    )
    assert not list(command.cwd.iterdir())


def test_report_shows_what_the_notebook_refuses(command: CommandLine) -> None:
    done = command("report", "--notebook", "real_boot", "-p", "limit", "3000001", "--out", "out")
    assert (done.returncode, done.stderr) == (1, "")
    said = (
        "InputError: real_boot.ipynb: limit 3000001: boot-686-nonpae has 3000000 records; give 1 to 3000000"
    )
    assert done.stdout.splitlines()[0] == f"real_boot: failed in cell 6: {said}"
    assert done.stdout.splitlines()[1] == "report: 0 of 1 runs done, 1 failed"


def test_plain_papermill_refuses(papermill: Papermill) -> None:
    done = papermill("real_boot", speed="9")
    assert done.returncode == 1
    assert "InputError: unknown parameter 'speed'; the notebook has source, limit, " in done.stderr
