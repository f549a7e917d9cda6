"""notebooks/role_designs.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmulab.lab.cases.works import find_works
from mmulab.report import result
from mmulab.report.page import export, remote_references
from mmulab.report.parameters import declared
from mmulab.report.results import Table, harvest
from tests.notebooks.conftest import Opened, Papermill, Refusal
from tests.reported import Reports

NAME = "role_designs"
SWITCHES = [f"la57-switch-npt-{way}-l0-5" for way in ("4to5", "5to4")]


def tables(notebook: Any) -> dict[str, Table]:
    return {table.name: table for table in harvest(notebook)}


@pytest.mark.slow
def test_defaults(papermill: Papermill, root: Path) -> None:
    done = papermill(NAME)
    assert done.returncode == 0, done.stderr
    found = tables(done.notebook)
    assert [row[0] for row in found["designs"].rows] == [f"D{number}" for number in range(9)]
    patterns = declared(root / "notebooks" / f"{NAME}.ipynb")["cases"].default.split(",")
    works = {case.name for case in find_works([*patterns, "conformance/6.1.192/sh/mode-switch"])}
    assert len(works) < sum(row[1] for row in found["matrix"].rows) <= len(works) + 6
    wrong = [dict(zip(found["wrong"].columns, row, strict=True)) for row in found["wrong"].rows]
    blamed = {row["case"]: row["designs"] for row in wrong if not row["today's word too"]}
    assert [blamed[name] for name in SWITCHES] == ["D0, D8†", "D0, D8†"]
    # D1 to D6 are wrong where Linux 6.1 itself is, and nowhere else.
    assert {name for names in blamed.values() for name in names.replace("†", "").split(", ")} <= {
        "D0",
        "D7",
        "D8",
    }
    assert done.last_line.startswith("tenth design: wrong in ")
    page = export(done.notebook, NAME)
    assert remote_references(page) == []
    assert "class='live-only'" not in page, "everything interactive has a still picture"
    assert len(page) < 4_000_000


def test_few_cases_and_a_design_of_ones_own(reported: Reports) -> None:
    found = reported(NAME).tables
    assert found["matrix"].columns == ("kind", "cases", "M", "D5", "D8", "D4")
    sentence = result.harvest(reported(NAME).notebook).sentence
    assert "D8 wrong in " in sentence
    assert sentence.endswith(f" of {sum(row[1] for row in found['matrix'].rows)} cases")
    blamed = [tuple(row[:3]) for row in found["wrong"].rows if not row[-1]]
    assert blamed == [(name, "M, D8†", 8) for name in SWITCHES]
    costs = {row[0]: dict(zip(found["costs"].columns, row, strict=True)) for row in found["costs"].rows}
    assert costs["D4 passthrough"]["more than D4"] == 0
    assert costs["D5 cpu_mode"]["more than D4"] >= 4, "mode-switch is always run"
    verdicts = {row[0]: tuple(row[1:3]) for row in found["derivations"].rows}
    assert verdicts.pop("copied") == ("wrong", 9657)
    assert set(verdicts.values()) == {("correct", None)}
    tenth = {row[0]: row[1:3] for row in found["tenth"].rows}
    assert {name for name, (_, verdict) in tenth.items() if verdict == "wrong"} == {
        name for name in tenth if "wp-" in name
    }
    assert all(switches for switches, verdict in tenth.values() if verdict == "wrong")
    wrong = [tuple(row[:2]) for row in found["roots"].rows if row[2] == "wrong"]
    assert wrong == [("portal-switch-npt-l0-5", "shadow")], "the merged bit alone"
    assert {row[0] for row in found["roots"].rows if row[3] == "wrong"} == {"la57-switch-npt-4to5-l0-5"}
    assert {row[4] for row in found["roots"].rows} == {"correct"}


def test_seed_draws_recordings_and_nothing_else_changes(opened: Opened) -> None:
    given = {"designs": "D4", "cases": "la57-switch-npt-4to5-l0-5", "root_strategy": "one_off"}
    first, again, other = (opened(NAME, until="found", seed=seed, **given) for seed in (1, 1, 2))
    assert first["drawn"] == again["drawn"] != other["drawn"]
    assert len(set(other["drawn"])) == 6
    assert str(first["found"].cells) == str(again["found"].cells)
    fixed = [str(run["found"].cells[:2]) for run in (first, other)]
    assert fixed[0] == fixed[1]
    assert [cell.case for cell in other["found"].cells[2:]] == other["drawn"]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"designs": "D0,D99"}, "role design 'D99': unknown; the designs are D0 pre_fix"),
        ({"cases": "la57-*,nothing"}, "case 'nothing': unknown"),
        ({"derivation": "guessed"}, "parameter 'derivation' is 'guessed'; it must be one of parity, copied"),
        ({"root_strategy": "none"}, "parameter 'root_strategy' is 'none'; it must be one of special, shadow"),
        ({"seed": -1}, "parameter 'seed' is -1; it must be an integer of at least 0"),
        ({"design": "D0"}, "unknown parameter 'design'; the notebook has designs, cases, kernel, derivation"),
    ],
    ids=["designs", "cases", "derivation", "roots", "seed", "unknown"],
)
def test_bad_parameters_are_refused(refusal: Refusal, parameters: dict[str, object], says: str) -> None:
    assert refusal(NAME, **parameters).startswith(says)
