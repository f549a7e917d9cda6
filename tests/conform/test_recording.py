"""Reading recordings: three forms of file, and what is refused."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmulab.conform.recording import (
    QUIRKS_BY_VENDOR,
    find_recordings,
    read_lines,
    read_recording,
    scenario_name,
)
from mmulab.errors import InputError
from tests.conform.deaths import cut_short, write

NAME = "sh/accessed-dirty-pae"


@pytest.fixture
def lines(root: Path) -> list[str]:
    """The lines of a small recording."""
    return read_lines(root / f"data/conformance/6.1.192/{NAME}.jsonl.xz")


def test_a_recording_has_its_header_ops_and_steps(root: Path) -> None:
    recording = read_recording(root / f"data/conformance/6.1.192/{NAME}.jsonl.xz")
    header = recording.scenario.header
    assert (header.vendor, header.mode, header.regs.cr3, header.backing_bytes) == (
        "amd",
        "pae",
        0x10000,
        1 << 24,
    )
    assert (header.host["npt"], header.host["virt_bits"], header.cpuid["maxphyaddr"]) == (0, 57, 40)
    assert {"rmw_reads_first", "rsvd_without_p"} <= set(header.quirks)
    assert (recording.ops[0].text, recording.ops[0].index, recording.ops[0].line) == ("init", -1, 2)
    assert recording.ops[-1].text == "teardown"
    ran = [op.text for op in recording.ops[1:-1] if not op.text.startswith("~")]
    assert len(ran) == len(recording.scenario.steps)
    helpers = [op.index for op in recording.ops if op.text.startswith("~")]
    assert helpers
    assert recording.scenario.steps[0].line in (3, 4)


def test_the_intel_processors_are_told_apart(root: Path) -> None:
    hosts = {
        folder: read_recording(root / f"data/conformance/6.1.192/{folder}/mmio-64.jsonl.xz").scenario.header
        for folder in ("intel-sh", "ept0", "ept0-pml")
    }
    assert {name: h.host["cache_bits"] for name, h in hosts.items()} == {
        "intel-sh": 44,
        "ept0": 44,
        "ept0-pml": 40,
    }
    assert {name: h.host["ept"] for name, h in hosts.items()} == {"intel-sh": 0, "ept0": 1, "ept0-pml": 1}
    assert all(h.quirks == QUIRKS_BY_VENDOR["intel"] and h.host["l1tf"] for h in hosts.values())


def test_plain_gzip_and_xz_read_alike(lines: list[str], tmp_path: Path) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(text))
    found = find_recordings([str(tmp_path)])
    assert [p.name for p in found] == ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"]
    assert {scenario_name(p) for p in found} == {"a"}
    plain, *others = (read_recording(p) for p in found)
    assert len(plain.ops) == len(lines) - 2
    for other in others:
        assert other.ops == plain.ops
        assert other.scenario.header == plain.scenario.header


def test_folders_and_folders_of_folders_are_found_in_order(lines: list[str], tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.jsonl", "a/3.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, lines)
    (tmp_path / "a/helpers.json").write_text("{}")
    (tmp_path / "a/PROVENANCE.md").write_text("")
    assert [p.stem for p in find_recordings([str(tmp_path)])] == ["3", "1", "2"]
    assert [p.stem for p in find_recordings([str(tmp_path / "b"), str(tmp_path / "a/3.jsonl")])] == [
        "1",
        "2",
        "3",
    ]


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[list[str]], list[str]]:
    def apply(lines: list[str]) -> list[str]:
        header = json.loads(lines[0])
        change(header)
        return [json.dumps(header), *lines[1:]]

    return apply


def _op(number: int, change: Callable[[dict[str, Any]], object]) -> Callable[[list[str]], list[str]]:
    def apply(lines: list[str]) -> list[str]:
        record = json.loads(lines[number])
        change(record)
        return [*lines[:number], json.dumps(record), *lines[number + 1 :]]

    return apply


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda _: [], "line 1: the file is empty, expected a header"),
        (lambda lines: ["not json", *lines[1:]], "line 1: cut, or no JSON"),
        (lambda lines: ["[1]", *lines[1:]], "line 1: expected a JSON object, found [1]"),
        (_header(lambda h: h.pop("cr3")), "line 1: the header has no 'cr3'"),
        (_header(lambda h: h.pop("host")), "line 1: the header has no 'host'"),
        (_header(lambda h: h.pop("format")), "line 1: the header has no 'format'"),
        (_header(lambda h: h.update(format=2)), "line 1: format 2, expected 1"),
        (_header(lambda h: h.update(cr3="0xzz")), "line 1: header: '0xzz' is no hexadecimal number"),
        (_header(lambda h: h["host"].update(params={})), "header: host.params: expected one of kvm_amd.npt"),
        (_header(lambda h: h.update(backing_size=16)), "line 1: header: 16 is no hexadecimal number"),
        (_header(lambda h: h.update(backing_size="Infinity")), "'Infinity' is no hexadecimal number"),
        (_header(lambda h: h.update(backing_size="-0x1000")), "'-0x1000' is no hexadecimal number"),
        (_header(lambda h: h.update(backing_size="0x1000000000")), "line 1: header: mem is 1000000000"),
        (_header(lambda h: h.update(cr3="-1")), "'-1' is no hexadecimal number"),
        (_header(lambda h: h.update(cr3=" 1_0")), "' 1_0' is no hexadecimal number"),
        (_header(lambda h: h.update(cr3=float("inf"))), "line 1: cut, or no JSON"),
        (_header(lambda h: h.update(mode="63")), "line 1: header: mode is '63', expected one of"),
        (_header(lambda h: h.update(slots=3)), "line 1: header: 3 is no list"),
        (_header(lambda h: h.update(host=[])), "line 1: header: [] is no object"),
        (_header(lambda h: h["cpuid"].update(maxphyaddr="40")), "line 1: header: '40' is no number"),
        (_header(lambda h: h["cpuid"].update(odd=1)), "line 1: header: unknown CPUID feature 'odd'"),
        (_header(lambda h: h.update(thp="yes")), "line 1: header: 'yes' is no number in 0 to 1"),
        (_header(lambda h: h.update(nxdisable=2)), "line 1: header: 2 is no number in 0 to 1"),
        (_header(lambda h: h["slots"][0].update(size="0x2000000")), "line 1: header: SIZE is 2000000"),
        (_header(lambda h: h["mem_values"].append(["0x8", "0xfffff000", "0x0"])), "header: GPA is fffff000"),
        (_header(lambda h: h["mem_values"].append(["0x3", "0x0", "0x0"])), "the size of a value is 3"),
        (_header(lambda h: h["fills"].append(["0x0", "0xffffffffff", "0x1"])), "header: LEN is ffffffffff"),
        (_op(5, lambda r: r.update(i="x")), "line 6: not an op as a recording holds it: 'x' is no number"),
        (_op(5, lambda r: r.update(op=7)), "line 6: not an op as a recording holds it: 7 is no text"),
        (_op(5, lambda r: r.update(ev={})), "line 6: not an op as a recording holds it: {} is no list"),
        (_op(5, lambda r: r.update(ev=["pte"])), "'pte' is no object"),
        (_op(5, lambda r: r.update(stats={"x": "1"})), "'1' is no"),
        (_op(5, lambda r: r["out"].update(out="odd")), "unknown outc"),
        (_op(5, lambda r: r["out"].update(rip=[])), "[] is no number"),
        (
            _op(5, lambda r: r["ev"].append({"e": "pte", "v": "0x1", "l": []})),
            "line 6: not an op as a recording holds it: [] is no number",
        ),
        (_op(5, lambda r: r.update(op="fly 5")), "line 6: unknown op 'fly', expected one of rd"),
        (_op(5, lambda r: r.update(op="rd u 4 zz")), "line 6: GVA is 'zz', expected a hexadecimal number"),
        (_op(5, lambda r: r.pop("out")), "line 6: not an op as a recording holds it: no key 'out'"),
        (
            _op(5, lambda r: r["ev"].append({"e": "odd"})),
            "line 6: not an op as a recording holds it: unknown event 'odd'",
        ),
        (
            _op(5, lambda r: r["ev"].append({"e": "pte", "v": "0x1"})),
            "line 6: not an op as a recording holds it",
        ),
        (lambda lines: lines[:-1], "the file is cut, expected a last line"),
        (lambda lines: lines[:1], "line 1: the file is cut, expected a last line"),
        (lambda lines: [*lines[:-3], lines[-3][:40]], "cut, or no JSON"),
        (lambda lines: [lines[0], *lines[2:]], "line 2: expected the op init first and teardown, or "),
        (lambda lines: [*lines[:-2], lines[-1]], "line 2: expected the op init first and teardown, or "),
    ],
)
def test_a_damaged_recording_is_refused_with_its_line(
    lines: list[str], tmp_path: Path, damage: Callable[[list[str]], list[str]], expected: str
) -> None:
    path = write(tmp_path / "d.jsonl", damage(lines))
    with pytest.raises(InputError) as caught:
        read_recording(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: line ")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("suffix", ["jsonl.xz", "jsonl.gz"])
def test_a_broken_compression_is_refused(lines: list[str], tmp_path: Path, suffix: str) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    packed = lzma.compress(text) if suffix.endswith("xz") else gzip.compress(text)
    path = tmp_path / f"b.{suffix}"
    for data in (packed[: len(packed) // 2], b"nonsense", packed[:-12] + b"x" * 12):
        path.write_bytes(data)
        with pytest.raises(InputError, match="not a whole"):
            read_recording(path)


def test_paths_that_are_no_recordings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="no such file or folder"):
        find_recordings([str(tmp_path / "none")])
    with pytest.raises(InputError, match="not a recording by its name"):
        find_recordings([str(tmp_path / "notes.txt")])
    with pytest.raises(InputError, match="no recording in this folder"):
        find_recordings([str(tmp_path)])


def test_a_kernel_may_die_of_the_last_op(lines: list[str], tmp_path: Path) -> None:
    recording = read_recording(write(tmp_path / "died.jsonl", cut_short(lines, 6)))
    assert recording.fatal == recording.ops[-1]
    assert len(recording.ops) == 6
    assert recording.end == recording.ops[-1].index + 1
    assert recording.steps[-1] == recording.fatal, "its scenario has the op, so that it can be run again"
    whole = read_recording(write(tmp_path / "whole.jsonl", lines))
    assert whole.fatal is None
    assert whole.end == whole.ops[-1].index
    assert recording.ops[:5] == whole.ops[:5]


def test_a_kernel_may_die_of_the_teardown(lines: list[str], tmp_path: Path) -> None:
    recording = read_recording(write(tmp_path / "died.jsonl", cut_short(lines, len(lines) - 2)))
    assert recording.fatal is not None
    assert (recording.fatal.text, recording.fatal.index) == ("teardown", recording.end)


def test_a_dead_kernel_runs_nothing(lines: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "risen.jsonl", [*cut_short(lines, 6)[:7], *lines[7:]])
    with pytest.raises(InputError, match=r"risen.jsonl: line 8: an op after host_died, expected none"):
        read_recording(path)
