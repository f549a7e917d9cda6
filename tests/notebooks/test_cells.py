"""What a reader of a notebook meets before it is run: parameters that name their choices, folded code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmulab import paths
from mmulab.lab.cases.table import find_cases
from mmulab.report import parameters
from mmulab.report.parameters import Kind, declared
from tests.conftest import CommandLine

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LINE = 110
"""Columns of a parameter's line: papermill and JupyterLab show it whole."""
LONG = 8
"""Lines of code from which on a cell is folded."""


class Checked(Exception):
    """A notebook calls check(): the rest of it is not run."""


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def kinds_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Kind]:
    """Return what the notebook's own check accepts."""
    kinds: dict[str, Kind] = {}

    def check(namespace: object, **given: Kind) -> None:
        kinds.update(given)
        raise Checked

    monkeypatch.setattr(parameters, "check", check)
    shell: dict[str, Any] = {}
    set_them, check_them = ("".join(cell["source"]) for cell in code_cells(path)[:2])
    exec(set_them, shell)
    with pytest.raises(Checked):
        exec(check_them, shell)
    return kinds


def listed(comment: str, path: Path, command: CommandLine) -> str:
    """Return the comment, and the text of the places that it says have the names."""
    text = [comment]
    for name in re.findall(r"`mmulab ([a-z]+)`", comment):
        # It prints a line of each, but runs each, which takes minutes.
        text.append(" ".join(case.name for case in find_cases([])) if name == "cases" else "")
        text.append("" if name == "cases" else command(name).stdout)
    for folder in re.findall(r"\bdata/([a-z]+)", comment):
        text += [file.stem for file in paths.data(folder).iterdir()]
    for table in re.findall(r'\btable "([a-z]+)"', comment):
        text.append(tables_of(path, table))
    return " ".join(text)


def tables_of(path: Path, table: str) -> str:
    """Return the cells of one of the notebook's first tables, without running more of it than needed."""
    from mmulab.report import results

    made: list[str] = []

    class Table:
        def __init__(self, name: str, _columns: object, rows: list[list[object]], _caption: str) -> None:
            made.append(" ".join(str(row[0]) for row in rows) if name == table else "")

    real, results.Table = results.Table, Table  # type: ignore[misc, assignment]
    try:
        shell: dict[str, Any] = {"display": lambda *shown: None}
        for cell in code_cells(path):
            exec("".join(cell["source"]), shell)
            if any(made):
                break
    finally:
        results.Table = real  # type: ignore[misc]
    return "".join(made)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_comment_names_all_choices(path: Path, monkeypatch: pytest.MonkeyPatch, command: CommandLine) -> None:
    comments = {name: found.help for name, found in declared(path).items()}
    with monkeypatch.context() as patched:
        kinds = kinds_of(path, patched)
    assert set(kinds) == set(comments)
    for name, kind in kinds.items():
        text = listed(comments[name], path, command)
        missing = [
            each for each in kind.options if not re.search(rf"(?<!\w){re.escape(each)}(?![\w-])", text)
        ]
        assert missing == [], f"{name}: not in its comment, nor where that says"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_parameter_has_one_line_and_a_comment(path: Path) -> None:
    source = "".join(code_cells(path)[0]["source"])
    assert all(found.help for found in declared(path).values())
    assert len(source.splitlines()) == len(declared(path))
    assert [line for line in source.splitlines() if len(line) > LINE] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_long_code_is_folded_and_parameters_are_not(path: Path) -> None:
    """Tagged `open` is what a reader is asked to change."""
    cells = code_cells(path)
    for number, cell in enumerate(cells):
        tags = cell["metadata"].get("tags", [])
        folded = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        is_long = number == 1 or len(cell["source"]) > LONG
        assert folded == (is_long and not {"parameters", "open"} & set(tags)), "".join(cell["source"])


VERB = re.compile(r"\b(click|drag|press|choose|point at|hover|run all cells)\b", re.IGNORECASE)
PLACES = re.compile(r"JupyterLab|report|page|Try there")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_instruction_says_where_it_can_be_followed(path: Path) -> None:
    """On an exported page there is no Jupyter kernel, and nothing to press but links and steps."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    paragraphs = [part for text in prose if not PLACES.search(text) for part in text.split("\n\n")]
    assert [part for part in paragraphs if VERB.search(part)] == []
    assert [text for text in prose if re.search(r"\bno kernel\b", text)] == []
