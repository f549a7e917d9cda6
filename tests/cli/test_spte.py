"""``mmulab spte``: what an entry says under a kernel and on a host."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmulab.cli.main import run
from mmulab.kvm.spte import ept_format, make_mmio_spte


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run ``mmulab spte`` and return what it prints; it must succeed."""
    assert run(["spte", *args]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def as_json(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    return json.loads(printed(capsys, *args, "--json"))  # type: ignore[no-any-return]


def test_every_field_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "decode", "0x8000000008300a65").splitlines()
    assert lines[0] == ("0x8000000008300a65: leaf, level 1, pfn 0x8300, P U A D host_writable mmu_present NX")
    assert lines[1] == "  as Linux 6.1.192 lays out shadow paging"
    assert [line.split()[:3] for line in lines[2:]] == [
        ["63", "PT64_NX_MASK", "0x1"],
        ["53-52", "SPTE_TDP_AD_MASK", "0x0"],
        ["51-12", "SPTE_BASE_ADDR_MASK", "0x8300"],
        ["11", "SPTE_MMU_PRESENT_MASK", "0x1"],
        ["10", "DEFAULT_SPTE_MMU_WRITABLE", "0x0"],
        ["9", "DEFAULT_SPTE_HOST_WRITABLE", "0x1"],
        ["6", "PT_DIRTY_MASK", "0x1"],
        ["5", "PT_ACCESSED_MASK", "0x1"],
        ["2", "PT_USER_MASK", "0x1"],
        ["1", "PT_WRITABLE_MASK", "0x0"],
        ["0", "PT_PRESENT_MASK", "0x1"],
    ]
    assert all(len(line.split()) > 3 for line in lines[2:])


def test_kernels_differ_in_what_an_entry_is(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("decode", "0x8000000000000000", "0", "--kernel", "6.1", "--kernel", "6.12")
    found = {(r["spte"], r["kernel"]): (r["kind"], r["unknown_bits"]) for r in as_json(capsys, *args)}
    assert found == {
        ("0x8000000000000000", "6.1.192"): ("unknown", "0x8000000000000000"),
        ("0x8000000000000000", "6.12.117"): ("empty", "0x0"),
        ("0x0", "6.1.192"): ("empty", "0x0"),
        ("0x0", "6.12.117"): ("zero", "0x0"),
    }
    text = printed(capsys, *args)
    assert "note: bits 0x8000000000000000 belong to no field" in text
    assert text.count("note:") == 1


@pytest.mark.parametrize(
    ("host", "spte", "tables", "kind", "flags"),
    [
        ("amd", "0x8300e67", "shadow paging", "leaf", "P W U A D host_writable mmu_writable mmu_present"),
        ("amd npt=1", "0x8300e67", "NPT", "leaf", "P W U A D host_writable mmu_writable mmu_present"),
        ("intel", "0x8300e67", "shadow paging", "leaf", "P W U A D host_writable mmu_writable mmu_present"),
        ("intel ept=1", "0x600000008300b77", "EPT", "leaf", None),
        ("intel ept=1 eptad=0", "0x750000008300870", "EPT", "acc_track", None),
        ("intel ept=1", "0x8300e67", "EPT", "leaf", "R W X IPAT D mmu_present"),
    ],
)
def test_the_host_says_how_an_entry_is_laid_out(
    host: str, spte: str, tables: str, kind: str, flags: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = as_json(capsys, "decode", spte, "--host", host)
    assert (record["tables"], record["kind"], record["pfn"]) == (tables, kind, 0x8300)
    if flags is not None:
        assert record["flags"] == flags.split()


def test_bits_that_a_host_does_not_use_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Bit 9 is D of EPT, if it is used, and bit 10 is nothing."""
    unknown = [
        as_json(capsys, "decode", "0x8300e67", "--host", host)[0]["unknown_bits"]
        for host in ("amd", "intel ept=1", "intel ept=1 eptad=0")
    ]
    assert unknown == ["0x0", "0x400", "0x600"]


def test_an_mmio_entry_tells_its_gfn_beside_the_bits_against_l1tf(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bit 39 of the address is one of the five that are set in its place."""
    spte = make_mmio_spte(ept_format(40, has_ad=True, cache_bits=44), 0x8000FEE, 0, 5)
    host = ("--host", "intel ept=1 l1tf=1 cache_bits=2c")
    (record,) = as_json(capsys, "decode", hex(spte), *host)
    assert (record["kind"], record["gfn"], record["pfn"]) == ("mmio", 0x8000FEE, None)
    named = {field["name"]: (field["bits"], field["value"], field["meaning"]) for field in record["fields"]}
    assert named["shadow_nonpresent_or_rsvd_mask"] == ("43-39", 31, "all set, against L1TF")
    assert named["MMIO_SPTE_GEN_MASK"][:2] == ("62-52,10-3", 5)
    (record,) = as_json(capsys, "decode", hex(spte & ~(1 << 43)), *host)
    assert "not all set" in [field["meaning"] for field in record["fields"]]


def test_the_level_says_whether_bit_7_is_the_page_size(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [
        (r["kind"], "PS" in r["flags"], r["unknown_bits"])
        for level in ("1", "2")
        for r in as_json(capsys, "decode", "0x83008e7", "0x8300827", "--level", level)
    ]
    assert kinds[:2] == [("leaf", False, "0x80"), ("leaf", False, "0x0")]
    assert kinds[2:] == [("leaf", True, "0x0"), ("nonleaf", False, "0x0")]


def test_an_spte_is_hexadecimal_as_a_trace_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "decode", "8300867") == printed(capsys, "decode", "0x8300867")


@pytest.mark.parametrize(
    ("args", "mend"),
    [
        (["zz"], "spte 'zz': give a hexadecimal number as 8300e67"),
        (["0x10000000000000000"], "give 0 to 0xffffffffffffffff"),
        (["--", "-1"], "an entry has 64 bits"),
        (["0x" + "f" * 5000], "ffff'...: give a hexadecimal number"),
        (["1", "zz", "--json"], "spte 'zz'"),
        (["1", "--level", "6"], "6 is not in the range 1<=x<=5"),
        (["1", "--level", "0"], "0 is not in the range 1<=x<=5"),
        (["1", "--kernel", "9"], "kernel '9': unknown; the kernels are 6.1.192"),
        (["1", "--host", "arm"], "host 'arm': host is 'arm', expected one of amd intel"),
        (["1", "--host", ""], "expected VENDOR [KEY=VALUE ..]"),
        (["1", "--host", "amd ept=1"], "a matter of intel; leave it out"),
        (["1", "--host", "intel ept"], "'ept', expected KEY=VALUE"),
        (["1", "--host", "intel ept=2"], "ept is 2, expected 0 or 1"),
        (["1", "--host", "intel bits=2"], "unknown host parameter 'bits', expected one of phys_bits"),
        (["1", "--host", "intel phys_bits=40"], "phys_bits is 40, expected 20 to 34 (hexadecimal)"),
        (["1", "--host", "intel\nmode 64"], "'mode', expected KEY=VALUE"),
        ([], "Missing argument 'SPTE...'"),
    ],
)
def test_bad_input_is_one_line(args: list[str], mend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["spte", "decode", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert mend in err
