"""``mmulab compare``: the matrix, the costs, what a wrong cell shows, its JSON, its messages."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmulab.cli import compare as command
from mmulab.cli.main import INTERRUPTED, run
from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.cases.table import find_cases
from mmulab.lab.designs.compare import DesignCell, compare_each

Out = pytest.CaptureFixture[str]
SWITCH = "la57-switch-npt-4to5-l0-5"


def test_the_matrix_shows_who_is_wrong_where(capsys: Out) -> None:
    assert run(["compare", "--designs", "D0,D4,glevel,D8", "--cases", "la57-switch-*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["case", "D0", "D4", "D1", "D8"]
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:7]}
    assert rows[SWITCH].split("  ")[-1].strip() == "(op 8)"
    assert rows[SWITCH].split()[:4] == ["op", "8", "ok", "ok"]
    assert rows["la57-switch-shadow-4to5-l0-5"].split() == ["ok"] * 4


def test_wrong_only_leaves_rows_out_and_no_sum(capsys: Out) -> None:
    asked = ["compare", "--designs", "D0,D4", "--cases", "la57-switch-*"]
    run(asked)
    whole = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert run([*asked, "--wrong-only"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [SWITCH, "la57-switch-npt-5to4-l0-5"]
    assert lines[3].startswith("ok; the op of")
    assert all(line.split() in whole for line in lines), "the sums are those of all six"
    run([*asked, "--wrong-only", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 2 * 2
    assert run(["compare", "--kernels", "6.1,6.12", "--wrong-only"]) == 2
    assert "--kernels: compares kernels alone" in capsys.readouterr().err


def test_a_wrong_cell_shows_access_page_and_missing_bit(capsys: Out) -> None:
    run(["compare", "--designs", "D0", "--cases", SWITCH])
    text = capsys.readouterr().out
    block = text[text.index("D0 pre_fix on") :].splitlines()
    assert block == [
        f"D0 pre_fix on {SWITCH}: wrong in op 8 'rd s 4 3000' at gva 0x3000",
        "    expected: gpa 0x300000",
        "    reached:  gpa 0x100000; ok rip=1802 rax=c0de0100",
        "    shared:   gfn 0x14 under 0x21705, made in op 0, found again in op 7",
        "    missing:  passthrough (passthrough's words: 0x61705 made, 0x21705 wanted)",
    ]


def test_costs_are_sums_over_the_cases(capsys: Out) -> None:
    run(["compare", "--designs", "D4,D5", "--cases", "conformance/6.1.192/sh/mode-switch"])
    lines = capsys.readouterr().out.splitlines()
    head = next(n for n, line in enumerate(lines) if line.startswith("design "))
    d4, d5 = (line.split()[2:] for line in lines[head + 1 : head + 3])
    assert d4[:4] == ["1/1", "27", "5", "290"]
    assert int(d5[4]) == int(d4[4]) + 4
    assert d5[6:8] == ["4", "4"]


def test_details_tell_which_field_did_the_work(capsys: Out) -> None:
    run(["compare", "--designs", "D4", "--cases", "la57-switch-npt-*", "--details"])
    text = capsys.readouterr().out
    assert "alone told apart: " in text
    (alone,) = [line for line in text.splitlines() if "alone told apart" in line]
    (never,) = [line for line in text.splitlines() if "never alone" in line]
    assert "passthrough 2" in alone
    assert "has_4_byte_gpte" in never
    assert f"{SWITCH} passthrough: shadow pages " in text


def test_json_has_one_object_a_cell(capsys: Out) -> None:
    assert run(["compare", "--designs", "pre_fix,D3", "--cases", f"{SWITCH},shadow-32-l0-4", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    # A design goes by the name by which it was asked for.
    assert [(r["case"], r["design"], r["verdict"]) for r in records] == [
        (SWITCH, "pre_fix", "wrong"),
        (SWITCH, "D3", "correct"),
        ("shadow-32-l0-4", "pre_fix", "correct"),
        ("shadow-32-l0-4", "D3", "correct"),
    ]
    own = [(r["design_name"], r["design_id"]) for r in records[:2]]
    assert own == [("pre_fix", "D0"), ("target_level", "D3")]
    wrong = records[0]["first_wrong"]
    assert (wrong["op"], wrong["expected"], wrong["reached"]) == (8, 0x300000, 0x100000)
    assert [r["first_wrong"] for r in records[1:]] == [None] * 3
    assert all({"shadow_pages", "base_bits", "in_its_time", "collision", "zaps"} <= set(r) for r in records)


def test_roots_and_derivation_are_those_asked_for(capsys: Out) -> None:
    works = ["--designs", "D4", "--cases", "shadow-32-l0-4", "--json"]
    pages = {}
    for roots in ("special", "shadow"):
        assert run(["compare", *works, "--roots", roots]) == 0
        (record,) = json.loads(capsys.readouterr().out)
        pages[roots] = record["shadow_pages"]
        assert record["verdict"] == "correct"
    assert pages["shadow"] == pages["special"] - 4 + 3, "a portal and the two directories in use, not four"
    run(["compare", "--designs", "D4", "--cases", "mixed-halves-32", "--derivation", "copied"])
    assert "missing:  quadrant" in capsys.readouterr().out


def test_a_boot_and_its_limit(capsys: Out) -> None:
    run(["compare", "--designs", "D4", "--cases", "stream/boot-686-nonpae", "--limit", "5000", "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["case"], record["verdict"]) == ("stream/boot-686-nonpae", "correct")


OWN = """
from mmulab.kvm.roles.design import Passthrough

