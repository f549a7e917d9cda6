"""``mmulab run`` as a user runs it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mmulab.cli.main import run
from mmulab.scenario.text import write_scenario
from tests.conftest import CommandLine
from tests.kvm.l1 import svm

EXAMPLE = "tests/scenario/examples/first_fault.mmu"
CASE = "la57-switch-npt-4to5-l0-5"


def test_each_op_is_a_line_with_its_outcome(command: CommandLine, root: Path) -> None:
    done = command("run", root / EXAMPLE)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "  -1 init  ->  host",
        "   0 rd u 4 40000000  ->  ok rip=2802 rax=90909090",
        "   1 wr u 4 40000008 1  ->  ok rip=2812 rax=1",
        "   2 teardown  ->  host",
    ]


def test_events_are_worded_as_the_kernels_trace(command: CommandLine, root: Path) -> None:
    lines = [line.strip() for line in command("run", root / EXAMPLE, "--events").stdout.splitlines()]
    write = next(i for i, line in enumerate(lines) if line.startswith("1 wr u"))
    assert lines[write + 3 : write + 7] == [
        "kvm_mmu_pagetable_walk: addr 40000008 pferr 7 P|W|U",
        "kvm_mmu_paging_element: pte 20067 level 2",
        "kvm_mmu_paging_element: pte 100027 level 1",
        "kvm_mmu_set_dirty_bit: gpa 20000",
    ]


def test_json_is_one_object_an_op(command: CommandLine, root: Path) -> None:
    records = [json.loads(line) for line in command("run", root / EXAMPLE, "--json").stdout.splitlines()]
    assert [(r["index"], r["op"]) for r in records] == [
        (-1, "init"),
        (0, "rd u 4 40000000"),
        (1, "wr u 4 40000008 1"),
        (2, "teardown"),
    ]
    assert records[2]["outcome"] == {"out": "ok", "rip": 0x2812, "rax": 1}
    assert {"event": "kvm_mmu_set_dirty_bit", "gpa": 0x20000} in records[2]["events"]
    assert records[2]["stats"]["pf_taken"] == 1


def test_mmio_in_json(command: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "mmio.mmu"
    path.write_text("mmulab-scenario 1\nmode np\nops\nwr s 5000000 7\nend\n")
    records = [json.loads(line) for line in command("run", path, "--json").stdout.splitlines()]
    assert records[1]["outcome"]["mmio"] == [{"write": True, "gpa": 0x5000000, "size": 4, "value": 7}]


def test_a_run_ends_where_the_host_dies(command: CommandLine, tmp_path: Path) -> None:
    """INVLPG of a 32-bit L2 on a host without NPT."""
    path, world = tmp_path / "bug.mmu", svm("64", "32", 4, nested_paging=False, npt=0)
    write_scenario(world.scenario("vmrun b000", "invlpg 40000000", "nop"), path)
    done = command("run", path)
    assert done.returncode == 1
    condition = "the walk starts at level 3 under a root that is not the current MMU's"
    bug = f"BUG_ON({condition}) in mmu.c:shadow_walk_init_using_root"
    assert [line.strip() for line in done.stdout.splitlines()[-2:]] == [
        f"1 invlpg 40000000  ->  host_died: {bug}",
        f"kvm_assertion: {bug}",
    ]


def test_a_run_recorded_conforms_to_itself(command: CommandLine, root: Path, tmp_path: Path) -> None:
    done = command("run", root / EXAMPLE, "--record", tmp_path / "r.jsonl.xz")
    assert done.returncode == 0
    assert command("run", tmp_path / "r.jsonl.xz").stdout == done.stdout
    assert command("conform", tmp_path / "r.jsonl.xz", "--level", "full").returncode == 0
    assert "not the name of a recording" in command.error("run", root / EXAMPLE, "--record", tmp_path / "r")


def test_events_are_in_the_words_of_the_kernel_and_the_design(command: CommandLine, root: Path) -> None:
    name = "conformance/6.1.192/sh/accessed-dirty-32"
    done = command("run", name, "--kernel", "6.12", "--design", "glevel", "--events")
    assert "kvm_flush_remote_tlbs_range: start_gfn" in done.stdout
    assert "with_address" not in done.stdout


def test_a_kernel_of_ones_own_is_not_recorded_under_anothers_name(
    command: CommandLine, root: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.py"
    own.write_text("from mmulab.kvm.kernels import LINUX_6_12\nKERNEL = LINUX_6_12.with_(name='mine')\n")
    out = tmp_path / "r.jsonl.xz"
    error = command.error("run", root / EXAMPLE, "--record", out, "--kernel", f"{own}:KERNEL")
    assert error == f"{out}: a recording is of a kernel that its header can name; leave out your own"
    assert not out.exists()


def test_bad_input_exits_with_2_and_one_line(command: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "s.mmu"
    path.write_text("mmulab-scenario 1\nmode 64\nops\nnop\nfly\nend\n")
    assert command.error("run", path).startswith(f"{path}: line 5: unknown op 'fly', expected one of rd ")
    path.write_text("mmulab-scenario 1\nmode np\ncpu lm=0\nops\nsmm on\nend\n")
    assert command.error("run", path) == f"{path}: line 5: the op smm is not modelled for a guest with lm=0"
    assert "neither a file nor a case" in command.error("run", tmp_path / "none.mmu")


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    assert run(["run", CASE, *args]) == 0
    return capsys.readouterr().out.splitlines()


def test_one_op_has_its_events_and_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    whole = shown(capsys, "--events")
    start = next(i for i, line in enumerate(whole) if line.startswith("   2 "))
    end = next(i for i, line in enumerate(whole) if line.startswith("   3 "))
    lines = shown(capsys, "--op", "2")
    assert lines[: end - start] == whole[start:end]
    assert lines[end - start :][0] == f"events: {end - start - 1}"
    assert "      2 kvm_exit" in lines


def test_events_by_name_stand_below_the_ops_that_have_some(capsys: pytest.CaptureFixture[str]) -> None:
    records = [json.loads(line) for line in shown(capsys, "--json")]
    wanted = ("kvm_mmu_new_pgd", "kvm_mmu_load")
    counts = Counter(e["event"] for r in records for e in r["events"] if e["event"] in wanted)
    assert set(counts) == set(wanted)
    options = [option for name in wanted for option in ("--event", name)]
    lines = shown(capsys, *options)
    at = lines.index(f"events: {counts.total()}")
    assert {line.split()[1]: int(line.split()[0]) for line in lines[at + 1 :]} == counts
    events = [line.strip().partition(":")[0] for line in lines[:at] if line.startswith(" " * 9)]
    assert Counter(events) == counts
    ops = [int(line.split()[0]) for line in lines[:at] if not line.startswith(" " * 9)]
    assert ops == [r["index"] for r in records if any(e["event"] in wanted for e in r["events"])]
    filtered = [json.loads(line) for line in shown(capsys, *options, "--json")]
    assert [e["event"] for r in filtered for e in r["events"]] == [
        e["event"] for r in records for e in r["events"] if e["event"] in wanted
    ]


def test_the_numbers_of_all_events_are_the_most_frequent_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "--events")
    at = next(i for i, line in enumerate(lines) if line.startswith("events: "))
    numbers = [int(line.split()[0]) for line in lines[at + 1 :]]
    assert numbers == sorted(numbers, reverse=True)
    assert sum(numbers) == int(lines[at].split()[1]) == sum(line.startswith(" " * 9) for line in lines[:at])


@pytest.mark.parametrize(
    ("args", "mend"),
    [
        (["--op", "99"], "op 99: the run has ops -1 to 10"),
        (["--event", "kvm_mmu_getpage"], "unknown; did you mean 'kvm_mmu_get_page'? the events are"),
        (["--design", "passthru"], "unknown; did you mean 'passthrough'? the designs are"),
        (["--kernel", "6.12-dumy_root"], "unknown; did you mean '6.12-dummy_root'? the kernels are"),
        (["--kernel", "6.1+dumy_root"], "unknown; did you mean 'dummy_root'? the behaviours are"),
        (["--sync", "unsync_child"], "did you mean 'unsync_children'?"),
    ],
)
def test_a_value_misspelt_is_answered_with_the_nearest(
    args: list[str], mend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", CASE, *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert mend in err


def test_a_case_misspelt_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["run"], ["step"], ["cases"], ["compare", "--cases"]):
        assert run([*command, "la57-switch-npt-4to5-l05"]) == 2
        assert f"did you mean '{CASE}'?" in capsys.readouterr().err
