"""``mmulab compare --kernels``: effects of each change, sums, and the first op."""

from __future__ import annotations

import json

import pytest

from mmulab.cli.main import run
from mmulab.kvm.behaviours import CHANGES
from tests.conftest import CommandLine

WORK = "conformance/6.1.192/sh/dirtylog-32"


def test_a_line_a_change_and_the_sums(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--kernels", "6.1, 6.12", "--cases", WORK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6.12.117 beside 6.1.192, 1 pieces of work"
    numbers = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(tuple(CHANGES))}
    (kept,) = (line for line in lines if line.startswith("sync_keeps_clean_sptes  "))
    assert kept.split()[1:] == ["1", "+3", *"0000", "+3", *"0000"]
    (total,) = (line for line in lines if line.startswith("all at once"))
    (added,) = (line for line in lines if line.startswith("sum"))
    assert total.split()[4:] == added.split()[1:6]
    assert f"invalidate_syncs_in_place (6.4, 9fd4a4e3a3d9): {WORK} op 35 'invlpg 40002000'" in lines
    (hidden,) = (line for line in lines if line.startswith("nowhere here: "))
    assert "dummy_root" in hidden
    assert "dummy_root" not in numbers


def test_json_has_each_effect(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--kernels", "6.12,6.12-dummy_root,6.1", "--cases", f"{WORK},shadow-32-l0-4"]
    assert run([*command, "--json", "--jobs", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(row["base"], row["other"]) for row in found} == {
        ("6.12.117", "6.12.117-dummy_root"),
        ("6.12.117", "6.1.192"),
    }
    (row,) = (
        row
        for row in found
        if (row["work"], row["change"], row["added"]) == (WORK, "sync_keeps_clean_sptes", True)
    )
    assert row["effects"]["faults"] == -3
    assert (row["first"], row["text"]) == (43, "wr s 4 40000008 55aa5590")


def test_details_name_every_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--kernels", "6.1,6.1+cr0_wp_needs_paging", "--cases", WORK, "--details"]) == 0
    assert f"{WORK} all at once: none; the same" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("kernels", "says"),
    [
        ("6.1", "--kernels '6.1': one kernel; name two or more with a comma between"),
        ("6.1,6.1.192", "kernels 6.1.192 and 6.1.192 are the same; name two that differ"),
        ("6.1,5.0", "kernel '5.0': unknown; the kernels are 6.1.192, 6.12.117, "),
        ("6.1,6.12+none_such", "behaviour 'none_such': unknown; "),
    ],
)
def test_bad_kernels_are_refused(command: CommandLine, kernels: str, says: str) -> None:
    assert command.error("compare", "--kernels", kernels, "--cases", WORK).startswith(says)


def test_designs_and_kernels_exclude_each_other(command: CommandLine) -> None:
    said = command.error("compare", "--kernels", "6.1,6.12", "--designs", "D4")
    assert said == "--kernels: compares kernels alone; leave --designs, --kernel and the like out"
