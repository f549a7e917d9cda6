"""A report from the notebooks to the files, and ``mmulab report``."""

from __future__ import annotations

import importlib
import json
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab.errors import InputError
from mmulab.report import folder
from mmulab.report.page import remote_references
from mmulab.report.provenance import digest
from mmulab.report.write import report

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


def interrupted_report(monkeypatch: pytest.MonkeyPatch, out: Path, finished: int) -> list[str]:
    """Run a report of three notebooks that is interrupted in the one after `finished`; return its lines."""
    module = importlib.import_module("mmulab.report.write")
    notebooks = [SMALL.with_name(f"{name}.ipynb") for name in ("one", "two", "three")]
    lines: list[str] = []

    def run(path: Path, target: Path, *_: object) -> dict[str, object]:
        target.mkdir()
        (target / "half").touch()
        if path == notebooks[finished]:
            raise KeyboardInterrupt
        (target / f"{path.stem}.html").write_text("new")
        return {"name": path.stem, "title": path.stem, "tables": [], "repeat": ""}

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module, "resolve", lambda *_: {})
    with pytest.raises(KeyboardInterrupt):
        report(notebooks, out, {}, say=lines.append)
    return lines


def test_interrupted_it_has_what_is_finished_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    lines = interrupted_report(monkeypatch, out, 1)
    assert lines[-1] == f"interrupted: 1 of 3 notebooks are in {out / 'index.html'}"
    assert sorted(path.name for path in out.iterdir()) == [".mmulab", "index.html", "one"]
    index = (out / "index.html").read_text()
    for name in ("two", "three"):
        assert f"{name}: not run, the report was interrupted" in index


def test_interrupted_it_keeps_what_an_earlier_one_had_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with folder.whole(out) as building:
        for name in ("one", "two", "other"):
            (building / name).mkdir()
            (building / name / f"{name}.html").write_text("earlier")
    interrupted_report(monkeypatch, out, 0)
    assert sorted(path.name for path in out.iterdir()) == [".mmulab", "one", "other", "two"]
    interrupted_report(monkeypatch, out, 1)
    found = {path.stem: path.read_text() for path in out.glob("*/*.html")}
    assert found == {"one": "new", "two": "earlier", "other": "earlier"}
    index = (out / "index.html").read_text()
    assert 'From an earlier report: <a href="two/two.html">two</a>' in index
    assert list(tmp_path.iterdir()) == [out]


def test_full_disk_leaves_the_earlier_report(command: CommandLine, tmp_path: Path) -> None:
    """A file of the report is larger than any may be."""
    with folder.whole(tmp_path / "out") as building:
        (building / "earlier").touch()
    command.prepare = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    said = command.error("report", "--notebook", "first_fault", "--out", "out")
    assert said == "out: cannot be written (File too large); make room there"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "earlier").exists()
