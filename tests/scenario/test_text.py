"""The scenario text format: round trips, the example of the documentation, what is refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.check import VIRT_BITS, WIDTHS
from mmulab.scenario.grammar import Step
from mmulab.scenario.scenario import (
    CPUID_DEFAULTS,
    HOST_DEFAULTS,
    MODES,
    QUIRKS,
    Fill,
    Header,
    Regs,
    Scenario,
    Slot,
    Value,
)
from mmulab.scenario.text import format_scenario, parse_scenario, read_scenario, write_scenario
from tests.scenario.test_grammar import steps

MEM = 0x100000
U64 = st.integers(0, (1 << 64) - 1)
PAGES = st.integers(0, (MEM >> 12) - 1).map(lambda page: page << 12)

MINIMAL = "mmulab-scenario 1\nmode np\nops\nend\n"
EXAMPLE = Path(__file__).parent / "examples/first_fault.mmu"


def _changed(defaults: dict[str, int]) -> st.SearchStrategy[dict[str, int]]:
    values = {name: st.integers(*WIDTHS.get(name, (0, 1))) for name in defaults}
    values |= {"virt_bits": st.sampled_from(VIRT_BITS)} if "virt_bits" in defaults else {}
    names = st.lists(st.sampled_from(sorted(defaults)), max_size=3, unique=True)
    changes = names.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))
    return changes.map(lambda change: {**defaults, **change})


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Any scenario that the format can hold."""
    values = st.sampled_from([1, 2, 4, 8]).flatmap(
        lambda size: st.builds(
            Value,
            st.just(size),
            st.integers(0, MEM // 8 - 1).map(lambda word: word * 8),
            st.integers(0, (1 << 8 * size) - 1),
        )
    )
    fills = st.builds(Fill, PAGES, st.integers(1, 4096), st.integers(0, 255))
    header = Header(
        vendor=draw(st.sampled_from(["amd", "intel"])),
        mode=draw(st.sampled_from(sorted(MODES))),
        regs=Regs(*(draw(U64) for _ in range(4))),
        backing_bytes=MEM,
        thp=draw(st.booleans()),
        manual_dirty=draw(st.booleans()),
        disable_nx_huge_pages=draw(st.booleans()),
        dirty_ring=draw(st.sampled_from([0, 0x400])),
        slots=(Slot(0, 0, 0x80000, 0, 0), Slot(3, 0x200000, 0x1000, draw(st.integers(0, 3)), draw(PAGES))),
        fills=tuple(draw(st.lists(fills, max_size=3))),
        values=tuple(draw(st.lists(values, max_size=4))),
        pdptfix=tuple(draw(st.lists(PAGES, max_size=2))),
        cpuid=draw(_changed(CPUID_DEFAULTS)),
        host=draw(_changed(HOST_DEFAULTS)),
        quirks=draw(st.sampled_from([(), tuple(QUIRKS)])),
    )
    return Scenario(header, tuple(draw(st.lists(steps(), max_size=5))), "<text>")


def without_lines(scenario: Scenario) -> tuple[Header, list[Step]]:
    """What of a scenario does not depend on where its text stood."""
    return scenario.header, [step._replace(line=0) for step in scenario.steps]


@given(scenarios())
def test_writing_and_reading_a_scenario_gives_it_back(scenario: Scenario) -> None:
    assert without_lines(parse_scenario(format_scenario(scenario))) == without_lines(scenario)


@given(scenarios())
def test_reading_and_writing_the_text_gives_it_back(scenario: Scenario) -> None:
    text = format_scenario(scenario)
    assert format_scenario(parse_scenario(text)) == text


@pytest.mark.parametrize(
    "name", ["sh/os-pae-00", "intel-sh/fuzz-64-thp-04", "nested48/nested-roots-64", "tdp0/mode-switch"]
)
def test_a_recordings_scenario_survives_as_text(root: Path, name: str, tmp_path: Path) -> None:
    scenario = read_recording(root / f"data/conformance/6.1.192/{name}.jsonl.xz").scenario
    write_scenario(scenario, tmp_path / "s.mmu")
    assert without_lines(read_scenario(tmp_path / "s.mmu")) == without_lines(scenario)
    assert [p.name for p in tmp_path.iterdir()] == ["s.mmu"]


def test_the_example_is_what_it_says() -> None:
    scenario = read_scenario(EXAMPLE)
    b = ScenarioBuilder("32", source=str(EXAMPLE)).root(0x10000).alloc(0x20000)
    b.value(4, 0x10400, 0x20067).value(4, 0x20000, 0x100027)
    built = b.op("rd u 40000000", line=8).op("wr u 40000008 1", line=9).build()
    assert scenario == built
    assert len(EXAMPLE.read_text().splitlines()) == 10


def test_header_lines_may_come_in_any_order_and_values_in_rows() -> None:
    text = "mmulab-scenario 1 # version\n\nm4 20000 1 2 ff # row\nthp 1\n  mode np\nops\nNOP\nend\n"
    scenario = parse_scenario(text.replace("NOP", "@1 nop # the second vCPU"))
    assert scenario.header.values == (Value(4, 0x20000, 1), Value(4, 0x20004, 2), Value(4, 0x20008, 0xFF))
    assert scenario.header.thp
    assert [(s.op.vcpu, s.line) for s in scenario.steps] == [(1, 7)]


def _with(header: str = "", ops: str = "") -> str:
    return f"mmulab-scenario 1\nmode 32\n{header}ops\nnop\n{ops}end\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "line 1: expected mmulab-scenario 1, found ''"),
        ("scenario 1\n", "line 1: expected mmulab-scenario 1, found 'scenario 1'"),
        ("mmulab-scenario 2\n", "line 1: version is '2', expected 1"),
        ("mmulab-scenario 1\nops\nend\n", "the header has no mode line, expected mode np, 32, pae, 64 or 57"),
        ("mmulab-scenario 1\nmode 16\nops\nend\n", "mode is '16', expected one of np 32 pae 64 57"),
        (_with("mode 64\n"), "line 3: a second mode line, expected one"),
        (_with("memory 1000\n"), "line 3: unknown header line 'memory', expected one of mode host cpu mem"),
        (_with("mem\n"), "line 3: 0 arguments, expected BYTES"),
        (_with("mem 12x\n"), "line 3: BYTES is '12x', expected a hexadecimal number"),
        (_with("thp yes\n"), "line 3: 'yes', expected 0 or 1"),
        (_with("host\n"), "line 3: no arguments, expected VENDOR [KEY=VALUE ..]"),
        (_with("host amd npt\n"), "line 3: 'npt', expected KEY=VALUE"),
        (_with("host amd npt=2\nmem 1000000\n"), "line 3: npt is 2, expected 0 or 1"),
        (_with("host amd phys_bits=99\n"), "line 3: phys_bits is 99, expected 20 to 34"),
        (_with("host amd virt_bits=38\n"), "line 3: virt_bits is 38, expected 30 or 39"),
        (_with("host intel cache_bits=10\n"), "line 3: cache_bits is 10, expected 20 to 34"),
        (_with("cpu maxphyaddr=35\n"), "line 3: maxphyaddr is 35, expected 20 to 34"),
        (_with("cpu smep=2\n"), "line 3: smep is 2, expected 0 or 1"),
        (_with("slot 1 0 1000 8 0\n"), "line 3: FLAGS is 8, expected 0 to 3"),
        (_with("cpu smep=q\n"), "line 3: smep is 'q', expected a hexadecimal number"),
        (_with("alloc 20000 20800\n"), "line 3: GPA is 20800, expected a multiple of 1000"),
        (_with("alloc\n"), "line 3: no arguments, expected GPA .."),
        (_with("m4 20000\n"), "line 3: 1 arguments, expected GPA VAL .."),
        (_with("m4 20000 0\nm4 20000 100000000\n"), "line 4: VAL is 100000000, expected 0 to ffffffff"),
        (_with("slot 1 0 1000 0\n"), "line 3: 4 arguments, expected ID GPA SIZE FLAGS OFFSET"),
        (_with("sregs 1 2 3\n"), "line 3: 3 arguments, expected CR0 CR3 CR4 EFER"),
        (_with(ops="rd s 4 4000000g\n"), "line 5: GVA is '4000000g', expected a hexadecimal number"),
        (_with(ops="rd s 4\nnop\nfly\n"), "line 7: unknown op 'fly', expected one of rd wr xg"),
        (_with() + "nop\n", "line 6: expected nothing after end, found 'nop'"),
        ("mmulab-scenario 1\nmode 32\n", "line 2: the text ends here, expected ops; is the file cut?"),
        (_with()[: -len("end\n")], "line 4: the text ends here, expected end; is the file cut?"),
        (_with(ops="rd s 40000000\n")[: -len("0000\nend\n")], "line 5: the text ends here, expected end"),
    ],
)
def test_bad_text_is_refused_with_its_line(text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_scenario(text, "a.mmu")
    message = str(caught.value)
    assert message.startswith("a.mmu: line ")
    assert expected in message
    assert "\n" not in message


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    path = tmp_path / "cut.mmu"
    for length in range(len(text.rstrip())):
        path.write_text(text[:length])
        with pytest.raises(InputError, match=r"cut\.mmu: line \d+: "):
            read_scenario(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.mmu").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"b\.mmu: byte 0: not text in UTF-8"):
        read_scenario(tmp_path / "b.mmu")
    with pytest.raises(InputError, match="no such file"):
        read_scenario(tmp_path / "none.mmu")


def test_the_minimal_text_has_the_defaults() -> None:
    header = parse_scenario(MINIMAL).header
    assert header == dataclasses.replace(ScenarioBuilder("np").build().header)
    assert header.backing_bytes == 0x1000000


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_scenario(text, "a.mmu")
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2000
    return message


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_lines_end_where_editors_end_them(separator: str) -> None:
    text = MINIMAL.replace("ops", f"# one{separator}line\nops\nfly")
    assert "a.mmu: line 5: unknown op 'fly'" in refused(text)
    assert "expected mode" in refused(f"mmulab-scenario 1\n#{separator}mode np\nops\nend\n")


def test_line_endings_of_other_systems_are_read() -> None:
    assert parse_scenario(MINIMAL.replace("\n", "\r\n")) == parse_scenario(MINIMAL)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("mem \u0661000000", "BYTES is '\u0661000000', expected a hexadecimal number"),
        ("mem 1000000000", "mem is 1000000000, expected 7000 to 40000000"),
        ("fill 0 ffffffffff 1", "LEN is ffffffffff, expected 1 to 1000000"),
        ("x" * 100_000, "unknown header line 'xxx"),
        ("\x1b[31mred", "unknown header line '\\x1b[31mred'"),
    ],
)
def test_what_a_text_claims_is_refused_in_one_short_line(line: str, problem: str) -> None:
    assert problem in refused(MINIMAL.replace("ops", f"{line}\nops"))


def test_fills_have_a_limit_together() -> None:
    text = MINIMAL.replace("ops", "mem 40000000\n" + "fill 0 40000000 1\n" * 5 + "ops")
    assert "line 8: the sum of all LEN is 140000000" in refused(text)


def test_what_is_no_file(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path, problem in (
        (tmp_path, "a folder, expected a file"),
        (pipe, "a FIFO, expected a file"),
        (loop, "a loop of symbolic links"),
        ("/dev/zero", "a character device, expected a file"),
        ("", "the file's name is empty"),
    ):
        with pytest.raises(InputError, match=problem):
            read_scenario(path)
