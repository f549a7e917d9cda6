"""The builder: memory layout against recordings, tables that translate, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmulab.conform.recording import read_recording
from mmulab.machine import op as ops
from mmulab.machine.op import Mode
from mmulab.memory.host import HostMemory
from mmulab.scenario.builder import FIRST_TABLE, ScenarioBuilder
from mmulab.scenario.grammar import GrammarError
from mmulab.scenario.runner import load_memory, run
from mmulab.scenario.scenario import Header, Regs, Scenario, Slot

LEAVES = {
    "32": {0x20000: 0x100067, 0x20004: 0x101067, 0x20008: 0x102067, 0x2000C: 0x103067, 0x20040: 0x110063},
    "64": {0x22000: 0x100067, 0x22008: 0x101067, 0x22010: 0x102067, 0x22018: 0x103067, 0x22080: 0x110063},
}
"""The leaf entries of the recordings ``basic-32`` and ``basic-64``."""


def _memory(header: Header) -> np.ndarray:
    memory = HostMemory(header.backing_bytes, table_frames=1)
    load_memory(memory, header)
    return memory.frames[memory.backing :]


def _basic(mode: str) -> ScenarioBuilder:
    b = ScenarioBuilder(mode).root(0x10000)
    if mode == "32":
        b.alloc(0x20000).value(4, 0x10400, 0x20067)
    else:
        b.alloc(0x20000).alloc(0x21000).alloc(0x22000)
        b.value(8, 0x10008, 0x20067).value(8, 0x20000, 0x21067).value(8, 0x21000, 0x22067)
    for gpa, entry in LEAVES[mode].items():
        b.value(8 if mode == "64" else 4, gpa, entry)
    return b


@pytest.mark.parametrize("mode", ["32", "64"])
def test_tables_by_hand_are_those_of_a_recording(root: Path, mode: str) -> None:
    recorded = read_recording(root / f"data/conformance/6.1.192/sh/basic-{mode}.jsonl.xz").scenario.header
    built = _basic(mode).build().header
    assert built.regs.cr3 == recorded.regs.cr3
    assert np.array_equal(_memory(built), _memory(recorded))


def test_helper_tables_of_a_mode_are_those_of_its_recordings(root: Path) -> None:
    for mode, name in (("pae", "basic-pae"), ("57", "fuzz-57-mix-00")):
        recorded = read_recording(root / f"data/conformance/6.1.192/sh/{name}.jsonl.xz").scenario.header
        ours, theirs = _memory(ScenarioBuilder(mode).root(0x10000).build().header), _memory(recorded)
        last = {"pae": 5, "57": 7}[mode]
        assert np.array_equal(ours[4:last], theirs[4:last])
        assert ours[3, :3].tolist() == theirs[3, :3].tolist()
        assert ours[0x10, 0] == theirs[0x10, 0]


@pytest.mark.parametrize(
    ("mode", "gva"), [("32", 0x40003000), ("pae", 0xC0003000), ("64", 1 << 46), ("57", 1 << 55)]
)
def test_map_makes_tables_that_the_guest_can_use(mode: str, gva: int) -> None:
    b = ScenarioBuilder(mode).root(0x10000).map(gva, 0x300000).map(gva + 0x1000, 0x301000)
    b.op(f"wr u {gva:x} 12345678").op(ops.Read(mode=Mode.USER, size=4, gva=gva)).op("hw 4 301000 77")
    b.op(f"rd u {gva + 0x1000:x}").op(f"rd u {gva + 0x2000:x}")
    outcomes = {r.text: r.outcome for r in run(b.build())}
    assert outcomes[f"rd u 4 {gva:x}"].rax == 0x12345678
    assert outcomes[f"rd u 4 {gva + 0x1000:x}"].rax == 0x77
    missing = outcomes[f"rd u 4 {gva + 0x2000:x}"]
    assert (missing.vector, missing.error_code, missing.cr2) == (14, 4, gva + 0x2000)


def test_map_of_a_large_page_needs_no_leaf_table() -> None:
    b = ScenarioBuilder("64").root(0x10000).map(0x8000000000, 0x200000, flags=0xE7, level=2)
    tables = {v.gpa & ~0xFFF for v in b.build().header.values if v.gpa >= FIRST_TABLE}
    assert tables == {FIRST_TABLE, FIRST_TABLE + 0x1000}
    (read,) = [r for r in run(b.op("rd u 8 8000000100").build()) if r.index == 0]
    assert read.outcome.rax == 0x9090909090909090


def test_the_first_root_is_cr3_unless_the_registers_are_given() -> None:
    b = ScenarioBuilder("pae").root(0x10000).root(0x11000)
    assert b.build().header.regs.cr3 == 0x10000
    assert b.sregs(1, 2, 3, 4).build().header.regs == Regs(1, 2, 3, 4)


def test_slots_default_to_the_whole_backing() -> None:
    assert ScenarioBuilder("np", mem=0x200000).build().header.slots == (Slot(0, 0, 0x200000, 0, 0),)
    b = ScenarioBuilder("np").slot(0, 0, 0x100000).slot(1, 0x2000000, 0x1000, 2, 0x100000)
    assert b.build().header.slots == (Slot(0, 0, 0x100000, 0, 0), Slot(1, 0x2000000, 0x1000, 2, 0x100000))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ScenarioBuilder("16"), "mode is '16', expected one of np 32 pae 64 57"),
        (lambda: ScenarioBuilder("np", vendor="arm"), "host is 'arm', expected one of amd intel"),
        (lambda: ScenarioBuilder("np", mem=0x1000), "mem is 1000, expected 7000 to"),
        (lambda: ScenarioBuilder("np", mem=0x7800), "mem is 7800, expected a multiple of 1000"),
        (lambda: ScenarioBuilder("np", cpu={"sse": 1}), "unknown CPUID feature 'sse', expected one of max"),
        (lambda: ScenarioBuilder("np", host={"npt2": 1}), "unknown host parameter 'npt2'"),
        (lambda: ScenarioBuilder("np").root(0x10000), "mode np has no root table"),
        (lambda: ScenarioBuilder("32").root(0x10800), "GPA is 10800, expected a multiple of 1000"),
        (lambda: ScenarioBuilder("32").alloc(0x1000000), "GPA is 1000000, expected 0 to fff000"),
        (lambda: ScenarioBuilder("32").map(0, 0), "map needs a root"),
        (lambda: ScenarioBuilder("32").value(4, 0x10002, 0), "GPA is 10002, expected a multiple of 4"),
        (lambda: ScenarioBuilder("32").value(4, 0, 1 << 32), "VAL is 100000000, expected 0 to ffffffff"),
        (lambda: ScenarioBuilder("32").fill(0xFFF000, 0x1001, 0), "LEN is 1001, expected 1 to 1000"),
        (
            lambda: ScenarioBuilder("32").slot(0, 0, 0x1000).slot(0, 0x5000, 0x1000),
            "ID is 0, expected one that",
        ),
        (lambda: ScenarioBuilder("32").slot(0, 0, 0x2000).slot(1, 0x1000, 0x1000), "overlap another slot"),
        (lambda: ScenarioBuilder("32").slot(0x20000, 0, 0x1000), "ID is 20000, expected 0 to 1ffff"),
        (lambda: ScenarioBuilder("32").slot(0, 0, 0x1000, 0, 0x1000000), "OFFSET is 1000000, expected 0 to"),
        (lambda: ScenarioBuilder("32").pdptfix(0x10010), "GPA is 10010, expected a multiple of 20"),
        (lambda: ScenarioBuilder("32").quirk("slow"), "quirk is 'slow', expected one of rmw_reads_first"),
    ],
)
def test_what_is_refused_says_what_was_expected(make: object, expected: str) -> None:
    assert callable(make)
    with pytest.raises(GrammarError) as caught:
        make()
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["sh/fuzz-pae-mix-02", "intel-sh/memslot-32"])
def test_a_builder_continues_a_scenario(root: Path, name: str) -> None:
    scenario = read_recording(root / f"data/conformance/6.1.192/{name}.jsonl.xz").scenario
    b = ScenarioBuilder.of(scenario)
    assert b.build() == scenario
    more = b.map(0x7FC00000, 0x123000).op("rd s 7fc00000").build()
    assert more.steps[:-1] == scenario.steps
    assert b.build().header.values[: len(scenario.header.values)] == scenario.header.values


def test_a_built_scenario_names_itself() -> None:
    scenario: Scenario = ScenarioBuilder("np", source="cell 3").build()
    assert scenario.source == "cell 3"


def test_address_spaces_have_slots_of_their_own() -> None:
    """Bits from 16 of an ID name the space; slot 0 is there unless another of its space is."""
    smm = ScenarioBuilder("np", mem=0x800000).slot(0x10000, 0x1000, 0x2000, 0, 0x5000)
    assert smm.build().header.slots == (Slot(0, 0, 0x800000, 0, 0), Slot(0x10000, 0x1000, 0x2000, 0, 0x5000))
    both = smm.slot(1, 0x2000, 0x2000)
    assert [slot.id for slot in both.build().header.slots] == [0x10000, 1]
