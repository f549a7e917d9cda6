"""notebooks/step_a_fault.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.report import result
from mmulab.report.page import remote_references
from mmulab.report.results import harvest
from tests.notebooks.conftest import Papermill, Refusal
from tests.reported import Reports

NAME = "step_a_fault"


def test_tour_runs(reported: Reports) -> None:
    done = reported(NAME)
    assert done.last_line.startswith("4-level paging, seed 2: 11 ops, ")
    assert done.last_line.endswith("1 pages out of sync")
    faults = sum(row[3] for row in done.tables["ops"].rows)
    shown = result.harvest(done.notebook)
    assert shown
    assert shown.sentence == (
        f"{len(done.tables['ops'].rows)} ops, {faults} page faults, 1 page out of sync (4-level paging)"
    )
    assert shown.picture
    html = done.html
    assert remote_references(html) == []
    assert "class='live-only'" not in html, "everything interactive has a still picture"


def test_readers_own_ops_run_in_another_mode(papermill: Papermill) -> None:
    done = papermill(NAME, mode="32-bit", extra="wr s 8 {entry} 0; invlpg {data}; rd u {data}")
    assert done.returncode == 0, done.stderr
    (table,) = harvest(done.notebook)
    assert len(table.rows) == 12
    assert table.rows[-1][1].startswith("rd u ")
    assert "the guest gets #PF" in json.dumps(done.notebook.cells), (
        "the page is gone: the fault is the guest's"
    )


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"mode": "x"}, "parameter 'mode' is 'x'; it must be one of 32-bit, pae, 4-level, 5-level"),
        ({"extra": "fly 1"}, "op 'fly 1': unknown op 'fly'"),
        ({"sed": 1}, "unknown parameter 'sed'; the notebook has mode, seed, extra"),
    ],
    ids=["mode", "op", "unknown"],
)
def test_bad_parameters_are_refused(refusal: Refusal, parameters: dict[str, object], says: str) -> None:
    assert refusal(NAME, **parameters).startswith(says)


@pytest.mark.parametrize("name", ["first_fault", "step_a_fault"])
def test_cell_ids_are_numbers(root: Path, name: str) -> None:
    notebook = json.loads((root / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{n}" for n in range(len(notebook["cells"]))]
