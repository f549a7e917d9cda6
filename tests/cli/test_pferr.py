"""``mmulab pferr``: faults as words and as lines of a trace."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from mmulab.cli.main import run


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run ``mmulab pferr`` and return what it prints; it must succeed."""
    assert run(["pferr", *args]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    return json.loads(printed(capsys, *args, "--json"))  # type: ignore[no-any-return]


def test_an_error_code_with_a_high_bit_of_kvm(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "0x100000017").splitlines()
    assert lines[:2] == [
        "0x100000017: user write, a present entry without the right; "
        "nested: the guest's final physical address",
        "  as page-fault error code: P W U F GUEST_FINAL",
    ]
    assert [line.split()[:3] for line in lines[2:7]] == [
        ["32", "PFERR_GUEST_FINAL_MASK", "1"],
        ["4", "PFERR_FETCH_MASK", "1"],
        ["2", "PFERR_USER_MASK", "1"],
        ["1", "PFERR_WRITE_MASK", "1"],
        ["0", "PFERR_PRESENT_MASK", "1"],
    ]
    assert lines[7] == "  the trace prints 'pferr 17 P|W|U|F'"
    assert "W and F do not come together" in lines[8]


def test_a_number_without_0x_is_hexadecimal(capsys: pytest.CaptureFixture[str]) -> None:
    assert [record["word"] for record in as_json(capsys, "17", "0x17")] == ["0x17", "0x17"]


def test_ept_and_npf_are_read_by_their_own_tables(capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = as_json(capsys, "0xf82", "--exit-qualification")
    assert (record["read_as"], record["error_code"]) == (
        "exit qualification of an EPT violation",
        "0x100000002",
    )
    assert record["flags"][:2] == ["ACC_WRITE", "GVA_IS_VALID"]
    (record,) = as_json(capsys, "0x100000006", "--npf")
    assert (record["read_as"], record["flags"]) == (
        "EXITINFO1 of a nested page fault",
        ["W", "U", "GUEST_FINAL"],
    )


@pytest.mark.parametrize(
    ("line", "word", "read_as"),
    [
        ("kvm_mmu_walker_error: pferr 9 P|RSVD", "0x9", "page-fault error code"),
        (
            "x-1 [000] 1.0: kvm_page_fault: vcpu 1 address 0x1000 error_code 0x7",
            "0x7",
            "page-fault error code",
        ),
        (
            "kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x10 info1 0x0000000000000182 info2 0x0",
            "0x182",
            "exit qualification of an EPT violation",
        ),
        (
            "kvm_exit: reason npf rip 0x10 info 100000006 fee00000",
            "0x100000006",
            "EXITINFO1 of a nested page fault",
        ),
    ],
)
def test_a_line_of_a_trace(line: str, word: str, read_as: str, capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = as_json(capsys, line)
    assert (record["word"], record["read_as"]) == (word, read_as)


def test_lines_of_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("kvm_fpu: unload\n\nerror_code 0x2\n0x4\n"))
    assert run(["pferr", "-", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [record["word"] for record in json.loads(out)] == ["0x2", "0x4"]
    assert err == "mmulab: passed over, no fault in it: 'kvm_fpu: unload'\n"


def test_a_qualification_taken_for_an_error_code_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "see --exit-qualification" in printed(capsys, "kvm_page_fault: address 0 error_code 0xf82")
    assert "see --exit-qualification" not in printed(capsys, "0x17")


@pytest.mark.parametrize(
    ("args", "mend"),
    [
        (["zz"], "fault 'zz': give a hexadecimal number as 0x100000017"),
        (["0x10000000000000000"], "it has 64 bits; give 0 to 0xffffffffffffffff"),
        (["--", "-1"], "it has 64 bits"),
        (["0x" + "f" * 5000], "give a hexadecimal number"),
        (["1", "--npf", "--exit-qualification"], "one is Intel's, the other AMD's"),
        ([], "Missing argument 'WORD...'"),
    ],
)
def test_bad_input_is_one_line(args: list[str], mend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pferr", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert mend in err


def test_standard_input_without_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("nothing\n"))
    assert run(["pferr", "-"]) == 2
    assert "standard input: no line has an error code" in capsys.readouterr().err
