"""``mmulab bugs`` and ``mmulab affected``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.cli import bugs
from mmulab.cli.main import run
from mmulab.kvm.bugs import BUGS
from tests.conftest import CommandLine


def test_a_line_for_each_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bugs"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(BUGS)
    (b2,) = (line for line in lines if line.startswith("B2 "))
    assert b2.split()[1:5] == ["switch", "I2,I6", "81ccda30b4e8", "CVE-2026-53359"]
    assert last == f"bugs: {len(BUGS)}, {sum(bug.has_switch for bug in BUGS.values())} with a switch"


def test_all_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bugs", "B9", "B34b"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "since 6.2 (aee738236dca), fixed in 7.1" in said
    assert "no switch: Hyper-V's hypercalls are not modelled" in said
    assert "switch: 6.1+B34b" in said
    assert "since no source says since when, fixed in 2.6.37" in said


def test_json_has_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bugs", "B1", "--json"]) == 0
    (b1,) = json.loads(capsys.readouterr().out)
    assert (b1["id"], b1["backports"]["6.6"], b1["breaks"]) == ("B1", "6.6.140", ["I6"])


def test_a_release_has_some_and_of_others_nobody_knows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "data/sequences").mkdir(parents=True)
    (tmp_path / "data/sequences/B2.mmu").touch()
    monkeypatch.setattr(bugs, "checkout", lambda: tmp_path)
    assert run(["affected", "--kernel", "5.15.200", "--json"]) == 0
    found = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(found) == list(BUGS)
    assert found["B2"]["affected"] is True
    assert found["B2"]["why"] == "the fix came with 5.15.222"
    assert found["B2"]["sequence"] == str(tmp_path / "data/sequences/B2.mmu")
    assert found["B7"]["affected"] is None
    assert found["B7"]["sequence"] is None
    assert found["B9"]["affected"] is False
    assert run(["affected", "--kernel", "5.15.200"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split()[0] for line in lines[:-1] if not line.startswith(" ")]
    assert heads == [id for id, row in found.items() if row["affected"] is not False]
    b2 = lines[lines.index(next(line for line in lines if line.startswith("B2 "))) :]
    assert b2[0].split()[1] == "affected"
    assert b2[2].strip() == "its fix needs B1 (0cb2af2ea66a)"
    assert lines[-1].startswith("5.15.200: affected ")
    assert lines[-1].endswith(f"; bugs {len(BUGS)}")


def test_what_is_refused(command: CommandLine) -> None:
    assert command.error("bugs", "B99").startswith("bug 'B99': unknown; the bugs are B1, B2, ")
    refused = "release '6.x': expected numbers, as 5.15.200 or 6.1.0-31-amd64"
    assert command.error("affected", "--kernel", "6.x") == refused


def test_a_distributions_kernel_is_said_to_be_taken_as_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["affected", "--kernel", "5.14.0-427.el9", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "mmulab: release 5.14.0-427.el9: backports unknown, taken as 5.14\n"
    told = json.loads(out)
    assert any(row["affected"] is None and row["why"].endswith(", taken as 5.14") for row in told)
    assert not any(row["affected"] for row in told)
