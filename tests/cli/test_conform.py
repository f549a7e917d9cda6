"""``mmulab conform`` as a user runs it: lines, JSON, exit codes."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path

import pytest

from mmulab.conform.recording import read_lines
from tests.conform.deaths import cut_short, write
from tests.conftest import CommandLine

GOOD = "data/conformance/6.1.192/sh/basic-32.jsonl.xz"


@pytest.fixture
def good(root: Path) -> Path:
    """A recording with which the model agrees."""
    return root / GOOD


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    """The same recording with one value read changed."""
    lines = lzma.decompress(good.read_bytes()).decode().splitlines()
    at = next(i for i, line in enumerate(lines) if '"rax":"0x90909090"' in line)
    lines[at] = lines[at].replace('"rax":"0x90909090"', '"rax":"0x12"')
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_agreement_is_one_line_and_exit_code_0(command: CommandLine, good: Path) -> None:
    done = command("conform", good)
    assert done.returncode == 0
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line == "conform: level=mmu scenarios 1/1 ops 17/17 events 61/61"


def test_each_level_and_several_paths(command: CommandLine, root: Path, good: Path) -> None:
    other = root / "data/conformance/6.1.192/intel-sh/nonpaging-thp.jsonl.xz"
    lasts = [
        command("conform", good, other, "--level", level, "--jobs", "2")
        for level in ("outcome", "mmu", "full")
    ]
    assert [done.returncode for done in lasts] == [0, 0, 0]
    events = [done.stdout.splitlines()[-1].rpartition("/")[2] for done in lasts]
    assert [int(count) for count in events] == sorted(int(count) for count in events)
    assert events[0] == "0"
    assert all("scenarios 2/2" in done.stdout for done in lasts)


def test_a_difference_is_named_and_exits_with_1(command: CommandLine, good: Path, bad: Path) -> None:
    done = command("conform", bad, good, "--jobs", "1")
    assert done.returncode == 1
    first, last = done.stdout.splitlines()
    assert first.startswith(f"{bad}: line 3: op 0 ")
    assert "outcome: recorded ok rip=1802 rax=12, model ok rip=1802 rax=90909090" in first
    assert last.startswith("conform: level=mmu scenarios 1/2 ops 33/34 ")


def test_explain_shows_the_op_and_the_state(command: CommandLine, bad: Path) -> None:
    done = command("conform", bad, "--explain")
    assert done.returncode == 1
    for part in (
        "first difference: line 3, op 0, outcome",
        "guest walk of 40000000",
        "shadow path of 40000000",
    ):
        assert part in done.stdout
    assert done.stdout.splitlines()[-1].startswith("conform: ")


def test_explain_is_limited(command: CommandLine, bad: Path) -> None:
    twice = [command("conform", bad, bad, "--explain", *limit).stdout for limit in ((), ("--limit", "2"))]
    assert [text.count("first difference") for text in twice] == [1, 2]


def test_json_has_the_same_numbers(command: CommandLine, good: Path, bad: Path) -> None:
    done = command("conform", good, bad, "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["level"] == "mmu"
    assert answer["scenarios"] == {"agree": 1, "total": 2}
    assert answer["ops"] == {"agree": 33, "total": 34}
    assert [r["agrees"] for r in answer["recordings"]] == [True, False]
    assert answer["recordings"][0]["difference"] is None
    assert "rax=12" in answer["recordings"][1]["difference"]


def test_a_scenario_beyond_the_model_is_named(command: CommandLine, root: Path, tmp_path: Path) -> None:
    text = lzma.decompress((root / "data/conformance/6.1.192/sh/basic-pae.jsonl.xz").read_bytes()).decode()
    path = tmp_path / "beyond.jsonl"
    text = re.sub('"lm": ?1', '"lm":0', text, count=1)
    path.write_text(re.sub('"op":"rd [^"]*"', '"op":"smm on"', text, count=1))
    done = command("conform", path)
    assert done.returncode == 1
    first, last = done.stdout.splitlines()
    assert first.endswith("line 3: the op smm is not modelled for a guest with lm=0")
    assert "scenarios 0/1 ops 0/" in last


def test_bad_input_exits_with_2_and_one_line(command: CommandLine, good: Path, tmp_path: Path) -> None:
    lines = lzma.decompress(good.read_bytes()).decode().splitlines()
    cut = tmp_path / "cut.jsonl"
    cut.write_text("\n".join(lines[:5]) + "\n")
    assert (
        command.error("conform", cut) == f'{cut}: line 5: the file is cut, expected a last line {{"end":..}}'
    )
    again = tmp_path / "again.jsonl"
    again.write_text(cut.read_text())
    done = command("conform", cut, good, again, "--jobs", "2")  # one bad file costs no other its answer
    assert (done.returncode, "scenarios 1/1 " in done.stdout) == (2, True)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mmulab: {cut}: line 5: ")
    assert line.endswith("; 1 more files are refused")
    assert command.error("conform", tmp_path / "none").endswith("no such file or folder")
    assert "Invalid value for '--level'" in command.error("conform", good, "--level", "some")


def test_a_recording_of_an_unknown_kernel_is_refused_by_name(
    command: CommandLine, root: Path, tmp_path: Path
) -> None:
    lines = read_lines(root / "data/conformance/6.12.117/sh/basic-32.jsonl.xz")
    relabelled = tmp_path / "relabelled.jsonl"
    relabelled.write_text("\n".join([lines[0].replace("6.12.117", "6.12.107"), *lines[1:]]) + "\n")
    said = command.error("conform", relabelled)
    assert said.startswith(f"{relabelled}: line 1: kernel '6.12.107+deb12-amd64 ")
    assert said.endswith("unknown; recordings of 6.1.192, 6.12.117 are understood")


def test_an_op_that_the_kernel_did_not_survive_is_named(
    command: CommandLine, good: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "died.jsonl", cut_short(read_lines(good), 5))
    done = command("conform", path)
    assert done.returncode == 0
    named, last = done.stdout.splitlines()
    assert named.startswith(f"{path}: line 6: op 3 '")
    assert "not compared: host_died: BUG: kernel NULL pointer dereference" in named
    assert last.startswith("conform: level=mmu scenarios 1/1 ops 4/4 ")
    (one,) = json.loads(command("conform", path, "--json").stdout)["recordings"]
    assert one["difference"] is None
    assert one["not_compared"] == named
