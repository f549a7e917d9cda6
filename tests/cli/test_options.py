"""``--design``, ``--derivation`` and ``--roots`` wherever a scenario runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.cli.main import run

Out = pytest.CaptureFixture[str]
EXAMPLE = "tests/scenario/examples/first_fault.mmu"
RECORDED = "data/conformance/6.1.192/sh/mode-switch.jsonl.xz"
STOPS = """
from mmulab.kvm.roles.design import Passthrough

class Stops(Passthrough):
    id, name = "X", "stops"

    def child(self, parent, **of):
        if self.layout.get(parent, "level") == 2:
            raise AssertionError("no children")
        return super().child(parent, **of)
"""


@pytest.fixture
def stops(tmp_path: Path) -> str:
    source = tmp_path / "stops.py"
    source.write_text(STOPS)
    return f"{source}:Stops"


def test_run_takes_a_design(root: Path, capsys: Out) -> None:
    words = {}
    for design in ("D4", "D5"):
        assert run(["run", str(root / EXAMPLE), "--design", design, "--json"]) == 0
        records = map(json.loads, capsys.readouterr().out.splitlines())
        words[design] = [e["role"] for r in records for e in r["events"] if e["event"] == "kvm_mmu_get_page"]
    assert len(words["D4"]) == len(words["D5"]) > 0
    assert words["D4"] != words["D5"]


def test_a_distributions_kernel_is_taken_as_that_of_its_series_and_said_once(root: Path, capsys: Out) -> None:
    assert run(["run", str(root / EXAMPLE), "--kernel", "6.12"]) == 0
    plain = capsys.readouterr()
    assert run(["run", str(root / EXAMPLE), "--kernel", "6.12.1-arch1-1"]) == 0
    assert capsys.readouterr() == (
        plain.out,
        "mmulab: kernel 6.12.1-arch1-1: 6.12.1 was not recorded; taken as 6.12.117\n",
    )
    assert run(["kernels", "diff", "6.1.192-2", "6.12.117-1"]) == 0
    told = capsys.readouterr()
    assert told.err.count("taken as") == 2
    assert "behaviours differ" in told.out


def test_run_shows_the_ops_before_a_design_stops_the_model(root: Path, stops: str, capsys: Out) -> None:
    assert run(["run", str(root / EXAMPLE), "--design", stops]) == 1
    shown = capsys.readouterr()
    assert shown.out == "  -1 init  ->  host\n"
    assert "after op -1: the design itself fails" in shown.err
    assert f"role design '{stops}': Stops.child: AssertionError: no children (line 9)" in shown.err


def test_a_recording_of_a_run_has_the_default_words(root: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "r.jsonl.xz"
    assert run(["run", str(root / EXAMPLE), "--design", "D5", "--record", str(out)]) == 2
    assert "leave out the design" in capsys.readouterr().err
    assert not out.exists()


def test_step_says_that_a_design_stops_the_model(root: Path, stops: str, capsys: Out) -> None:
    assert run(["step", str(root / EXAMPLE), "--design", stops, "--ftrace"]) == 2
    assert capsys.readouterr().err == (
        f"mmulab: role design '{stops}': Stops.child: AssertionError: no children (line 9)\n"
    )


def test_step_takes_roots(root: Path, capsys: Out) -> None:
    made = {}
    for roots in ("special", "shadow"):
        assert run(["step", str(root / EXAMPLE), "--roots", roots, "--ftrace"]) == 0
        made[roots] = capsys.readouterr().out.count("kvm_mmu_get_page")
    # A portal and the two directories in use, in place of all four.
    assert made["shadow"] == made["special"] - 4 + 3


def test_cases_run_under_a_design(capsys: Out) -> None:
    name = "la57-switch-npt-4to5-l0-5"
    verdicts = {}
    for design in ("D0", "D4"):
        assert run(["cases", name, "--design", design, "--json"]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        verdicts[record["design"]] = record["verdict"]
    assert verdicts == {"pre_fix": "wrong", "passthrough": "correct"}


def test_conform_leaves_role_words_out_under_another_design(root: Path, capsys: Out) -> None:
    recorded = str(root / RECORDED)
    assert run(["conform", recorded, "--level", "full", "--design", "D2"]) == 0
    assert capsys.readouterr().out.endswith(" design=passthrough_levels (role words not compared)\n")
    assert run(["conform", recorded, "--level", "full", "--design", "D4"]) == 0
    assert "role words" not in capsys.readouterr().out
    # With the paging mode in the key, gfn 81 is created where the kernel found it.
    assert run(["conform", recorded, "--level", "full", "--design", "D5", "--explain"]) == 1
    assert "created=0" in capsys.readouterr().out
    assert run(["conform", recorded, "--design", "D2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["design"], record["role_words_compared"]) == ("passthrough_levels", False)


def test_replay_takes_roots(root: Path, capsys: Out) -> None:
    stream = str(root / "data/stream/boot-686-nonpae.npz")
    made = {}
    for roots in ("special", "shadow"):
        assert run(["replay", stream, "--limit", "20000", "--roots", roots, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        made[roots] = record["shadow_pages"]
        assert record["derivation"] == "parity"
    assert made["shadow"] != made["special"] > 0
