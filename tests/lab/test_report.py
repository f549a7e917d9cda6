"""A report from the notebooks to the files, and ``mmulab report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab.errors import InputError
from mmulab.lab.page import remote_references
from mmulab.lab.provenance import digest
from mmulab.lab.report import report

if TYPE_CHECKING:
    from tests.conftest import CommandLine

SMALL = Path(__file__).parent / "notebooks" / "small.ipynb"


def test_layout(small_report: Path) -> None:
    files = {path.relative_to(small_report).as_posix() for path in small_report.rglob("*") if path.is_file()}
    assert files == {
        ".mmulab",
        "index.html",
        "small/parameters.json",
        "small/provenance.json",
        "small/small.html",
        "small/small.ipynb",
        "small/tables/powers.csv",
    }


def test_parameters_are_all_there(small_report: Path) -> None:
    written = json.loads((small_report / "small" / "parameters.json").read_text())
    assert written == {"count": 4, "shape": "square", "seed": 0}


def test_provenance_names_what_was_read(small_report: Path) -> None:
    written = json.loads((small_report / "small" / "provenance.json").read_text())
    assert written["inputs"] == {"LICENSE": digest(SMALL.parents[3] / "LICENSE")}
    assert written["repeat"] == "mmulab report --notebook small -p count 4 -p shape square -p seed 0"


def test_index_leads_to_every_file(small_report: Path) -> None:
    index = (small_report / "index.html").read_text()
    assert remote_references(index) == []
    assert "A small notebook" in index
    for target in ("small.html", "small.ipynb", "provenance.json", "tables/powers.csv"):
        assert f'href="small/{target}"' in index
        assert (small_report / "small" / target).exists()


def test_again_gives_the_same_tables(small_report: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    given = json.loads((small_report / "small" / "parameters.json").read_text())
    index = report([SMALL], tmp_path / "again", given, say=lines.append)
    assert index == tmp_path / "again" / "index.html"
    assert lines == ["[1/1] small"]
    for name in ("small/tables/powers.csv", "small/parameters.json"):
        assert (tmp_path / "again" / name).read_bytes() == (small_report / name).read_bytes()


def test_parameter_changes_the_table(tmp_path: Path) -> None:
    report([SMALL], tmp_path / "out", {"shape": "cube", "count": "3"})
    table = (tmp_path / "out" / "small" / "tables" / "powers.csv").read_bytes()
    assert table == b"number,cube\n0,0\n1,1\n2,8\n"


@pytest.mark.parametrize("given", [{"shape": "round"}, {"count": "x"}, {"bad": 1}])
def test_refused_parameter_leaves_nothing(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(given))):
        report([SMALL], tmp_path / "out", given)
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_unknown_notebook(command: CommandLine) -> None:
    assert "notebook 'nonsense': unknown" in command.error("report", "--notebook", "nonsense")


def test_command_refuses_folder(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in command.error("report", "--out", tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
