"""``mmulab cases``: its lines, its JSON, its messages."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from mmulab.cli.main import run
from mmulab.lab.cases.table import Case, Row

cases = importlib.import_module("mmulab.cli.cases")


def test_a_line_says_root_pages_events_and_the_old_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cases", "la57-switch-npt-4to5-l0-5", "npt-32-l2-np-l0-5"]) == 0
    switch, npt32, *_ = capsys.readouterr().out.splitlines()
    assert switch.startswith("la57-switch-npt-4to5-l0-5      correct ")
    assert "pre_fix: WRONG at op 8 'rd s 4 3000': expected gpa 0x300000; reached gpa 0x100000" in switch
    assert "| l5" not in npt32
    assert " pml5_root > pml4_root > pae_root > l2 g4 q1 uwx guest_mode | pages " in npt32
    assert npt32.endswith("pre_fix: the same")


def test_details_name_every_table_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    run(["cases", "npt-64-l2-np-l0-5", "--details"])
    lines = capsys.readouterr().out.splitlines()
    (way,) = [line for line in lines if line.startswith("    way:")]
    assert way.count("(gfn ") == 5
    assert "passthrough (gfn 14) > l4 g8 q0 uwx nx guest_mode (gfn 14)" in way


def test_json_is_a_list_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cases", "--json", "la57-switch-npt-5to4-l0-5", "ept-5-level-ad"]) == 0
    found, five = json.loads(capsys.readouterr().out)
    assert (found["case"], found["verdict"], found["first_wrong"]) == (
        "la57-switch-npt-5to4-l0-5",
        "correct",
        None,
    )
    assert found["shadow_pages"] == sum(found["pages"].values())
    old = found["pre_fix"]
    assert (old["verdict"], old["first_wrong"]["op"]) == ("wrong", 8)
    assert old["first_wrong"]["expected"] != old["first_wrong"]["reached"]
    assert (five["verdict"], five["pages"]["l5 g8 q0 uwx guest_mode"]) == ("correct", 1)
    assert five["note"].startswith("6.1.192/nested-ept/ept-basic-ad below a level-5 entry")


WRONG = ["la57-switch-*", "nonpt-shadow-32-l2-np-l0-4"]


def test_the_last_lines_count_by_kind_what_is_wrong_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cases", "tdp-64-l0-4", *WRONG]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 + 1 + 4
    assert lines[-4:] == [
        "switch of CR4.LA57: 6 cases, 6 correct; 2 wrong under pre_fix only",
        "L1 without NPT, host without: 1 case, 1 kernel",
        "direct map, legacy MMU: 1 case, 1 correct",
        "all: 8 cases, 7 right, 0 wrong by design, 1 as Linux; 2 wrong under pre_fix only",
    ]


def test_wrong_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cases", "--wrong-only", "tdp-64-l0-4", *WRONG]) == 0
    lines = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    names = ["la57-switch-npt-4to5-l0-5", "la57-switch-npt-5to4-l0-5", "nonpt-shadow-32-l2-np-l0-4"]
    assert [line.split()[0] for line in lines] == names
    assert run(["cases", "--wrong-only", "--json", "tdp-64-l0-4", *WRONG]) == 0
    assert [found["case"] for found in json.loads(capsys.readouterr().out)] == names
    assert run(["cases", "--wrong-only", "tdp-64-l0-4"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", [80, 100])
def test_lines_fit_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(["cases", *WRONG]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == columns
    assert lines[0].startswith("la57-switch-npt-4to5-l0-5      correct  pre_fix WRONG   at op 8 ")
    assert lines[1].startswith("la57-switch-shadow-4to5-l0-5   correct  pre_fix same    l4 ")
    assert lines[6].startswith("nonpt-shadow-32-l2-np-l0-4     kernel   pre_fix same    at op 4 ")
    assert lines[0].endswith("…")
    assert run(["cases", "--wide", *WRONG]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) > 200


def test_unknown_case_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cases", "npt-64", "npt-64-l2-np-l0-5"]) == 2
    assert capsys.readouterr().err == ("mmulab: case 'npt-64': unknown; 'mmulab cases' lists them all\n")


def test_interrupted_json_has_the_rows_that_are_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = cases.row

    def interrupted(case: Case, *args: Any, **kwargs: Any) -> Row:
        if case.name == "ept-5-level-ad":
            raise KeyboardInterrupt
        return row(case, *args, **kwargs)

    monkeypatch.setattr(cases, "row", interrupted)
    assert run(["cases", "--json", "la57-switch-npt-5to4-l0-5", "ept-5-level-ad"]) == 130
    shown = capsys.readouterr()
    assert [found["case"] for found in json.loads(shown.out)] == ["la57-switch-npt-5to4-l0-5"]
    assert shown.err == "mmulab: interrupted\n"


def test_text_is_the_scenario_which_then_runs_alike(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["cases", "shadow-32-nopse-l0-4", "--text"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("mmulab-scenario 1\n")
    own = tmp_path / "own.mmu"
    own.write_text(text)
    told = []
    for file in ("shadow-32-nopse-l0-4", str(own)):
        assert run(["run", file, "--json"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


def test_text_is_of_one_case(capsys: pytest.CaptureFixture[str]) -> None:
    for names in ([], ["shadow-32-nopse-l0-4", "mixed-smep-32"]):
        assert run(["cases", *names, "--text"]) == 2
        assert capsys.readouterr() == ("", "mmulab: --text prints the scenario of one CASE; name one\n")
