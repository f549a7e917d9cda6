"""``mmulab diff`` as a user runs it: tables, examples, JSON, exit codes."""

from __future__ import annotations

import json
import lzma
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmulab import pool
from mmulab.cli.main import run
from mmulab.conform.recording import read_lines
from mmulab.kvm.behaviours import RELEASED
from tests.conftest import ROOT, CommandLine

DATA = ROOT / "data/conformance"
OLD, NEW = DATA / "6.1.192", DATA / "6.12.117"
BASIC = OLD / "sh/basic-32.jsonl.xz"


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A recording with one value read changed."""
    lines = lzma.decompress(BASIC.read_bytes()).decode()
    assert lines.count('"rax":"0x90909090"') > 1
    path = tmp_path / "changed.jsonl"
    path.write_text(lines.replace('"rax":"0x90909090"', '"rax":"0x12"', 1))
    return path


def said(capsys: pytest.CaptureFixture[str], *args: str | Path, code: int) -> list[str]:
    assert run(["diff", *map(str, args), "--jobs", "1"]) == code
    return capsys.readouterr().out.splitlines()


def answer(capsys: pytest.CaptureFixture[str], *args: str | Path, code: int = 1) -> dict[str, Any]:
    found = json.loads("".join(said(capsys, *args, "--json", code=code)))
    assert isinstance(found, dict)
    return found


def test_equal_sets_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, OLD / "tdp0", OLD / "tdp0", code=0)
    assert lines[0] == f"A: {OLD}/tdp0, 10 of 6.1.192"
    assert lines[2:] == ["diff: 0 of 10 scenarios differ, 0 ops of 404, 0 kinds"]


def test_a_difference_is_counted_and_shown(capsys: pytest.CaptureFixture[str], changed: Path) -> None:
    lines = said(capsys, BASIC, changed, code=1)
    assert lines[2:] == [
        "",
        "kind               scenarios     ops  times",
        "outcome rax other          1       1  1",
        "",
        "outcome rax other: basic-32 op 0 'rd s 4 40000000' (52 events)",
        "  - outcome ok rip=1802 rax=90909090",
        "  + outcome ok rip=1802 rax=12",
        "",
        "diff: 1 of 1 scenarios differ, 1 ops of 17, 1 kinds",
    ]


def test_kinds_between_two_kernels_have_the_counts_of_the_changes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = answer(capsys, OLD / "tdp0", NEW / "tdp0", "--causes")
    kinds = {row["kind"]: row["ops"] for row in found["kinds"]}
    causes = found["causes"]
    changes = {row["change"]: row["ops"]["differ"] for row in causes["changes"]}
    assert list(changes) == list(RELEASED)
    assert {name: ops for name, ops in changes.items() if ops} == {
        "roots_all_is_four_bits": kinds["c_free_roots mask other"],
        "sregs_flush_guest": kinds["statistic tlb_flush other"],
        "error_code_has_64_bits": kinds["fast_page_fault err other"],
        "retry_only_if_write_protected": kinds["c_unprotect missing"],
    }
    assert sum(changes.values()) == found["ops"]["differ"]
    assert causes["unexplained"]["ops"]["differ"] == 0
    assert causes["not_modelled"]["ops"]["differ"] == 0


def test_causes_are_a_table_with_commits_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, OLD / "sh/nonpaging.jsonl.xz", NEW / "sh", "--causes", "--level", "mmu", code=1)
    assert "cr0_wp_needs_paging          1       1  get_page missing 1" in lines
    at = lines.index("cr0_wp_needs_paging (e40bcf9f3a18): nonpaging op 25 'rd s 4 103000' (4 events)")
    assert lines[at + 1].startswith("  - get_page gfn=0 ")
    (hidden,) = (line for line in lines if line.startswith("nowhere here: "))
    assert "dummy_root" in hidden
    assert lines[-4:-2] == ["0 ops differ whichever change is left out", "0 ops of B are not the model's"]


def test_the_model_is_a_side(capsys: pytest.CaptureFixture[str]) -> None:
    folder = OLD / "tdp0"
    assert said(capsys, folder, "model", code=0)[1] == "B: model, 10 of 6.1.192"
    model = answer(capsys, folder, "model:6.12")
    recorded = answer(capsys, folder, NEW / "tdp0")
    assert model["kinds"] == recorded["kinds"]
    assert said(capsys, folder, "model:6.12", "--level", "outcome", code=0)[-1].startswith("diff: 0 of 10 ")


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        ("fast_page_fault err other", ["fast_page_fault err other"]),
        (
            "statistic",
            ["statistic pf_emulate other", "statistic pf_taken other", "statistic tlb_flush other"],
        ),
        ("kvm_*", ["kvm_emulate_insn missing", "kvm_exit missing", "kvm_page_fault missing"]),
        ("added", []),
    ],
)
def test_only_counts_the_kinds_that_are_named(
    capsys: pytest.CaptureFixture[str], pattern: str, kinds: list[str]
) -> None:
    found = answer(capsys, OLD / "tdp0", NEW / "tdp0", "--only", pattern, code=1 if kinds else 0)
    assert sorted(row["kind"] for row in found["kinds"]) == kinds


def test_limit_is_the_number_of_examples(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = []
    for limit in ("0", "1", "3"):
        found = answer(capsys, OLD / "tdp0", NEW / "tdp0", "--limit", limit, "--only", "c_free_roots")
        ((kind,),) = (found["kinds"],)
        numbers.append(len(kind["examples"]))
        sizes = [example["events"] for example in kind["examples"]]
        assert sizes == sorted(sizes)
    assert numbers == [0, 1, 3]


def test_what_is_on_one_side_only_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("basic-32", "basic-64"):
        shutil.copy(OLD / f"sh/{name}.jsonl.xz", tmp_path)
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "basic-64.jsonl.xz", tmp_path / "b")
    shutil.copy(tmp_path / "basic-32.jsonl.xz", tmp_path / "b/other.jsonl.xz")
    (tmp_path / "a").mkdir()
    shutil.move(tmp_path / "basic-32.jsonl.xz", tmp_path / "a/other.jsonl.xz")
    lines = said(capsys, tmp_path / "a", tmp_path / "b", code=1)
    assert "only in B: basic-64" in lines
    assert "scenario added          1       0  1" in lines
    assert lines[-1] == "diff: 1 of 2 scenarios differ, 0 ops of 17, 1 kinds"


def test_scenarios_that_begin_otherwise_differ(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, *rest = read_lines(BASIC)
    header = json.loads(first)
    (tmp_path / "x.jsonl").write_text("\n".join([json.dumps({**header, "thp": 1}), *rest]) + "\n")
    lines = said(capsys, BASIC, tmp_path / "x.jsonl", code=1)
    assert lines[-5:-2] == ["header thp other: basic-32", "  - thp False", "  + thp True"]


def test_processes_change_nothing(command: CommandLine) -> None:
    done = [command("diff", OLD / "tdp1", NEW / "tdp1", "--jobs", jobs) for jobs in ("1", "2")]
    assert [d.returncode for d in done] == [1, 1]
    assert done[0].stdout == done[1].stdout


def test_trouble_is_one_line_and_exit_code_2(command: CommandLine, tmp_path: Path) -> None:
    says = {
        (tmp_path / "none", OLD): f"{tmp_path}/none: no such file or folder",
        ("model", OLD): "A 'model': the model runs the scenarios of recordings; name it as B",
        (OLD / "tdp0", "model:5.0"): "kernel '5.0': unknown; ",
        (BASIC, NEW / "tdp0"): f"{NEW}/tdp0: no recording 'basic-32' in this folder; name the other file too",
        (BASIC, BASIC, "--only", "flush"): "--only 'flush': no such kind; ",
        (BASIC, BASIC, "--causes"): f"{BASIC}: both sides have kernel 6.1.192; leave --causes out",
    }
    for args, line in says.items():
        assert command.error("diff", *args).startswith(line)


def test_a_bad_file_costs_no_other_its_answer(command: CommandLine, tmp_path: Path) -> None:
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        shutil.copy(BASIC, tmp_path / side)
        (tmp_path / side / "cut.jsonl").write_text("\n".join(read_lines(BASIC)[:5]) + "\n")
    done = command("diff", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1] == "diff: 0 of 1 scenarios differ, 0 ops of 17, 0 kinds"
    assert re.fullmatch(r"mmulab: .*/a/cut\.jsonl: line 5: the file is cut, .*\n", done.stderr)


def test_interrupted_it_shows_what_is_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    each = pool.each

    def interrupted(function: Any, works: Any, jobs: int) -> Iterator[Any]:
        yield from each(function, works[:2], jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "each", interrupted)
    lines = said(capsys, OLD / "tdp0", OLD / "tdp0", code=130)
    assert lines[-1].startswith("diff: 0 of 2 scenarios differ, ")
    assert lines[-1].endswith("0 kinds; interrupted: 8 scenarios not compared")
    found = answer(capsys, OLD / "tdp0", OLD / "tdp0", code=130)
    assert (found["interrupted"], found["not_run"]) == (True, 8)
