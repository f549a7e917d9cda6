"""notebooks/record_and_compare.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.lab.kernel_run import find_work, obstacle
from mmulab.report import result
from mmulab.report.page import export, remote_references
from mmulab.report.results import Table, harvest
from tests.notebooks.conftest import Executed, Papermill, Refusal
from tests.reported import Reports

NAME = "record_and_compare"
DIFFER = [-1, 0, 3, 12, 13, 16, 20, 23]
"""Ops of the default scenario in which the two kernels differ."""


def tables(done: Executed) -> dict[str, Table]:
    assert done.returncode == 0, done.stderr
    return {table.name: table for table in harvest(done.notebook)}


def test_defaults_from_recordings(reported: Reports) -> None:
    done = reported(NAME)
    found = done.tables
    assert list(found) == ["ops", "other_ops", "kinds", "changes", "conformance"]
    assert all(row[-1] for row in found["ops"].rows)
    assert [row[0] for row in found["other_ops"].rows if not row[-1]] == DIFFER
    sh = next(row for row in found["conformance"].rows if row[1] == "sh")
    assert sh[2] == sh[3] == sh[4] > 100, "all recordings of the folder are compared and agree"
    assert sh[7] == sh[8] > 100_000, "in every event"
    sentence = result.harvest(done.notebook).sentence
    assert sentence.startswith(f"Linux 6.1.192 and the model: All {len(found['ops'].rows)} ops agree")
    assert {row[1] for row in found["changes"].rows} >= {"e6722d9211b2", "9fd4a4e3a3d9"}
    page = done.html
    assert remote_references(page) == []
    assert "not recorded anew: record is 'never'" in page
    assert "recorded before: data/conformance/6.1.192/sh/shared-pt-32.jsonl.xz" in page
    assert "class='live-only'" not in page, "everything interactive has a still picture"
    assert "op 0, event 3" in page, "the stepper stands in the op that is open"
    assert len(page) < 1_000_000
    assert done.last_line == (
        "the model of 6.1.192 and Linux 6.12.117: 8 of 25 ops differ; events: 25, outcomes and statistics: 6"
    )


def test_what_another_model_does_otherwise_is_found(papermill: Papermill) -> None:
    given = {"scenario": "sh/quadrants-32", "design": "D5", "derivation": "copied", "op": "first"}
    done = papermill(NAME, record="never", other_kernel="-", recordings="-", **given)
    found = tables(done)
    assert list(found) == ["ops"]
    agrees = [row[-1] for row in found["ops"].rows]
    assert agrees[0], "role words are other ones from the first root on, and do not count"
    assert not all(agrees)
    assert "no other kernel is asked for" in json.dumps(done.notebook.cells)


def test_an_intel_host_is_not_waited_for_so_it_is_read(papermill: Papermill) -> None:
    done = papermill(NAME, scenario="conformance/6.1.192/nested-ept/ept-basic-noad", recordings="-")
    assert all(row[-1] for row in tables(done)["ops"].rows)
    page = export(done.notebook, NAME)
    assert "not recorded anew: an Intel host takes minutes to boot; record 'always' waits for it" in page
    assert "an Intel machine in Bochs" in page


@pytest.mark.slow
def test_recorded_now(papermill: Papermill) -> None:
    """As the recordings in data have it, to the byte of the table."""
    scenario = "sh/mmio-pae"
    for kernel in ("6.1.192", "6.12.117"):
        if why := obstacle(find_work(scenario, kernel), kernel, waits=False):
            pytest.skip(f"recording on {kernel}: {why}")
    given = {"scenario": scenario, "op": "first", "recordings": "-"}
    done = papermill(NAME, record="always", **given)
    now = {name: table.csv() for name, table in tables(done).items()}
    assert "recorded just now" in export(done.notebook, NAME)
    assert " on amd, 5-level, npt=0: up in " in json.dumps(done.notebook.cells)
    assert "up in" not in "".join(now.values())
    before = tables(papermill(NAME, record="never", **given))
    assert now == {name: table.csv() for name, table in before.items()}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"record": "maybe"}, "parameter 'record' is 'maybe'; it must be one of auto, never, always"),
        ({"kernel": "5.0.1", "record": "never"}, "and data has no recording of it on 5.0.1"),
        (
            {"scenario": "ept0-pml/basic-32", "record": "always"},
            "record 'always': its processor tells more of EPT violations",
        ),
        ({"other_kernel": "6.1.192", "record": "never"}, "kernels 6.1.192 and 6.1.192 are the same"),
        ({"op": 99, "record": "never"}, "op '99': neither first nor most nor one of -1 to 23"),
        (
            {"seed": 1},
            "unknown parameter 'seed'; the notebook has scenario, kernel, record, other_kernel, op",
        ),
    ],
    ids=["record", "kernel", "always", "same", "op", "unknown"],
)
def test_bad_parameters_are_refused(refusal: Refusal, given: dict[str, object], says: str) -> None:
    assert says in refusal(NAME, **given)


def test_cell_ids_are_numbers(root: Path) -> None:
    notebook = json.loads((root / "notebooks" / f"{NAME}.ipynb").read_text("utf-8"))
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{n}" for n in range(len(notebook["cells"]))]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
