"""The manual: each page is printed, and the language's page names each line of the language."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmulab.cli.doc import PAGES, doc, glossary, glossary_entries, page_path
from mmulab.cli.main import cli, run
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.grammar import FORMS, usage
from mmulab.scenario.text import _ADDITIONS, _SETTINGS, parse_scenario

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", PAGES)
def test_page_is_printed_and_its_path_told(page: str) -> None:
    text = page_path(page).read_text("utf-8")
    assert CliRunner().invoke(doc, [page]).output == text
    assert CliRunner().invoke(cli, ["help", page]).output == text
    assert CliRunner().invoke(doc, [page, "--path"]).output == f"{page_path(page)}\n"


def test_pages_are_all_there_is() -> None:
    assert {path.stem for path in page_path("index").parent.glob("*.md")} == set(PAGES)
    listed = re.findall(r"^\| `(\w+)` \|", page_path("index").read_text("utf-8"), re.M)
    assert {"index", *listed} == set(PAGES)


def test_unknown_page_and_word_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doc", "nothing"]) == 2
    assert run(["glossary", "nothing"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "the pages are index, question" in errors[0]


def rows(heading: str) -> list[str]:
    """Return the first cells of the table under a heading of the page on scenarios."""
    section = page_path("scenario").read_text("utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return [cell.replace("\\|", "|") for cell in re.findall(r"^\| `(.*?)` \| \S", section, re.M)]


def test_each_op_has_its_line() -> None:
    assert rows("Ops") == [usage(name) for name in FORMS]


def test_each_header_line_has_its_line() -> None:
    assert sorted(row.split()[0] for row in rows("Header lines")) == sorted([*_SETTINGS, *_ADDITIONS])


def test_the_page_shows_a_scenario_that_can_be_read() -> None:
    text = page_path("scenario").read_text("utf-8")
    shown = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    assert len(parse_scenario(shown).steps) == 2


def test_recordings_page_names_each_outcome() -> None:
    named = re.findall(r"^\| `(\w+)` \|", page_path("recording").read_text("utf-8"), re.M)
    assert set(named) - {"out"} == {str(kind) for kind in OutcomeKind}


def test_architecture_names_files_that_are_there() -> None:
    named = re.findall(r"`(mmulab/[\w/.]+)`", page_path("architecture").read_text("utf-8"))
    assert len(named) > 15
    assert not [name for name in named if not (ROOT / name).exists()]


def test_glossary() -> None:
    assert list(glossary_entries()) == sorted(glossary_entries(), key=str.lower)
    said = CliRunner().invoke(glossary, ["L1"]).output
    assert said.startswith("L0, L1, L2: the host's hypervisor")
    assert "quadrant" in CliRunner().invoke(glossary, []).output.splitlines()
