"""Declared parameters, given ones, and the check that a notebook makes itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from papermill import inspect_notebook

from mmulab.errors import InputError
from mmulab.report.parameters import (
    check,
    choice,
    declared,
    flag,
    integer,
    number,
    numbers,
    resolve,
    role_design,
    text,
)

SMALL = Path(__file__).parent / "notebooks" / "small.ipynb"
CELL = """
count: int = -4  # how many
share: float = 1
name = "a # b"  # of whom
deep = True
"""
MakeNotebook = Callable[..., Path]


def test_declared_reads_type_default_and_help(make_notebook: MakeNotebook) -> None:
    found = declared(make_notebook(CELL))
    assert [(p.name, p.type, p.default, p.help) for p in found.values()] == [
        ("count", int, -4, "how many"),
        ("share", float, 1.0, ""),
        ("name", str, "a # b", "of whom"),
        ("deep", bool, True, ""),
    ]


def test_declared_agrees_with_papermill() -> None:
    theirs = inspect_notebook(SMALL)
    ours = declared(SMALL)
    assert {name: (p.type.__name__, p.help) for name, p in ours.items()} == {
        name: (entry["inferred_type_name"], entry["help"]) for name, entry in theirs.items()
    }


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("import os", "line 1 declares no parameter"),
        ("a = 1\nb: list = []", "line 2 has type list"),
        ("a = open", "malformed node"),
        ("a: int = 'x'", "'x' is no int"),
        ("a: int", "line 1 declares no parameter"),
        ("a = (", "was never closed"),
    ],
)
def test_declared_refuses_other_code(make_notebook: MakeNotebook, cell: str, complaint: str) -> None:
    with pytest.raises(InputError, match=r"made.ipynb: cell 'parameters': .*write lines") as caught:
        declared(make_notebook(cell))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("tags", [(), ("parameters", "parameters")])
def test_declared_wants_one_tagged_cell(make_notebook: MakeNotebook, tags: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=f"{len(tags)} cells are tagged"):
        declared(make_notebook("a = 1", "b = 2", tags=tags))


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json"])
def test_declared_refuses_what_is_no_notebook(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.ipynb"
    path.write_text(content)
    with pytest.raises(InputError, match=r"broken.ipynb: not a Jupyter notebook"):
        declared(path)


def test_declared_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.ipynb: No such file"):
        declared(tmp_path / "none.ipynb")


def test_resolve_fills_in_defaults_and_reads_strings(make_notebook: MakeNotebook) -> None:
    path = make_notebook(CELL)
    assert resolve(path, {}) == {"count": -4, "share": 1.0, "name": "a # b", "deep": True}
    given = {"count": "0x10", "share": "2.5", "name": "7", "deep": "false"}
    assert resolve(path, given) == {"count": 16, "share": 2.5, "name": "7", "deep": False}
    assert resolve(path, {"share": 3})["share"] == 3.0


def test_resolve_names_the_known_parameters(make_notebook: MakeNotebook) -> None:
    with pytest.raises(InputError, match="unknown parameter 'cuont'; it has count, share, name, deep"):
        resolve(make_notebook(CELL), {"cuont": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", "many"),
        ("count", 1.5),
        ("count", True),
        ("share", "x"),
        ("name", 7),
        ("deep", 1),
        ("deep", "on"),
    ],
)
def test_resolve_refuses_a_wrong_type(make_notebook: MakeNotebook, name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"made.ipynb: parameter '{name}': .* is no (int|float|str|bool)"):
        resolve(make_notebook(CELL), {name: value})


INJECTED = "# Parameters\ncount = 3\nbad = 1\n"


def test_check_sees_unknown_names_in_the_injected_cell() -> None:
    namespace = {"In": ["", "count = 1", INJECTED, "check(...)"], "count": 3, "bad": 1}
    with pytest.raises(InputError, match="unknown parameter 'bad'; the notebook has count"):
        check(namespace, count=integer())


def test_check_leaves_the_notebooks_own_names_alone() -> None:
    history = ["", "count = 1", INJECTED, "check(...)", "bad = count", "check(...)"]
    check({"In": history, "count": 3, "bad": 1}, count=integer())


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (integer(low=1, high=8), [1, 8], [0, 9, True, 2.0, "2"]),
        (number(high=0.5), [0, -1.5, 0.5], [0.6, "0", False]),
        (numbers(), ["100,5", "", 5], [True, 0.5, None]),
        (choice(["square", "cube"]), ["cube"], ["round", "", 1]),
        (choice({"square": 1}), ["square"], [1]),
        (role_design(), ["D4", "pre_fix", "own:Design", "a/own.py:Design"], ["D9", "", 4]),
        (text(), ["", "x"], [1, None]),
        (flag(), [True, False], [0, "True", None]),
    ],
)
def test_check_compares_values_with_kinds(kind: object, good: list[object], bad: list[object]) -> None:
    for value in good:
        check({"a": value}, a=kind)  # type: ignore[arg-type]
    for value in bad:
        with pytest.raises(InputError, match=r"parameter 'a' is .*; it must be"):
            check({"a": value}, a=kind)  # type: ignore[arg-type]


def test_check_says_what_a_value_must_be() -> None:
    with pytest.raises(InputError) as caught:
        check({"a": 9}, a=integer(low=1, high=8))
    assert str(caught.value) == "parameter 'a' is 9; it must be an integer of at least 1 and at most 8"


def test_check_wants_every_parameter() -> None:
    with pytest.raises(InputError, match="parameter 'a' is not set"):
        check({}, a=integer())


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["-p", "bad", "1"], "unknown parameter 'bad'; the notebook has count, shape, seed"),
        (["-p", "shape", "round"], "parameter 'shape' is 'round'; it must be one of square, cube"),
    ],
)
def test_plain_papermill_fails_too(tmp_path: Path, given: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--execution-timeout", "120"]
    out = tmp_path / "out.ipynb"
    done = subprocess.run([*command, SMALL, out, *given], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"InputError: {complaint}" in done.stderr
