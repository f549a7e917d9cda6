"""notebooks/known_bugs.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

import pytest

from mmulab.kvm.bugs import BUGS
from mmulab.report.page import export, remote_references
from tests.notebooks.conftest import Papermill, Refusal
from tests.reported import Reports


def test_found_stepped_and_not_found(reported: Reports) -> None:
    done = reported("known_bugs")
    tables = done.tables
    assert [row[0] for row in tables["catalogue"].rows] == list(BUGS)
    assert all(row[-1] for row in tables["sequences"].rows), "a saved sequence shows its bug"
    assert done.last_line == "switches: found 1 of 2"
    said = done.notebook.cells[-1].outputs[0]["text"].splitlines()[0]
    assert said.startswith("B17: found in paths-32 after")
    page = done.html
    assert remote_references(page) == []
    assert "In JupyterLab an interactive control stands here" not in page
    for words in (
        "The search for B17: states so far",
        "Without B17: the same outcome, and nothing is wrong.",
        "with its fix",
        "B28: not found in",
        "Time to find each bug",
    ):
        assert words in page
    assert " seconds: " not in page, "no progress stays"


@pytest.mark.slow
def test_defaults(papermill: Papermill) -> None:
    done = papermill("known_bugs")
    assert done.returncode == 0, done.stderr
    page = export(done.notebook, "known_bugs")
    assert remote_references(page) == []
    assert "The search for B13: states so far" in page
    assert len(page) < 4_000_000


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"bug": "B6"}, "parameter 'bug' is 'B6'; it must be one of B1, B2, "),
        ({"kernel": "2.4.9"}, "parameter 'kernel' is '2.4.9'; it must be one of "),
        ({"places": "nowhere"}, "scope 'nowhere': unknown"),
        ({"switches": "B17,B99"}, "bug 'B99': unknown"),
        ({"budget": 0}, "parameter 'budget' is 0; it must be a number of at least 0.1"),
        ({"sequence": "mine"}, "parameter 'sequence' is 'mine'; it must be one of saved, found"),
        ({"jobs": 2}, "unknown parameter 'jobs'; the notebook has bug, kernel, places, "),
    ],
)
def test_bad_parameters_are_refused(refusal: Refusal, given: dict[str, object], says: str) -> None:
    assert refusal("known_bugs", **given).startswith(says)
