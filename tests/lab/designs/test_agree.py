"""Correct designs on recorded scenarios: the same events, the same outcomes, other role words.

What differs is foretold from the default design's run: the pages that it used
under two paging modes, which a design with the mode in its key makes twice.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

from mmulab.conform.outcome import Decoded, encode_outcome
from mmulab.conform.recording import read_recording
from mmulab.events import Event, kvm_mmu_get_page
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.kvm.roles.root_strategy import ROOT_STRATEGIES
from mmulab.kvm.shadow_page import shadow_path
from mmulab.lab.cases.run import runner_of
from mmulab.lab.cases.table import find_cases, read_case
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import Scenario

CONFORMANCE = Path(__file__).parents[3] / "data" / "conformance" / "6.1.192"
FOLDERS = sorted(path.name for path in CONFORMANCE.iterdir() if path.is_dir())
BY_TABLE = ("glevel", "passthrough_levels", "target_level")
"""Designs that know the level of the table and no paging mode, so they share what D4 shares."""
BY_MODE = {"cpu_mode": ("efer_lma", "cr4_la57"), "cpu_mode_passthrough": ("efer_lma",)}
"""Designs with the paging mode in the key, and the bits of it that D4's word has not."""
SAMPLE = (
    "sh/mode-switch",
    "sh/multi-role-32",
    "sh/cr-toggles-pae",
    "sh/os-57-00",
    "sh/recursive-64",
    "tdp0/mode-switch",
    "nested57/nested-57-l2-32",
    "nested57/nested-fuzz-64-00",
    "nested-nonpt/nested-nonpt-64-l2-pae",
    "nested-ept/ept-fuzz-ad-00",
)
TWICE = {"sh/mode-switch": {0x80, 0x81, 0x84, 0x85}}
"""gfns that a recorded scenario uses in PAE and in 64-bit paging: directories and tables."""


class Ran(NamedTuple):
    """What a scenario did under a design, role words left out."""

    outcomes: list[tuple[str, Decoded]]
    events: list[list[tuple[str, Event]]]
    created: Counter[int]
    used: dict[tuple[int, int], dict[tuple[bool, bool], None]]
    """By page (gfn and word): EFER.LMA and CR4.LA57 as they were when an access went through it."""


def ran(scenario: Scenario, design: str) -> Ran:
    runner = runner_of(scenario, design)
    found = Ran([], [], Counter(), {})
    for result in runner.results():
        found.outcomes.append((result.text, encode_outcome(result.outcome)))
        found.events.append([(type(e).__name__, _no_role(e)) for e in result.events])
        found.created.update(e.gfn for e in result.events if isinstance(e, kvm_mmu_get_page) and e.created)
        _note_pages(runner.machine, result.op, found)
    return found


def _no_role(event: Event) -> Event:
    return event._replace(role=0) if "role" in event._fields else event


def _note_pages(machine: Machine, op: Op, found: Ran) -> None:
    """Note the shadow pages on the way of an op's accesses: its instruction's and its operand's."""
    vcpu = machine.kvm.vcpus[op.vcpu]
    cpu = vcpu.mmu.cpu_role
    if vcpu.mmu.direct or vcpu.mmu.root_hpa == INVALID_PAGE:
        return
    for address in (HELPER_S, HELPER_U, *([op.gva] if hasattr(op, "gva") else [])):
        for _, sptep, _ in shadow_path(vcpu, address):
            page = machine.kvm.pages.get(sptep >> 12)
            if page is not None:
                mode = bool(cpu.efer_lma), bool(cpu.cr4_la57)
                found.used.setdefault((page.gfn, page.role), {})[mode] = None


def _used_in_two_modes(base: Ran, told_apart: tuple[str, ...]) -> set[int]:
    """Return the gfns of D4's pages that served modes which differ in these bits."""
    kept = [("efer_lma", "cr4_la57").index(name) for name in told_apart]
    return {
        gfn
        for (gfn, _), modes in base.used.items()
        if len({tuple(mode[at] for at in kept) for mode in modes}) > 1
    }


def check(path: str) -> None:
    """Hold every correct design against D4 on one recorded scenario."""
    scenario = read_recording(CONFORMANCE / f"{path}.jsonl.xz").scenario
    base = ran(scenario, "passthrough")
    for name in BY_TABLE:
        other = ran(scenario, name)
        assert other.outcomes == base.outcomes, (path, name)
        assert other.events == base.events, (path, name)
    for name, bits in BY_MODE.items():
        other = ran(scenario, name)
        assert other.outcomes == base.outcomes, (path, name)
        shared = _used_in_two_modes(base, bits)
        assert shared == TWICE.get(path, set()), (path, name)
        twice = {gfn: number for gfn, number in other.created.items() if number > base.created[gfn]}
        assert set(twice) == shared, (path, name)
        if not shared:
            assert other.events == base.events, (path, name)
        assert not base.created - other.created, (path, name)


@pytest.mark.parametrize("path", SAMPLE)
def test_correct_designs_agree_on_a_sample(path: str) -> None:
    check(path)


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_correct_designs_agree_on_every_eighth_recorded_scenario(folder: str) -> None:
    """Of each folder the first, and from there every eighth."""
    for path in sorted((CONFORMANCE / folder).glob("*.jsonl.xz"))[::8]:
        check(f"{folder}/{path.name.removesuffix('.jsonl.xz')}")


def test_the_mode_switch_finds_the_directory_again_under_64_bit_paging() -> None:
    """gfn 0x81 is found, not created, when 64-bit paging follows PAE; a design with the mode creates it."""
    scenario = read_recording(CONFORMANCE / "sh" / "mode-switch.jsonl.xz").scenario
    at = (
        next(i for i, (text, _) in enumerate(ran(scenario, "passthrough").outcomes) if text == "efer 900") + 2
    )
    looked = {}
    for name in ("passthrough", "cpu_mode"):
        events = ran(scenario, name).events[at]
        looked[name] = [e.created for _, e in events if isinstance(e, kvm_mmu_get_page) and e.gfn == 0x81]
    assert looked == {"passthrough": [False], "cpu_mode": [True]}


@pytest.mark.slow
def test_correct_designs_give_the_guest_the_same_on_every_case() -> None:
    for case in find_cases([]):
        work = read_case(case)
        scenario = work if isinstance(work, Scenario) else work.scenario
        base = ran(scenario, "passthrough")
        for name in (*BY_TABLE, *BY_MODE):
            for ours, theirs in zip_longest(base.outcomes, ran(scenario, name).outcomes):
                assert ours == theirs, (case.name, name)


@pytest.mark.slow
@pytest.mark.parametrize("roots", ["shadow", "one_off"])
def test_other_roots_change_no_outcome_of_a_case(roots: str) -> None:
    """But one: the merged bit does not tell two portals apart, if both are found by gfn and role."""
    differ = set()
    for case in find_cases([]):
        work = read_case(case)
        scenario = work if isinstance(work, Scenario) else work.scenario
        base = ran(scenario, "passthrough")
        other = runner_of(scenario, kernel=LINUX_6_1.with_(root_strategy=ROOT_STRATEGIES[roots]))
        if [(r.text, encode_outcome(r.outcome)) for r in other.results()] != base.outcomes:
            differ.add(case.name)
    assert differ == ({"portal-switch-npt-l0-5"} if roots == "shadow" else set())
