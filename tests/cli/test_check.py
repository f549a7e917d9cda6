"""``mmulab check``: what is found and shown, what is free, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.check.hunt import places
from mmulab.check.oracle import Oracle
from mmulab.check.trial import make_bench
from mmulab.cli.main import run
from mmulab.kvm.kernels import find_kernel
from mmulab.scenario.text import read_scenario
from tests.conftest import CommandLine

QUADRANT = ["check", "--bug", "B17", "--scope", "paths-32", "--budget", "120"]
FREE = "smm-device"


def test_a_bug_is_found_and_its_file_replays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run([*QUADRANT, "--out", str(tmp_path / "found")]) == 0
    found, step, last = capsys.readouterr().out.splitlines()
    assert found.startswith("6.1.192+B17: op 0 'rd s 4 40000000': ")
    assert last.startswith("check: found 1 of 1, ")
    (path,) = (tmp_path / "found").iterdir()
    assert step.strip() == f"mmulab step --wrong {path}"
    scenario = read_scenario(path)
    assert scenario.header.kernel == "6.1.192+B17"
    assert len(scenario.steps) == 1
    wrong = make_bench(scenario, find_kernel("6.1"), [Oracle]).run(())
    assert wrong.finding is None


def test_json_has_the_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*QUADRANT, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    (found,) = record["found"]
    assert (record["kernel"], found["place"], found["ops"]) == ("6.1.192+B17", "paths-32", 1)
    assert found["scenario"][-2:] == ["rd s 4 40000000", "end"]


def test_a_scope_that_is_free_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--scope", FREE, "--budget", "600"]) == 0
    free, _, last = capsys.readouterr().out.splitlines()
    assert free.startswith(f"6.1.192: {FREE} free ")
    assert last.startswith("check: found 0 of 1, ")
    assert last.endswith(", clean 1")


def test_what_a_design_breaks_is_found_and_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--derivation", "copied", "--scope", "paths-32", "--budget", "120"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "invariant QUADRANT" in lines[0]
    assert lines[-1].startswith("check: found 1 of 1, ")


def test_a_bug_that_is_not_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--bug", "B33", "--scope", FREE, "--budget", "600"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("check: found 0 of 1, ")


def test_the_places_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--list", "--scope", "shadow-*,paths-*"]) == 0
    named = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert sorted(named) == sorted(places(["shadow-*", "paths-*"]))
    assert {"shadow-64", "paths-pae"} <= set(named)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--scope", "nowhere"], "scope 'nowhere': unknown; 'mmulab check --list' shows the known names"),
        (["--bug", "B99"], "B99"),
        (["--bug", "B18"], "bug B18 has no switch: "),
        (["--kernel", "6.1+B17", "--bug", "B17"], "B17"),
    ],
)
def test_bad_words_are_refused_in_one_line(args: list[str], said: str, command: CommandLine) -> None:
    assert said in command.error("check", *args)
