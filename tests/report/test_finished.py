"""Folders read back: the runs in their order, and their tables one below the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.errors import InputError
from mmulab.report.finished import Error, joined, read_sweep, unlike
from mmulab.report.results import Table
from tests.report.folders import Made, make_folder


def columns_of(folder: Path, name: str) -> dict[str, list[object]]:
    (found,) = (table for table in joined(folder, read_sweep(folder)) if table.name == name)
    return {column: values.to_pylist() for column, values in found.columns.items()}


def test_runs_in_order_with_what_they_came_to(tmp_path: Path) -> None:
    error = {"type": "ValueError", "message": "no", "cell": 3, "traceback": "Traceback"}
    out = make_folder(
        tmp_path / "out",
        Made("b", result="all right", seconds=2.5, title="The b", parameters={"n": 1}, seed=7),
        Made("a", state="failed", error=error),
        Made("c", state="missing", parameters={"n": 2, "m": "x"}),
    )
    sweep = read_sweep(out)
    assert [(run.id, run.state, run.seconds, run.sentence) for run in sweep.runs] == [
        ("b", "done", 2.5, "all right"),
        ("a", "failed", 1.5, None),
        ("c", "missing", None, None),
    ]
    assert [run.title for run in sweep.runs] == ["The b", "small", "small"]
    assert sweep.runs[1].error == Error("ValueError", "no", 3, "Traceback")
    assert sweep.parameters == ("n", "m")
    assert not sweep.is_report
    assert read_sweep(make_folder(tmp_path / "report", Made("small"))).is_report


def test_tables_of_all_runs_one_below_the_other(tmp_path: Path) -> None:
    out = make_folder(
        tmp_path / "out",
        Made("r1", [Table("t", ["a", "b"], [[1, "x"], [2, None]])], {"n": 1}),
        Made("r2", [Table("u", ["a"], [[0.5]])], {"n": 2}),
        Made("r3", [Table("t", ["a", "c"], [[3, True]]), Table("u", ["a"], [[1]])], {"m": "z"}),
    )
    assert columns_of(out, "t") == {
        "run": ["r1", "r1", "r3"],
        "p_n": [1, 1, None],
        "p_m": [None, None, "z"],
        "a": [1, 2, 3],
        "b": ["x", None, None],
        "c": [None, None, True],
    }
    assert columns_of(out, "u")["a"] == [0.5, 1.0], "an int that a double holds becomes one"


def test_column_that_is_of_two_kinds_becomes_words(tmp_path: Path) -> None:
    out = make_folder(
        tmp_path / "out",
        Made("r1", [Table("t", ["a", "b"], [[1, None]])]),
        Made("r2", [Table("t", ["a", "b"], [["x", 2**64 - 1]])]),
    )
    found = columns_of(out, "t")
    assert found["a"] == ["1", "x"]
    assert found["b"] == [None, 2**64 - 1], "only None is of no kind"


def test_names_that_sql_cannot_tell_apart(tmp_path: Path) -> None:
    rows = [[1, 2, 3, 4]]
    table = Table("t", ["run", "gva", "GVA", "p_n"], rows)
    out = make_folder(tmp_path / "out", Made("r", [table], {"n": 5}))
    found = columns_of(out, "t")
    assert found == {"run": ["r"], "p_n": [5], "run_2": [1], "gva": [2], "GVA_2": [3], "p_n_2": [4]}


@given(st.lists(st.sampled_from(["a", "A", "a_2", "A_2", "a_3", "b"])), st.sets(st.sampled_from(["a", "B"])))
def test_unlike_names_differ_and_the_first_stays(names: list[str], taken: set[str]) -> None:
    found = unlike(names, taken)
    assert len(found) == len(names)
    assert len({name.casefold() for name in [*found, *taken]}) == len(names) + len(taken)
    if names and names[0].casefold() not in {name.casefold() for name in taken}:
        assert found[0] == names[0]


def test_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_sweep(tmp_path / "none")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}: no sweep or report of mmulab")):
        read_sweep(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sweep.json", "{"),
        ("sweep.json", "[]"),
        ("sweep.json", '{"name": "x", "title": "x", "runs": [{}]}'),
        ("r/status.json", "{}"),
        ("r/manifest.json", "cut"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, file: str, text: str) -> None:
    out = make_folder(tmp_path / "out", Made("r"))
    (out / file).write_text(text, "utf-8")
    with pytest.raises(InputError, match=re.escape(str(out))):
        read_sweep(out)
