"""The table of cases: complete, right where it says so, and wrong under the old role word."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmulab.check import told
from mmulab.check.allowed import two_walks
from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.events import kvm_mmu_get_page, kvm_mmu_set_accessed_bit
from mmulab.lab.cases.build import GVA_UPPER as UPPER_NGPA
from mmulab.lab.cases.build import (
    LOWER,
    TABLES,
    UPPER,
    below_level_5,
    la57_switch_nested,
    nested_fault,
    nested_guest,
)
from mmulab.lab.cases.contrast import contrast
from mmulab.lab.cases.run import run_case, run_recorded, runner_of
from mmulab.lab.cases.table import Case, Row, cases, find_cases, row
from mmulab.machine.op import Vmrun
from mmulab.scenario.scenario import Scenario
from mmulab.x86.mode import VMX_EPT_EXECUTABLE_MASK, VMX_EPT_READABLE_MASK, VMX_EPT_RWX_MASK

SPOILED = {f"nonpt-shadow-{l1}-l2-np-l0-{l0}" for l0 in (4, 5) for l1 in ("32", "pae", "64")}
SPOILED |= {"nonpt-shadow-57-l2-np-l0-5"}
"""Cases in which 6.1 itself gives L1 another CR4 than it had, and some shut down."""
PORTALS = {f"npt-64-l2-{l2}-l0-5" for l2 in ("np", "32", "pae", "64", "57")} | {"npt-fault-64-l0-5"}
PORTALS |= {f"npt-{kind}-64-l0-5" for kind in ("flush-asid", "flush-tlb-control", "dirty-log")}
WRITTEN = "npt-root-write-64-l0-5"
MIXED_PORTALS = {"mixed-npt-modes-l0-5", "mixed-npt-nx-l0-5"}
"""Among other things, a 4-level L1's NPT on a host with five levels."""


@pytest.fixture(scope="module")
def table() -> dict[str, Row]:
    return {case.name: without_memory(row(case)) for case in cases() if case.scenario is not None}


def without_memory(found: Row) -> Row:
    """Keep of a row's machine its configuration alone: hundreds of guests' memories are gigabytes."""
    config = found.run.machine.kvm.config
    return replace(found, run=replace(found.run, machine=SimpleNamespace(kvm=SimpleNamespace(config=config))))


def test_no_case_is_missing() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
    for l0, modes in ((4, ("np", "32", "pae", "64")), (5, ("np", "32", "pae", "64", "57"))):
        for mode in modes:
            assert {f"{kind}-{mode}-l0-{l0}" for kind in ("shadow", "tdp", "tdp-mmu")} <= set(names)
        for l1 in modes[1:]:
            for l2 in modes:
                kinds = ("npt", "nonpt-tdp", "nonpt-shadow")
                assert {f"{kind}-{l1}-l2-{l2}-l0-{l0}" for kind in kinds} <= set(names)
    assert [name for name in names if "la57-switch" in name and "npt" in name] == [
        "la57-switch-npt-4to5-l0-5",
        "la57-switch-npt-5to4-l0-5",
    ]
    for mode in ("32", "pae", "64"):
        assert {f"mixed-{rule}-{mode}" for rule in ("wp", "smep", "smap", "access")} <= set(names)
    for kind in ("modes", "modes-l2", "npt-modes", "npt-nx"):
        assert {f"mixed-{kind}-l0-4", f"mixed-{kind}-l0-5"} <= set(names)
    assert {"ept-ad", "ept-noad", "ept-5-level-ad", "ept-5-level-noad"} <= set(names)
    assert [name for name in names if name.startswith("host-32-")] == [
        f"host-32-{kind}" for kind in ("npt-32", "npt-pae", "shadow-32", "shadow-pae", "tdp-32")
    ]


def test_every_case_is_right_but_those_that_6_1_spoils(table: dict[str, Row]) -> None:
    assert {name for name, found in table.items() if found.verdict == "kernel"} == SPOILED
    assert {found.verdict for found in table.values()} == {"correct", "kernel"}
    assert {name for name, found in table.items() if found.case.note} == SPOILED
    for name, found in table.items():
        least = 2 if "la57" in name else 3
        assert found.run.judged >= least, name
        assert found.run.chain, name


