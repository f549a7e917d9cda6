"""Roots as shadow pages: the guest sees what its tables say, and the state stays sound."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mmulab.conform.outcome import encode_outcome
from mmulab.conform.recording import read_recording
from mmulab.events import kvm_mmu_get_page, kvm_mmu_prepare_zap_page
from mmulab.kvm.invariants import violations
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.roles.find import find_design
from mmulab.kvm.roles.root_strategy import ROOT_STRATEGIES
from mmulab.lab.cases.build import GVA_LOWER, L1_ROOT, LOWER, TABLE_VA, TABLES, UPPER
from mmulab.lab.cases.run import run_case
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.scenario import MODES, Scenario
from mmulab.scenario.tables import Tables
from mmulab.x86.mode import PAGING_PAE, PT_PRESENT_MASK
from tests.machine.random_guest import layout_of, op_lists, random_machine
from tests.machine.test_architecture import Access, compare, guest_ops

CONFORMANCE = Path(__file__).parents[2] / "data" / "conformance" / "6.1.192"
OWN = [name for name, found in ROOT_STRATEGIES.items() if found.shadow_pages]


def kernel_with(strategy: str, name: str = "passthrough") -> Kernel:
    return LINUX_6_1.with_(design=find_design(name), root_strategy=ROOT_STRATEGIES[strategy])


def results_of(path: str, strategy: str, name: str = "passthrough") -> list[Result]:
    scenario = read_recording(CONFORMANCE / f"{path}.jsonl.xz").scenario
    config = machine_config(scenario, kernel_with(strategy, name))
    return list(Runner(scenario, config=config).results())


@pytest.mark.parametrize("strategy", OWN)
@pytest.mark.parametrize("mode", ["np", "32", "pae"])
def test_a_flushed_access_is_what_the_guests_tables_say(mode: str, strategy: str) -> None:
    layout = layout_of(mode)
    compared = 0

    @settings(max_examples=25, phases=[Phase.generate])
    @given(st.integers(0, 1 << 16), guest_ops(layout))
    def check(seed: int, listed: list[Op]) -> None:
        nonlocal compared
        machine = random_machine(seed, layout, vcpus=1, kernel=kernel_with(strategy))
        for op in listed:
            if isinstance(op, Access):
                compared += compare(machine, op)
            elif not isinstance(op, ops.HostWrite):
                machine.execute(op)

    check()
    assert compared > 30


@pytest.mark.parametrize("strategy", OWN)
@pytest.mark.parametrize("mode", ["np", "32", "pae"])
def test_two_vcpus_keep_the_state_sound(mode: str, strategy: str) -> None:
    layout = layout_of(mode)

    @settings(max_examples=20, phases=[Phase.generate])
    @given(st.integers(0, 1 << 16), op_lists(layout, length=40))
    def check(seed: int, listed: list[Op]) -> None:
        machine = random_machine(seed, layout, kernel=kernel_with(strategy))
        for op in listed:
            machine.execute(op)
            assert violations(machine.kvm) == []

    check()


NAMED = [
    "sh/basic-32",
    "sh/basic-pae",
    "sh/quadrants-32",
    "sh/mode-switch",
    "intel-sh/quadrants-32",
    "nested57/nested-basic-32",
    "nested57/nested-pae-l2-32",
    "nested48/nested-32-l2-32",
    "tdp0/nonpaging",
]


@pytest.mark.parametrize("strategy", OWN)
@pytest.mark.parametrize("path", NAMED)
def test_recorded_outcomes_are_the_same(path: str, strategy: str) -> None:
    special = [encode_outcome(found.outcome) for found in results_of(path, "special")]
    assert [encode_outcome(found.outcome) for found in results_of(path, strategy)] == special


@pytest.mark.parametrize("name", ["passthrough", "glevel", "passthrough_levels", "target_level", "cpu_mode"])
def test_roots_come_on_top(name: str) -> None:
    """A 32-bit guest's root is found, created and zapped like any page, and says that it is a portal."""
    design = DESIGNS[name]

    def of_level_3(kind: type, strategy: str) -> list[object]:
        events = [e for found in results_of("sh/basic-32", strategy, name) for e in found.events]
        return [e for e in events if isinstance(e, kind) and design.facts(e.role).level == 3]  # type: ignore[attr-defined]

    assert of_level_3(kvm_mmu_get_page, "special") == of_level_3(kvm_mmu_get_page, "one_off") == []
    made = of_level_3(kvm_mmu_get_page, "shadow")
    assert made
    assert all(design.facts(e.role).passthrough for e in made)  # type: ignore[attr-defined]
    assert of_level_3(kvm_mmu_prepare_zap_page, "shadow")


