"""``mmulab step``: the stepper in a terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmulab.conform.recording import read_recording
from mmulab.scenario.record import record
from mmulab.scenario.text import read_scenario
from mmulab.trace.file import open_recording
from mmulab.trace.search import Grain, find, step
from tests.conftest import CommandLine
from tests.widgets.test_stepper_page import steps_of

ROOT = Path(__file__).parents[2]
UNSYNC = ROOT / "data/conformance/6.1.192/sh/pt-write-unsync-64.jsonl.xz"
FIRST_FAULT = ROOT / "tests/scenario/examples/first_fault.mmu"


def drive(keys: str, *args: str | Path) -> list[str]:
    """Step with these lines as keys and return what is printed."""
    command = [sys.executable, "-m", "mmulab.cli.main", "step", *map(str, args)]
    done = subprocess.run(command, input=keys, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.splitlines()


def places(lines: list[str]) -> list[int]:
    """Return the moments that were shown."""
    return [int(line.split()[1]) for line in lines if line.startswith("[moment ")]


def test_keys_lead_as_in_the_recording() -> None:
    recording = record(read_recording(UNSYNC).scenario)
    unsync = find(recording, "unsync").tolist()
    fault = step(recording, unsync[0], Grain.FAULT)
    end = step(recording, fault, Grain.OPERATION)
    keys = "n\np\n/ unsync\nf\no\nF\ng 300\ns\nS\nq\nn\n"
    assert places(drive(keys, UNSYNC)) == [0, 1, 0, unsync[0], fault, end, fault, 300, *_again(unsync)]


def _again(unsync: list[int]) -> list[int]:
    """Where the search, repeated on and back from moment 300, arrives."""
    after = [number for number in unsync if number > 300]
    there = after[0] if after else 300
    return [there, max(number for number in unsync if number < there)]


def test_panels_are_printed() -> None:
    text = "\n".join(drive("/ unsync\nn\n", UNSYNC))
    assert "the guest's tables for 0x8010022008: 4level" in text
    assert "out-of-sync children" in text
    assert "kvm_mmu_set_spte: gfn 22 spte" in text


def test_mistakes_are_answered_and_survived() -> None:
    lines = drive("x\ng 99999\ng no\n/ nothing\ns\na zz\nh\na 1000\n", FIRST_FAULT)
    assert "no such key: 'x'; h: help" in "\n".join(lines)
    assert [line for line in lines if line.startswith("mmulab: moment 99999: the recording has 0 to")]
    assert "mmulab: moment 'no' is no number" in lines
    assert [line for line in lines if line.startswith("mmulab: search 'nothing' is unknown")]
    assert "mmulab: gva 'zz' is no hexadecimal number" in lines
    assert any("zap-gfn GFN" in line for line in lines)
    assert any("the guest's tables for 0x1000" in line for line in lines)


def test_recording_is_saved_and_stepped_again(command: CommandLine, tmp_path: Path) -> None:
    assert command("step", FIRST_FAULT, "--save", "a.mmr").returncode == 0
    opened = open_recording(tmp_path / "a.mmr")
    assert opened.info.source == str(FIRST_FAULT)
    assert drive("n\nq\n", tmp_path / "a.mmr", "--at", "5") == drive("n\nq\n", FIRST_FAULT, "--at", "5")


def test_page_and_ftrace(command: CommandLine, tmp_path: Path) -> None:
    done = command("step", FIRST_FAULT, "--page", "a.html", "--ftrace")
    assert done.returncode == 0
    assert "kvm_mmu_get_page: sp gen 0 gfn 10 l2 4-byte q0 wux" in done.stdout
    assert 'id="steps"' in (tmp_path / "a.html").read_text("utf-8")


def test_other_derivation_ends_wrong() -> None:
    text = "\n".join(
        drive(
            "/ wrong\nq\n",
            ROOT / "data/conformance/6.1.192/sh/quadrants-32.jsonl.xz",
            "--derivation",
            "copied",
        )
    )
    assert "Wrong, by the guest's own tables and registers" in text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("none.mmu",), "none.mmu: neither a file nor a case"),
        (("none.mmr",), "none.mmr: no such file"),
        ((FIRST_FAULT, "--design", "D9"), "role design 'D9': unknown"),
        ((FIRST_FAULT, "--at", "99999"), "moment 99999: the recording has 0 to"),
        ((FIRST_FAULT, "--follow", "xyz"), "gva 'xyz' is no hexadecimal number"),
        ((FIRST_FAULT, "--page", "a.html", "--at", "99999"), "moment 99999: the page has 0 to"),
        ((FIRST_FAULT, "--page", "a.html", "--part", "2", "4", "--at", "5"), "moment 5: the page has 2 to 4"),
        ((FIRST_FAULT, "--part", "2", "4"), "--part 2 4 belongs to a page; name one with --page"),
        ((FIRST_FAULT, "--page", "no/a.html"), "no/a.html: cannot be written"),
        ((FIRST_FAULT, "--save", "no/a.mmr"), "no/a.mmr: cannot be written"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_bad_input(command: CommandLine, args: tuple[str | Path, ...], says: str) -> None:
    assert command.error("step", *args).startswith(says)


def test_design_belongs_to_a_scenario(command: CommandLine) -> None:
    command("step", FIRST_FAULT, "--save", "a.mmr")
    assert command.error("step", "a.mmr", "--derivation", "copied").startswith(
        "a.mmr: a recording has its kernel"
    )


def test_page_names_case_and_design_and_finds_what_is_wrong_first(
    command: CommandLine, tmp_path: Path
) -> None:
    case = "la57-switch-npt-4to5-l0-5"
    assert command("step", case, "--design", "D0", "--page", "a.html", "--part", "125", "135").returncode == 0
    page = (tmp_path / "a.html").read_text()
    assert f"<h1>{case}, design D0</h1>" in page
    assert re.findall('<option value="([^"]+)"', page)[0] == "wrong"


def test_page_opens_where_at_says(command: CommandLine, tmp_path: Path) -> None:
    assert command("step", FIRST_FAULT, "--page", "a.html", "--at", "5").returncode == 0
    data = steps_of((tmp_path / "a.html").read_text("utf-8"))
    assert (data["first"], data["at"], len(data["steps"])) == (0, 5, len(record(read_scenario(FIRST_FAULT))))


def test_page_of_a_part_opens_at_its_first_moment(command: CommandLine, tmp_path: Path) -> None:
    assert command("step", FIRST_FAULT, "--page", "a.html", "--part", "4", "9").returncode == 0
    data = steps_of((tmp_path / "a.html").read_text("utf-8"))
    assert (data["first"], data["at"], len(data["steps"])) == (4, 0, 6)


def test_the_first_wrong_op_is_said_and_stepped(command: CommandLine) -> None:
    path = ROOT / "data/sequences/B13.mmu"
    done = command("step", "--wrong", path, "--page", "page.html")
    assert done.returncode == 0
    assert "op 3 'wr s 4 80200000 0': outcome fault-reached: expected #PF 0x3 (P|W)" in done.stderr
    assert (command.cwd / "page.html").exists()
    done = command("step", "--wrong", path, "--kernel", "6.1", "--ftrace")
    assert done.stderr == f"{path}: nothing goes wrong\n"
    said = command.error("step", "--wrong", path, "--at", "3")
    assert said == "--wrong and --at both say where to begin; leave one out"