def test_the_old_word_is_wrong_only_at_the_nested_switch(table: dict[str, Row]) -> None:
    wrong = {name: found.old.wrong for name, found in table.items() if found.old.wrong}
    assert set(wrong) == {"la57-switch-npt-4to5-l0-5", "la57-switch-npt-5to4-l0-5"}
    first, second = wrong.values()
    assert first is not None
    assert second is not None
    assert (first.op, first.expected, first.reached) == (8, UPPER, LOWER)
    assert (second.op, second.expected, second.reached) == (8, LOWER, UPPER)
    assert f"rax=c0de0{LOWER >> 12:x}" in first.seen, "the guest itself read the other page"


def test_only_a_portal_makes_the_old_word_differ(table: dict[str, Row]) -> None:
    differ = {name for name, found in table.items() if str(found.old) != "the same"}
    assert {name for name in differ if "switch" not in name} == PORTALS | MIXED_PORTALS | {WRITTEN}
    for name in PORTALS:
        old = table[name].old
        assert (old.passthrough, old.events, old.pages) == (1, {}, 0)
        # The portal's gfn is write-protected as if it were a table, which flushes.
        assert old.first == (0, "kvm_flush_remote_tlbs")


def test_the_old_word_drops_the_portals_entry_when_l1_writes_its_root(table: dict[str, Row]) -> None:
    """The write hits entry 0 of the portal too, as if a table were there, so level 4 is looked up again."""
    found = table[WRITTEN]
    assert (found.old.events, found.old.wrong) == ({"kvm_mmu_get_page": 1}, None)


@pytest.mark.parametrize("l1", ["32", "pae", "64", "57"])
def test_l1_is_told_of_a_fault_in_its_nested_tables(table: dict[str, Row], l1: str) -> None:
    run = table[f"npt-fault-{l1}-l0-5"].run
    (told,) = [r.outcome.vmexit for r in run.results if r.text.startswith("wr s 4 40200000")]
    # Not present, a write, a user access, at the final address (APM 2, 15.25.6).
    assert told is not None
    expected = {"code": 0x400, "info1": 0x1_0000_0006, "info2": UPPER_NGPA, "intinfo": 0}
    assert {key: told[key] for key in expected} == expected


def test_a_nested_fault_told_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "NPF_FINAL", 1 << 34)
    wrong = run_case(nested_fault("64", 5)).wrong
    assert wrong is not None
    assert (wrong.op, wrong.expected) == (1, None)
    assert "info1=100000006" in wrong.seen


@pytest.mark.parametrize(
    ("name", "roots"),
    [
        ("shadow-np-l0-5", "pae_root > l2 g8 q0 uwx direct nx"),
        ("shadow-64-l0-5", "l4 g8 q0 uwx nx wp"),
        ("tdp-32-l0-4", "l4 g8 q0 uwx direct nx wp"),
        ("tdp-mmu-32-l0-5", "l5 g8 q0 uwx direct nx wp"),
        ("tdp-ept-64-l0-5", "l4 g8 q0 uwx direct nx wp"),
        ("npt-32-l2-64-l0-4", "pml4_root > pae_root > l2 g4 q1 uwx guest_mode"),
        ("npt-32-l2-64-l0-5", "pml5_root > pml4_root > pae_root > l2 g4 q1 uwx guest_mode"),
        ("npt-pae-l2-np-l0-5", "pml5_root > pml4_root > pae_root > l2 g8 q0 uwx nx guest_mode"),
        ("npt-64-l2-32-l0-4", "l4 g8 q0 uwx nx guest_mode"),
        ("npt-64-l2-32-l0-5", "l5 g8 q0 uwx nx guest_mode passthrough"),
        ("npt-57-l2-57-l0-5", "l5 g8 q0 uwx nx guest_mode"),
        ("nonpt-tdp-64-l2-32-l0-5", "l5 g8 q0 uwx direct nx wp guest_mode"),
        ("nonpt-shadow-64-l2-32-l0-5", "pae_root > l2 g4 q2 uwx nx wp guest_mode"),
        ("host-32-npt-32", "pae_root > l2 g4 q1 uwx guest_mode"),
        ("host-32-npt-pae", "pae_root > l2 g8 q0 uwx nx guest_mode"),
        ("host-32-shadow-32", "pae_root > l2 g4 q1 uwx nx wp"),
        ("host-32-shadow-pae", "pae_root > l2 g8 q0 uwx nx wp"),
        ("host-32-tdp-32", "pae_root > l2 g8 q0 uwx direct nx wp"),
    ],
)
def test_roots(table: dict[str, Row], name: str, roots: str) -> None:
    assert table[name].roots == roots


