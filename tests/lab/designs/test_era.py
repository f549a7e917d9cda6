"""Which modes a scenario needs, and which a historic design had."""

from __future__ import annotations

import pytest

from mmulab import paths
from mmulab.conform.recording import read_recording
from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.cases.table import find_cases, read_case
from mmulab.lab.designs.era import LATER, in_its_time, modes_needed, modes_of_stream
from mmulab.scenario.scenario import Scenario
from mmulab.workload.stream import load_stream

HOST = "5-level host"


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("shadow-64-l0-4", set()),
        ("shadow-57-l0-5", {HOST, "5-level paging"}),
        ("la57-switch-shadow-4to5-l0-5", {HOST, "5-level paging"}),
        ("tdp-mmu-64-l0-4", {"TDP MMU"}),
        ("nonpt-shadow-64-l2-64-l0-4", set()),
        ("npt-64-l2-64-l0-4", {"TDP MMU", "nested NPT"}),
        ("npt-64-l2-64-l0-5", {HOST, "nested NPT", "5-level nested NPT host"}),
        ("mixed-smep-32", {"SMEP"}),
        ("smm-shadow-32-l0-4", {"SMM"}),
        ("mixed-wp-32", set()),
    ],
)
def test_needs_are_read_from_registers_host_and_control_blocks(name: str, needs: set[str]) -> None:
    (case,) = find_cases([name])
    scenario = read_case(case)
    assert isinstance(scenario, Scenario)
    assert modes_needed(scenario) == needs


def test_nested_ept_is_read_from_the_vmcs() -> None:
    recording = read_recording(paths.data("conformance/6.1.192/nested-ept/ept-basic-ad.jsonl.xz"))
    assert "nested EPT" in modes_needed(recording.scenario)
    recording = read_recording(paths.data("conformance/6.1.192/nested-noept-tdp/noept-64-l2-64.jsonl.xz"))
    assert "nested EPT" not in modes_needed(recording.scenario)


def test_a_boot_on_an_emulated_processor_turns_on_what_it_finds() -> None:
    stream = load_stream(paths.data("stream/boot-686-nonpae.npz"))
    assert modes_of_stream(stream) == {"SMEP", "SMAP"}
    assert not in_its_time(DESIGNS["glevels"], modes_of_stream(stream))


def test_later_modes_put_a_case_after_a_historic_design() -> None:
    historic = {name: DESIGNS[name] for name in LATER}
    assert set(historic) == {"glevels", "cr4_pae"}
    assert all(in_its_time(design, frozenset()) for design in DESIGNS.values())
    assert not in_its_time(historic["glevels"], frozenset({"SMEP"}))
    assert in_its_time(historic["cr4_pae"], frozenset({"SMEP", "nested EPT"}))
    assert not in_its_time(historic["cr4_pae"], frozenset({"TDP MMU"}))
    assert in_its_time(DESIGNS["pre_fix"], frozenset(LATER["glevels"]))