class Own(Passthrough):
    id, name = "X", "own"

    def pack(self, facts, cpu):
        return super().pack(facts._replace(cr0_wp=True), cpu)
"""


def test_a_design_of_the_users_own_comes_from_a_file(tmp_path: Path, capsys: Out) -> None:
    source = tmp_path / "own.py"
    source.write_text(OWN)
    assert run(["compare", "--designs", f"D4,{source}:Own", "--cases", "mixed-wp-64,mixed-access-64"]) == 0
    text = capsys.readouterr().out
    assert "X own on mixed-wp-64: wrong in op 3" in text
    assert "missing:  cr0_wp" in text
    assert "own on mixed-access-64" not in text


def test_what_6_1_does_itself_is_no_designs_fault(capsys: Out) -> None:
    run(["compare", "--designs", "D0,D4", "--cases", "nonpt-shadow-32-l2-np-l0-4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["nonpt-shadow-32-l2-np-l0-4", "kernel", "kernel"]
    assert "0 right, 0 wrong by design, 2 as Linux" in lines
    assert not any(" on nonpt-shadow" in line for line in lines)


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_run_shows_what_is_finished(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Iterator[list[DesignCell]]:
        yield from list(compare_each([DESIGNS["passthrough"]], find_cases(["shadow-32-l0-4"])))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compare_each", interrupted)
    arguments = ["compare", "--designs", "D4", "--cases", "shadow-32-l0-4,shadow-64-l0-4"]
    assert run([*arguments, "--json"] if as_json else arguments) == INTERRUPTED
    shown = capsys.readouterr()
    assert shown.err == "mmulab: interrupted\n"
    if as_json:
        assert [record["case"] for record in json.loads(shown.out)] == ["shadow-32-l0-4"]
    else:
        assert "shadow-32-l0-4" in shown.out
        assert "shadow-64-l0-4" not in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--designs", "D4,D9"], "role design 'D9': unknown; the designs are D0 pre_fix"),
        (["--designs", "D4,passthrough"], "role design 'passthrough' is there 2 times"),
        (["--cases", "shadow-58"], "case 'shadow-58': unknown"),
        (["--derivation", "guessed"], "derivation 'guessed': unknown"),
        (["--roots", "none"], "root strategy 'none': unknown; the strategies are special, shadow, one_off"),
    ],
)
def test_unknown_names_are_bad_input(arguments: list[str], message: str, capsys: Out) -> None:
    assert run(["compare", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"mmulab: {message}")
    assert shown.err.count("\n") == 1


def test_a_scenario_of_the_users_own_is_compared_as_its_case_is(tmp_path: Path, capsys: Out) -> None:
    case = "la57-switch-npt-4to5-l0-5"
    assert run(["cases", case, "--text"]) == 0
    own = tmp_path / "own.mmu"
    own.write_text(capsys.readouterr().out)
    found = []
    for name in (case, str(own)):
        assert run(["compare", "--cases", name, "--designs", "D0,D4", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    first, second = found
    assert [cell.pop("case") for cell in first] == [case] * 2
    assert [cell.pop("case") for cell in second] == [str(own)] * 2
    assert first == second


def test_a_scenario_that_cannot_be_read_is_refused_before_anything_runs(tmp_path: Path, capsys: Out) -> None:
    own = tmp_path / "own.mmu"
    own.write_text("mmulab-scenario 1\nmode 32\nops\nrd u\nend\n")
    assert run(["compare", "--cases", f"mixed-smep-32,{own}"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert str(own) in err


def test_a_recording_is_compared_by_its_path_as_by_its_name(tmp_path: Path, root: Path, capsys: Out) -> None:
    name = "conformance/6.1.192/sh/accessed-dirty-pae"
    inside = root / f"data/{name}.jsonl.xz"
    own = tmp_path / "own.jsonl"
    own.write_bytes(lzma.decompress(inside.read_bytes()))
    found = []
    for case in (name, str(inside), str(own), str(tmp_path / "*.jsonl")):
        assert run(["compare", "--cases", case, "--designs", "D0,D7", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [[cell.pop("case") for cell in cells] for cells in found] == [
        [case] * 2 for case in (name, str(inside), str(own), str(own))
    ]
    assert found[1:] == [found[0]] * 3
    assert run(["compare", "--cases", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err


def test_a_picture_is_drawn_of_two_designs_in_one_case(tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "wp.svg"
    drawn = ["--designs", "D7,D4", "--cases", "mixed-wp-64", "--picture", str(out)]
    assert run(["compare", *drawn]) == 0
    assert "D7 glevels on mixed-wp-64: wrong" in capsys.readouterr().out
    svg = out.read_text()
    assert svg.startswith("<svg ")
    assert "mixed-wp-64 under D7 and D4" in svg
    assert "cr0_wp=0" in svg
    for wrong in (["--designs", "D4"], ["--cases", "mixed-wp-*"], ["--kernel", "6.12"], ["--syncs", "x"]):
        assert run(["compare", *drawn, *wrong]) == 2
        assert capsys.readouterr().err.startswith("mmulab: --picture: draws two designs ")
