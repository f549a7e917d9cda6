"""``--sync`` wherever a kernel is chosen, and ``mmulab compare --syncs``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.cli.main import run

Out = pytest.CaptureFixture[str]
STREAM = "data/stream/boot-686-nonpae.npz"


def test_replay_prints_what_the_policy_did(root: Path, capsys: Out) -> None:
    said = {}
    for sync in ("unsync_children", "write_protect", "oos_2008+index=lru"):
        assert run(["replay", str(root / STREAM), "--limit", "20000", "--sync", sync]) == 0
        (said[sync],) = (x for x in capsys.readouterr().out.splitlines() if x.startswith(f"sync {sync}: "))
    assert "unsynced 0, synced 0 of 0 entries" in said["write_protect"]
    assert "bookkeeping 0 bytes" in said["write_protect"]
    assert "unsynced 0" not in said["unsync_children"]
    assert run(["replay", str(root / STREAM), "--limit", "20000", "--json", "--sync", "write_protect"]) == 0
    counts = json.loads(capsys.readouterr().out)["sync"]
    assert counts["policy"] == "write_protect"
    assert counts["emulated_writes"] == counts["write_protect_faults"] > 0
    assert sum(counts["refused"].values()) == counts["write_protect_faults"]


def test_cases_and_run_take_a_policy(capsys: Out) -> None:
    assert run(["cases", "mixed-wp-64", "--sync", "write_protect", "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["verdict"], record["sync"]["policy"]) == ("correct", "write_protect")
    ends = {}
    for sync in ("unsync_children", "oos_2008"):
        assert run(["run", "sync/second-parent-64", "--sync", sync]) == 0
        ends[sync] = capsys.readouterr().out.splitlines()[-2:]
    assert any("c0de0302" in line for line in ends["unsync_children"])
    assert any("c0de0100" in line for line in ends["oos_2008"])


def test_compare_shows_verdicts_costs_and_the_sentence(capsys: Out) -> None:
    policies = "unsync_children,write_protect,oos_2008"
    assert run(["compare", "--syncs", policies, "--cases", "sync/global-lost-64,shadow-64-l0-4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["sync/global-lost-64", "ok", "ok", "op", "6"]
    assert lines[2].split() == ["shadow-64-l0-4", "ok", "ok", "ok"]
    asked = ["compare", "--syncs", policies, "--cases", "sync/global-lost-64,shadow-64-l0-4", "--wrong-only"]
    assert run(asked) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]] == [
        "sync/global-lost-64",
        "ok;",
    ]
    rows = [line.split() for line in lines if line.startswith(tuple(policies.split(",")))]
    costs = {row[0]: row[1] for row in rows}
    assert costs["unsync_children"] == costs["write_protect"] == "2/2"
    wrong = next(at for at, line in enumerate(lines) if "wrong at op 6" in line)
    assert "expected gpa 0x302000; reached gpa 0x300000" in lines[wrong]
    assert lines[wrong + 1].endswith("What happens when a sp->global changes its value while a page is oos?")


def test_compare_in_json(capsys: Out) -> None:
    words = ["compare", "--syncs", "write_protect,oos_2008", "--cases", "sync/two-modes-64"]
    assert run([*words, "--json"]) == 0
    protected, old = json.loads(capsys.readouterr().out)
    assert (protected["sync"], protected["verdict"], old["verdict"]) == ("write_protect", "correct", "wrong")
    assert old["first_wrong"]["op"] == 7
    assert protected["counts"]["emulated_writes"] > old["counts"]["emulated_writes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "mixed-wp-64", "--sync", "never"], "sync policy 'never'"),
        (["run", "mixed-wp-64", "--sync", "oos_2008+index=first"], "expected round_robin or lru"),
        (["compare", "--syncs", "oos_2008", "--designs", "D4"], "leave --designs and --sync out"),
        (["compare", "--syncs", "oos_2008,oos_2008", "--cases", "mixed-wp-64"], "is there 2 times"),
    ],
)
def test_what_is_refused(words: list[str], said: str, capsys: Out) -> None:
    assert run(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_recording_is_of_the_kernels_own_policy(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "r.jsonl.xz"
    assert run(["run", "mixed-wp-64", "--sync", "write_protect", "--record", str(out)]) == 2
    assert "a recording has the kernel's own" in capsys.readouterr().err
    assert not out.exists()


def test_a_stepper_recording_keeps_the_policy(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "r.mmr"
    words = ["step", "sync/global-lost-64", "--sync", "oos_2008+on_change=move"]
    assert run([*words, "--save", str(out)]) == 0
    assert run(["step", str(out), "--ftrace"]) == 0
    again = capsys.readouterr().out
    assert run([*words, "--ftrace"]) == 0
    assert capsys.readouterr().out == again
    from mmulab.trace.file import open_recording

    assert str(open_recording(out).config.kernel.sync) == "oos_2008+on_change=move"