def test_roots_are_those_of_real_kernels(root: Path, table: dict[str, Row]) -> None:
    """The shadow pages at the top of L1's NPT have the role words that a real 5-level host traced."""
    for form in ("32", "64", "57"):
        path = root / f"data/conformance/6.1.192/nested57/nested-basic-{form}.jsonl.xz"
        traced = {
            e.role for op in read_recording(path).ops for e in op.events if isinstance(e, kvm_mmu_get_page)
        }
        run = table[f"npt-{form}-l2-np-l0-5"].run
        assert {link.role for link in run.chain if link.role is not None} <= traced


def test_two_halves_of_a_4_byte_nested_table(table: dict[str, Row]) -> None:
    assert "1q0:2 1q1:1" in table["npt-32-l2-np-l0-5"].pages
    assert "q1" not in table["npt-pae-l2-np-l0-5"].pages


def test_contexts_before_in_and_after_l2(table: dict[str, Row]) -> None:
    run = table["npt-64-l2-64-l0-5"].run
    direct, portal = "l5 g8 q0 uwx direct nx wp", "l5 g8 q0 uwx nx guest_mode passthrough"
    seen = [moment[1:] for moment in run.moments]
    in_l1 = ("L1", "root_mmu", "root_mmu", "direct", direct)
    in_l2 = ("L2", "guest_mmu", "nested_mmu", "shadow", portal)
    before = ("L1", "root_mmu", "root_mmu", "direct", "none")
    assert seen == [before, *[in_l2] * 4, *[in_l1] * 2, *[in_l2] * 2, in_l1]


def test_l2_without_nested_paging_uses_root_mmu(table: dict[str, Row]) -> None:
    run = table["nonpt-shadow-64-l2-32-l0-5"].run
    assert {moment[2:5] for moment in run.moments} == {("root_mmu", "root_mmu", "shadow")}


def test_walks_in_two_dimensions() -> None:
    scenario = nested_guest("64", "64", 5, nested_paging=True, npt=1, tdp_mmu=0)
    runner = runner_of(scenario, "passthrough")
    running = runner.results()
    while not isinstance(next(running).op, Vmrun):
        pass
    walks = two_walks(runner.machine, 0x80000000)
    assert walks.gpa == LOWER
    assert walks.outer.pa == 0x40000000
    assert [found.va & ~0xFFF for found in walks.inner[:4]] == [walks.outer.table[n] for n in (4, 3, 2, 1)]
    assert [(found.max_level, found.level) for found in walks.inner] == [(4, 1)] * 5


def test_switch_shares_the_portal_by_the_old_word() -> None:
    scenario = la57_switch_nested("64", 5)
    merged, old = run_case(scenario), run_case(scenario, "D0")
    assert contrast(merged, old).pages == old.shadow_pages - merged.shadow_pages < 0
    again = [e for e in old.events if isinstance(e, kvm_mmu_get_page) and not e.created and e.gfn == 0x14]
    facts = [old.machine.kvm.config.kernel.design.facts(event.role) for event in again]
    assert [(f.level, f.direct) for f in facts if f.level == 5] == [(5, False)]


