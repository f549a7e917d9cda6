"""``mmulab trace``: what a developer's file says, and what of it does not."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmulab.cli.main import run

ROOT = Path(__file__).parents[2]
BOOT = str(ROOT / "data/ftrace/npt-amd64-legacy.trace.gz")
PART = str(ROOT / "data/ftrace/shadow-686-nonpae-part.trace.xz")
SEQUENCE = str(ROOT / "data/sequences/B16.mmu")
WALK = " vm-7 [000] ..... 1.000001: kvm_mmu_paging_element: pte 67 level 2\n"


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "show", BOOT]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].endswith("npt-amd64-legacy.trace.gz: 85039 events in 85051 lines")
    assert lines[2] == "kernel: 6.0 or later (by kvm_page_fault)"
    assert lines[4] == "vCPUs by their threads: 0 in 140"
    assert lines[5].split()[1] == "kvm_exit"
    assert shown.err == ""


def test_show_lists_events_in_each_text(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trace", "show", PART, "--only", "kvm_mmu_unsync_page", "--list", "2"]
    assert run(words) == 0
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.split()[1].startswith("qemu-system-x86-140")
    assert "kvm_mmu_unsync_page: sp gen 1 gfn " in second
    assert run([*words, "--text", "perf", "--from", second.split()[0]]) == 0
    again = capsys.readouterr().out.splitlines()[-2]
    assert again.split()[0] == second.split()[0]
    assert "kvmmmu:kvm_mmu_unsync_page: sp gen 1" in again
    assert run([*words, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["listed"]
    assert [event["event"] for event in listed] == [int(first.split()[0]), int(second.split()[0])]
    assert run(["trace", "show", PART, "--only", "kvm_mmu_nothing"]) == 2


def test_stats_side_by_side_with_a_run_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trace", "stats", PART, SEQUENCE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["shadow-686-nonpae-part.trace.xz"[-24:], "B16.mmu"]
    new = next(line.split() for line in lines if line.startswith("  new "))
    assert new[0] == "new"
    assert int(new[1]) > 0
    assert int(new[2]) > 0
    assert next(line for line in lines if line.startswith("  PF excp")).split()[-1] == "-"
    assert run(["trace", "stats", PART, SEQUENCE, "--json"]) == 0
    host, model = json.loads(capsys.readouterr().out)
    assert {"group": "lifetimes", "name": "zapped and not seen born", "value": 8} in host["rows"]
    assert not [row for row in model["rows"] if "seconds" in row["name"]], "a run has no times"


def test_a_run_of_the_model_is_written_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.trace"
    assert run(["run", SEQUENCE, "--ftrace", str(out)]) == 0
    capsys.readouterr()
    assert run(["trace", "stats", str(out), SEQUENCE, "--json"]) == 0
    written, direct = json.loads(capsys.readouterr().out)
    assert [row for row in written["rows"] if "seconds" not in row["name"]] == direct["rows"]
    assert run(["run", SEQUENCE, "--ftrace", str(tmp_path / "none/run.trace")]) == 2


def test_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    packed = gzip.compress(WALK.encode() * 3)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(packed)))
    assert run(["trace", "show", "-"]) == 0
    assert capsys.readouterr().out.startswith("standard input: 3 events in 3 lines\n")
    assert run(["trace", "stats", "-", "-"]) == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes(range(256)) * 50, "binary, no text of a trace"),
        (WALK.replace("kvm_mmu_paging_element", "sched_switch").encode(), "1 events and none of KVM's"),
        (b"", "no event of a trace in 0 lines"),
    ],
)
def test_bad_input_is_one_sentence(
    data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace"
    path.write_bytes(data)
    for command in ("show", "stats"):
        assert run(["trace", command, str(path)]) == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert shown.err.count("\n") == 1
        assert shown.out == ""


def test_what_is_not_read_is_said_and_the_rest_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = " {}-{} [000] ..... 1.000001: kvm_entry: vcpu 0, rip 0x1\n"
    path = tmp_path / "trace"
    path.write_text(
        WALK + "x" * 60_000 + "\nCPU:3 [LOST 5 EVENTS]\n" + entry.format("a", 1) + entry.format("b", 2)
        + WALK.replace("pte 67 level", "pte") + WALK.replace("kvm_mmu_paging_element", "kvm_ack_irq")
    )  # fmt: skip
    assert run(["trace", "show", str(path)]) == 0
    shown = capsys.readouterr()
    assert "1 kvm_mmu_paging_element: not in a form that is known" in shown.err
    assert "1 events of names that are not read: kvm_ack_irq 1" in shown.err
    assert "1 line too long" in shown.err
    assert "5 events lost by the kernel" in shown.err
    assert "2 virtual machines, by the threads of one vCPU (1 with 1 events, 2 with 1 events)" in shown.err
    assert "         2 kvm_entry" in shown.out


def test_a_cut_archive_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(Path(BOOT).read_bytes()[:60_000])
    assert run(["trace", "stats", str(path)]) == 0
    assert "the file is cut when packed: " in capsys.readouterr().err
