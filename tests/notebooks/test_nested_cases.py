"""notebooks/nested_cases.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

import pytest

from mmulab.report import result
from mmulab.report.page import export, remote_references
from mmulab.report.results import harvest
from tests.notebooks.conftest import Papermill, Refusal


def test_a_few_rows_and_another_case(papermill: Papermill) -> None:
    done = papermill("nested_cases", rows="npt-*-l2-pae-l0-5", case="npt-32-l2-pae-l0-5", faults=1)
    assert done.returncode == 0, done.stderr
    notebook = done.notebook
    tables = {table.name: table for table in harvest(notebook)}
    # What was otherwise before the fix stands first.
    assert [row[0] for row in tables["cases"].rows] == [
        f"npt-{l1}-l2-pae-l0-5" for l1 in ("64", "32", "pae", "57")
    ]
    assert [row[-1] for row in tables["cases"].rows] == ["other events", "same", "same", "same"]
    ways = {row[0]: row[1] for row in tables["pages"].rows}
    assert ways["npt-32-l2-pae-l0-5"] == "pml5 pml4 pae 2q1 1q0"
    assert ways["npt-64-l2-pae-l0-5"] == "5p 4 3 2 1"
    verdicts = {tuple(row[:2]): row[2] for row in tables["la57_switch"].rows}
    wrong = [key for key, verdict in verdicts.items() if verdict == "wrong"]
    assert wrong == [(f"la57-switch-npt-{way}-l0-5", "pre_fix") for way in ("4to5", "5to4")]
    page = export(notebook, "nested_cases")
    assert remote_references(page) == []
    assert "FOUND" in page
    assert notebook.cells[-1].outputs[0]["text"].splitlines()[0] == "cases: 4, correct: 4"
    assert result.harvest(notebook).sentence == "4 of 4 cases correct; before the fix 0 of them wrong"
    assert (
        "<summary>shadow of L1's NPT: 4; verdict: 4 correct; before the fix: 1 other events, 3 same</summary>"
        in page
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"case": "npt-64"}, "parameter 'case' is 'npt-64'; it must be one of la57-switch-npt-4to5-l0-5"),
        ({"rows": "nothing-*"}, "case 'nothing-*': unknown"),
        ({"faults": 0}, "parameter 'faults' is 0; it must be an integer of at least 1 and at most 12"),
        ({"fault": 1}, "unknown parameter 'fault'; the notebook has case, rows, faults"),
    ],
    ids=["case", "rows", "faults", "unknown"],
)
def test_bad_parameters_are_refused(refusal: Refusal, given: dict[str, object], says: str) -> None:
    assert refusal("nested_cases", **given).startswith(says)
