"""``mmulab results`` as a user calls it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pyarrow import parquet

from mmulab.cli.main import run
from mmulab.report.results import Table
from tests.report.folders import Made, make_folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two runs with one table."""
    tables = [Table("t", ["name", "n"], [["a\x1b[1m", 5], [None, 12345]])]
    return make_folder(tmp_path / "out", Made("r1", tables, {"seed": 1}), Made("r2", tables, {"seed": 2}))


def test_lists_tables(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["results", str(out)]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.split() == ["table", "runs", "rows", "columns"]
    assert second.split(maxsplit=3) == ["t", "2", "4", "run string, p_seed int64, name string, n int64"]


def test_answers_in_each_form(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select name, n, n / 0 as x from t where run = 'r1'"
    assert run(["results", str(out), sql]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name          n    x",
        "a\\x1b[1m      5  inf",
        "          12345  inf",
    ]
    assert run(["results", str(out), sql, "--csv"]) == 0
    assert capsys.readouterr().out == "name,n,x\na\x1b[1m,5,inf\n,12345,inf\n"
    assert run(["results", str(out), sql, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "a\x1b[1m", "n": 5, "x": None},
        {"name": None, "n": 12345, "x": None},
    ]
    assert run(["results", str(out), sql, "--parquet", str(tmp_path / "x.parquet")]) == 0
    assert capsys.readouterr().out == ""
    assert parquet.read_table(tmp_path / "x.parquet").to_pydict() == {
        "name": ["a\x1b[1m", None],
        "n": [5, 12345],
        "x": [math.inf, math.inf],
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{out}", "selec"], "mmulab: query 'selec': Parser Error: "),
        (["{out}/none"], "/none: no such folder; name what 'mmulab sweep' or 'mmulab report' wrote"),
        (["{out}/r1", "select 1"], "/r1: no sweep or report of mmulab (no sweep.json)"),
        (["{out}", "copy t to '{out}/x'"], "only SELECT is answered"),
        (["{out}", "select 1", "--csv", "--parquet", "x"], "leave out --csv and --json"),
        (["{out}", "select 1", "--parquet", "{out}/none/x"], "/none/x: cannot be written"),
        ([], "Missing argument 'FOLDER'"),
    ],
)
def test_bad_input_is_one_line(
    out: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert run(["results", *(word.format(out=out) for word in arguments)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.count("\n") == 1
