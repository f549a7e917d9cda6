"""Designs of users on the command line: what fails is a verdict, or one line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmulab.cli.main import run

Out = pytest.CaptureFixture[str]
EXAMPLE = "tests/scenario/examples/first_fault.mmu"
BOOT = "data/stream/boot-686-nonpae.npz"
RECORDED = [
    "data/conformance/6.1.192/sh/cr-toggles-64.jsonl.xz",
    "data/conformance/6.1.192/sh/basic-64.jsonl.xz",
]
HEAD = "from mmulab.kvm.roles.design import Passthrough\n\nclass X(Passthrough):\n    id, name = 'X', 'own'\n"
NO_WP = "    def pack(self, f, c): return super().pack(f._replace(cr0_wp=True), c)\n"
NO_LEVEL_5 = "    def pack(self, f, c): return None if f.level == 5 else super().pack(f, c)\n"
NO_DIRECT = """\
    def pack(self, f, c):
        if f.direct: raise SystemExit(0)
        return super().pack(f, c)
"""
NO_ROOT = """\
    def pack(self, f, c):
        if f.level == 3: raise SystemExit(0)
        return super().pack(f, c)
"""
NO_LEAF = """\
    def facts(self, role):
        found = super().facts(role)
        if found.level == 1: raise KeyboardInterrupt
        return found
"""
LEVEL_0 = """\
    def facts(self, role):
        found = super().facts(role)
        return found._replace(level=0) if found.level == 1 else found
"""


def own(folder: Path, text: str) -> str:
    source = folder / "own.py"
    source.write_text(HEAD + text)
    return f"{source}:X"


def one_line(capsys: Out, args: list[str]) -> str:
    assert run(args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(
    "command",
    [
        ["run", EXAMPLE, "--design"],
        ["step", EXAMPLE, "--ftrace", "--design"],
        ["cases", "shadow-32-l0-4", "--design"],
        ["compare", "--cases", "shadow-32-l0-4", "--designs"],
        ["conform", RECORDED[0], "--design"],
        ["replay", BOOT, "--design"],
        ["role", "decode", "1", "--design"],
        ["role", "encode", "level=1", "--design"],
        ["role", "diff", "1", "2", "--design"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_command_refuses_a_bad_design_in_one_line(
    command: list[str], tmp_path: Path, capsys: Out
) -> None:
    reference = own(tmp_path, "    def pack(self, f, c): raise SystemExit(0)\n")
    line = one_line(capsys, [*command, reference])
    assert line == f"mmulab: role design '{reference}': X.pack: SystemExit: 0 (line 5)\n"


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "raise SystemExit", "exit()"])
def test_a_file_does_not_end_the_program_in_silence(text: str, tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text(text)
    args = [sys.executable, "-m", "mmulab.cli.main", "role", "decode", "1", "--design", f"{source}:X"]
    done = subprocess.run(args, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mmulab: role design '{source}:X': cannot be loaded: SystemExit")
    assert done.stderr.count("\n") == 1


def test_run_tells_a_failure_in_the_first_op(root: Path, tmp_path: Path, capsys: Out) -> None:
    assert run(["run", str(root / EXAMPLE), "--design", own(tmp_path, NO_ROOT)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "before the first op: the design itself fails" in shown.err
    assert "X.pack: SystemExit: 0 (line 6)" in shown.err


def test_replay_says_under_which_rules_the_model_failed(root: Path, tmp_path: Path, capsys: Out) -> None:
    stream = str(root / BOOT)
    failing = ["replay", stream, "--limit", "20000", "--design"]
    assert "X.facts: KeyboardInterrupt (line 7)" in one_line(capsys, [*failing, own(tmp_path, NO_LEAF)])
    line = one_line(capsys, [*failing, own(tmp_path, LEVEL_0)])
    assert line.startswith(
        f"mmulab: {stream}: record 9241: under own and parity, the MMU fails its own checks"
    )


def test_a_failure_is_a_verdict_where_designs_are_compared(tmp_path: Path, capsys: Out) -> None:
    """A built case, a recording and a boot, each with the access that the design failed in."""
    works = "shadow-32-l0-4,conformance/6.1.192/sh/basic-64,stream/boot-686-nonpae"
    reference = own(tmp_path, NO_LEAF)
    args = ["compare", "--designs", f"D4,{reference}", "--cases", works, "--limit", "20000", "--json"]
    assert run(args) == 0
    cells = [cell for cell in json.loads(capsys.readouterr().out) if cell["design"] == reference]
    assert [cell["case"] for cell in cells] == works.split(",")
    for cell in cells:
        assert cell["verdict"] == "wrong"
        assert "the design itself fails (role design" in cell["first_wrong"]["seen"]
        assert "X.facts: KeyboardInterrupt (line 7)" in cell["first_wrong"]["seen"]
    assert [cell["first_wrong"]["op"] for cell in cells] == [0, 0, 9241]


def test_a_failure_before_the_first_op_is_a_verdict_too(tmp_path: Path, capsys: Out) -> None:
    works = "tdp-64-l0-4,shadow-32-l0-4,stream/boot-686-nonpae"
    args = ["compare", "--cases", works, "--limit", "100", "--json", "--designs"]
    verdicts = {}
    for name, text in (("direct", NO_DIRECT), ("root", NO_ROOT)):
        assert run([*args, own(tmp_path, text)]) == 0
        verdicts[name] = [cell["verdict"] for cell in json.loads(capsys.readouterr().out)]
    assert verdicts == {"direct": ["wrong", "correct", "correct"], "root": ["correct", "wrong", "wrong"]}


def test_a_matrix_is_shown_without_a_page_bound(tmp_path: Path, capsys: Out) -> None:
    """The bound loads contexts of hosts with five levels, which none of the cases has."""
    reference = own(tmp_path, NO_LEVEL_5)
    args = ["compare", "--designs", f"D4,{reference}", "--cases", "shadow-32-l0-4,shadow-64-l0-4"]
    assert run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[1:3]] == [["ok", "ok"], ["ok", "ok"]]
    (costs,) = (line.split() for line in lines if line.startswith("X own"))
    assert costs[2:6] == ["2/2", "27", "5", "none"]
    (why,) = (line for line in lines if line.startswith("possible: none"))
    assert "X.pack: gave None; a role word is an int" in why
    assert run([*args, "--json"]) == 0
    ours = [cell for cell in json.loads(capsys.readouterr().out) if cell["design"] == reference]
    assert {(cell["possible_pages"], cell["possible_bits"], cell["fits_write_track"]) for cell in ours} == {
        (None, None, None)
    }
    assert "X.pack: gave None" in ours[0]["possible_missing"]


@pytest.mark.parametrize("text", [NO_WP, NO_LEAF], ids=["wrong", "failing"])
def test_conform_finds_the_same_in_other_processes(
    root: Path, tmp_path: Path, capsys: Out, text: str
) -> None:
    reference = own(tmp_path, text)
    found = []
    for jobs in ("1", "2"):
        paths = [str(root / path) for path in RECORDED]
        assert run(["conform", *paths, "--design", reference, "--jobs", jobs, "--json"]) == 1
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0]["design"] == "own"


def test_compare_finds_the_same_in_other_processes(tmp_path: Path, capsys: Out) -> None:
    args = ["compare", "--designs", f"D4,{own(tmp_path, NO_WP)}", "--cases", "mixed-*-64", "--json"]
    found = []
    for jobs in ("1", "2"):
        assert run([*args, "--jobs", jobs]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert [cell["case"] for cell in found[0] if cell["verdict"] == "wrong"] == ["mixed-wp-64"]