def test_a_recording_is_judged_by_what_the_real_guest_saw(root: Path) -> None:
    recording = read_recording(root / "data/conformance/6.1.192/nested57/nested-roots-64.jsonl.xz")
    run = run_recorded(recording)
    assert run.wrong is None
    assert run.chain[0].name == "l5 g8 q0 uwx nx guest_mode passthrough"
    other = replace(recording.ops[2], outcome=recording.ops[2].outcome | {"rax": 1})
    ops = (*recording.ops[:2], other, *recording.ops[3:])
    found = run_recorded(replace(recording, ops=ops)).wrong
    assert found is not None
    assert (found.op, found.text) == (recording.ops[2].index, recording.ops[2].text)


def case_called(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


@pytest.mark.parametrize("name", ["ad", "noad"])
def test_a_level_above_that_grants_everything_changes_no_outcome(root: Path, name: str) -> None:
    """One more page to shadow, and A in its entry if L1 turned A/D on; the recording has neither."""
    found, four = row(case_called(f"ept-5-level-{name}")), row(case_called(f"ept-{name}"))
    assert (found.verdict, str(found.old)) == ("correct", "the same")
    assert found.run.judged == four.run.judged
    assert [link.level for link in found.run.chain] == [5, 4, 3, 2, 1]
    assert found.run.chain[0].gfn == TABLES >> 12
    assert found.run.shadow_pages == four.run.shadow_pages + 1
    marked = [e.gpa & ~0xFFF for e in found.run.events if isinstance(e, kvm_mmu_set_accessed_bit)]
    assert (TABLES in marked) == (name == "ad")
    assert "each outcome must be as there" in found.case.note


def test_a_level_5_entry_that_grants_less_is_found(root: Path) -> None:
    recording = read_recording(root / "data/conformance/6.1.192/nested-ept/ept-basic-ad.jsonl.xz")
    scenario = below_level_5(recording.scenario)
    *values, entry = scenario.header.values
    rights = VMX_EPT_READABLE_MASK | VMX_EPT_EXECUTABLE_MASK
    no_write = entry._replace(value=entry.value & ~VMX_EPT_RWX_MASK | rights)
    header = replace(scenario.header, values=(*values, no_write))
    wrong = run_recorded(replace(recording, scenario=replace(scenario, header=header))).wrong
    assert wrong is not None
    assert wrong.text == "!wr s 4 40000008 55aa5590"


def test_a_host_of_4_levels_offers_l1_none_of_5(root: Path) -> None:
    recording = read_recording(root / "data/conformance/6.1.192/nested-ept/ept-basic-ad.jsonl.xz")
    scenario = below_level_5(recording.scenario)
    header = replace(scenario.header, host=recording.scenario.header.host)
    wrong = run_recorded(replace(recording, scenario=replace(scenario, header=header))).wrong
    assert wrong is not None
    assert wrong.text == "?vmrun b000"


@pytest.mark.parametrize("name", ["ept-ad", "ept-noad-l2-pae", "noept-shadow-32-l2-pae"])
def test_recorded_rows(name: str) -> None:
    """The real guest's outcomes, op by op; roots of EPT know no NX and no write protection."""
    found = row(case_called(name))
    assert (found.verdict, str(found.old)) == ("correct", "the same")
    assert found.run.judged == len(found.run.results) > 30
    assert found.roots.endswith("guest_mode")


def test_cases_are_found_by_pattern() -> None:
    assert [case.name for case in find_cases(["shadow-57-*"])] == ["shadow-57-l0-5"]
    with pytest.raises(InputError, match="case 'shadow-58': unknown"):
        find_cases(["shadow-57-*", "shadow-58"])


@pytest.mark.parametrize("l2", ["32", "64"])
def test_l2_has_the_segments_of_real_guests(root: Path, l2: str) -> None:
    """The model reads none of them, but a kernel that records the case does."""

    def segments(scenario: Scenario) -> dict[int, int]:
        return {v.gpa: v.value for v in scenario.header.values if 0xB400 <= v.gpa < 0xB4A0}

    (case,) = find_cases([f"npt-64-l2-{l2}-l0-5"])
    assert case.scenario is not None
    recorded = read_recording(root / f"data/conformance/6.1.192/nested57/nested-64-l2-{l2}.jsonl.xz").scenario
    assert len(segments(recorded)) == 12
    assert segments(case.scenario()) == {**segments(case.scenario()), **segments(recorded)}