@pytest.mark.parametrize("strategy", OWN)
def test_directories_are_linked_when_an_access_needs_them(strategy: str) -> None:
    """Special roots take all four quadrants of a 32-bit directory at once."""

    def first(found: str) -> list[int]:
        design = DESIGNS["passthrough"]
        for result in results_of("sh/quadrants-32", found):
            made = [design.facts(e.role) for e in result.events if isinstance(e, kvm_mmu_get_page)]
            if made:
                return [facts.quadrant for facts in made if facts.level == 2]
        return []

    assert first("special")[:4] == [0, 1, 2, 3]
    assert len(first(strategy)) == 1


def other_directories() -> Scenario:
    """A PAE guest that leaves a root, names another directory in its PDPTEs, and comes back.

    The root between has the same PDPTEs, so that nothing is dropped on the way there.
    """
    builder = ScenarioBuilder("pae", host={"npt": 0})
    for page in (LOWER, UPPER):
        builder.value(4, page, 0xC0DE0000 | page >> 12)
    free = count(TABLES, 0x1000)
    between, elsewhere = L1_ROOT + 0x1000, L1_ROOT + 0x2000
    first, other = (Tables(builder, PAGING_PAE, root, free) for root in (L1_ROOT, elsewhere))
    for tables, page in ((first, LOWER), (other, UPPER)):
        tables.identity(HELPER_S, HELPER_U)
        tables.map(GVA_LOWER, page)
    first.map(TABLE_VA, L1_ROOT)
    # A directory comes before its table, those of the helper pages first.
    helpers, directory = first.pages[1], first.pages[3]
    builder.fill(between, 0x1000, 0)
    for index, page in ((0, helpers), (GVA_LOWER >> 30, directory)):
        builder.value(8, between + 8 * index, page | PT_PRESENT_MASK)
    builder.sregs(*MODES["pae"]._replace(cr3=L1_ROOT))
    for op in (
        ops.Read(Mode.SUPERVISOR, 4, GVA_LOWER),
        ops.WriteCr(3, between),
        ops.Read(Mode.SUPERVISOR, 4, GVA_LOWER),
        ops.Write(Mode.SUPERVISOR, 4, TABLE_VA + 8 * (GVA_LOWER >> 30), other.pages[3] | PT_PRESENT_MASK),
        ops.WriteCr(3, L1_ROOT),
        ops.Read(Mode.SUPERVISOR, 4, GVA_LOWER),
    ):
        builder.op(op)
    return builder.build()


@pytest.mark.parametrize("strategy", ROOT_STRATEGIES)
def test_a_root_of_other_pdptes_is_not_taken_up_again(strategy: str) -> None:
    """``load_pdptrs`` drops the current root alone: no root that holds PDPTEs may be kept for later."""
    run = run_case(other_directories(), kernel=kernel_with(strategy))
    assert run.judged == 4
    assert run.wrong is None
    assert run.results[-1].outcome.rax == 0xC0DE0000 | UPPER >> 12


@pytest.mark.parametrize("strategy", ROOT_STRATEGIES)
@pytest.mark.parametrize("path", ["nested57/nested-basic-32", "nested57/nested-pae-l2-32", "sh/basic-32"])
def test_no_page_outlives_the_vm(path: str, strategy: str) -> None:
    scenario = read_recording(CONFORMANCE / f"{path}.jsonl.xz").scenario
    runner = Runner(scenario, config=machine_config(scenario, kernel_with(strategy)))
    assert list(runner.results())[-1].text == "teardown"
    assert runner.machine.kvm.pages == {}
