"""``dirty_log_perf_test`` in the model: the published shape, in counts."""

from __future__ import annotations

from collections import Counter

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_12
from mmulab.lab.cases.build import VMCB_GPA
from mmulab.lab.eager_split.guest import HUGE, MEMORY, access, fault_kinds, huge_guest
from mmulab.lab.eager_split.passes import CAUSES, SETUPS, Phase, dirty_log_perf, phase
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import run
from mmulab.workload.patterns import is_written
from tests.kvm.nested import log_all

PAGES = HUGE >> 12
ON_SMALL_PAGES = [name for name in SETUPS if not name.endswith("pml")]
"""Setups in which a write to a 4 KiB page is learned of by a fault."""


def written(percent: int) -> list[int]:
    return [page for page in range(PAGES) if is_written(page, percent)]


def first(setup: str, percent: int, *, eager: bool) -> Phase:
    return phase(dirty_log_perf(setup, eager=eager, percent=percent, passes=1), "pass 1")


# The published shape --------------------------------------------------------------------------------


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("percent", [100, 50, 5])
def test_with_eager_splitting_no_huge_page_stands_in_the_way(setup: str, percent: int) -> None:
    for found in dirty_log_perf(setup, eager=True, percent=percent):
        if found.name.startswith("pass"):
            assert (found.huge_write_protect, found.not_present) == (0, 0)
            assert found.write_protect == (len(written(percent)) if setup in ON_SMALL_PAGES else 0)


@pytest.mark.parametrize("setup", ON_SMALL_PAGES)
def test_the_first_pass_without_it_faults_once_for_almost_every_page(setup: str) -> None:
    for percent in (100, 50, 5):
        found = first(setup, percent, eager=False)
        # What is read before the first write is still mapped; nothing is afterwards.
        assert found[2:5] == (1, PAGES - 1 - written(percent)[0], 0)


@pytest.mark.parametrize("setup", ON_SMALL_PAGES)
def test_the_saving_is_the_share_of_what_is_not_written(setup: str) -> None:
    """At most 0.1 of the faults at 5 per cent, at least 0.9 at 100: 19.86 s to 0.906, 20.44 s to 17.89."""
    ratios = {
        percent: first(setup, percent, eager=True).faults / first(setup, percent, eager=False).faults
        for percent in (5, 50, 100)
    }
    assert ratios[5] <= 0.1
    assert 0.45 <= ratios[50] <= 0.55
    assert ratios[100] >= 0.9


def test_with_pml_a_first_pass_is_free_of_faults() -> None:
    """The first version's figures: 0.06 s with any number of vCPUs."""
    assert first("legacy_pml", 100, eager=True).faults == 0
    assert first("legacy_pml", 100, eager=False).faults == PAGES


@pytest.mark.parametrize("setup", SETUPS)
def test_clearing_splits_where_all_begins_dirty(setup: str) -> None:
    phases = dirty_log_perf(setup, eager=True, init_all_set=True, vcpus=2)
    splits = {found.name: found.splits for found in phases if found.splits}
    assert splits == {"clear 1": 2}
    assert phase(phases, "pass 1").faults == 0
    assert phase(phases, "get 1").dirty == 2 * PAGES


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("eager", [False, True])
def test_huge_pages_come_back_when_logging_stops(setup: str, eager: bool) -> None:
    phases = dirty_log_perf(setup, eager=eager, percent=5)
    stages = [phase(phases, name) for name in ("populate", "pass 2", "disable", "after")]
    assert [(found.pages_2m, found.pages_4k) for found in stages] == [(1, 0), (0, PAGES), (0, 0), (1, 0)]
    assert stages[-1].faults == 1


@pytest.mark.parametrize("setup", SETUPS)
def test_counts_are_proportional_to_vcpus_and_memory(setup: str) -> None:
    one, more, large = (
        dirty_log_perf(setup, eager=False, percent=5, passes=1, vcpus=vcpus, huge_pages=pages)
        for vcpus, pages in ((1, 1), (3, 1), (1, 3))
    )
    for small, wide, long in zip(one, more, large, strict=True):
        assert wide.faults == 3 * small.faults
        assert (wide.accesses, wide.dirty) == (3 * small.accesses, 3 * small.dirty)
        assert long.splits == 3 * small.splits


def test_locks_are_taken_by_shadow_pages_faults_alone() -> None:
    """``fast_page_fault`` is for direct maps; no shadow trace has one."""
    for setup in SETUPS:
        found = phase(dirty_log_perf(setup, eager=True, percent=50), "pass 2")
        assert found.fast == (found.faults if setup in ("tdp_mmu", "legacy") else 0)


def test_6_3_splits_on_the_fault() -> None:
    """``tdp_fault_splits_huge_page``: one fault a huge page, and no lower level is missing."""
    phases = dirty_log_perf("tdp_mmu", eager=False, percent=50, kernel=LINUX_6_12)
    assert phase(phases, "pass 1")[2:5] == (1, 0, len(written(50)) - 1)
    assert phase(phases, "pass 1").splits == 1


def test_what_is_lacking_is_taken_before_logging_begins() -> None:
    def shorten(machine: Machine) -> None:
        machine.kvm.split_tables_left = 1

    phases = dirty_log_perf("tdp_mmu", eager=True, huge_pages=3, shorten=shorten)
    assert phase(phases, "enable")[6:8] == (1, 1)
    assert phase(phases, "pass 1").huge_write_protect == 2


# Counted another way --------------------------------------------------------------------------------


def by_scenario(percent: int, *, eager: bool, l1: str = "64", huge_pages: int = 1) -> Counter[str]:
    """Count the first pass's faults of an L2 that a scenario drives, by the outcome of each op."""
    builder, _ = huge_guest(huge_pages, l1=l1, host={"eager_page_split": int(eager)})
    builder.op(ops.Vmrun(VMCB_GPA))
    for address in range(MEMORY, builder.mem, HUGE):
        builder.op(access(address, write=True))
    builder.op(log_all(builder))
    for page, address in enumerate(range(MEMORY, builder.mem, 4096)):
        builder.op(access(address, write=is_written(page, percent)))
    results = run(builder.op(ops.GetDirtyLog(0)).build())
    logged = next(i for i, result in enumerate(results) if isinstance(result.op, ops.SetMemslot))
    found = Counter(kind for result in results[logged:] for kind in fault_kinds(result.events))
    found["dirty"] = len(results[-2].outcome.dirty or [])
    touched = [result.op.gva for result in results[logged:] if isinstance(result.op, ops.Read | ops.Write)]
    found["touched"] = len(set(touched))
    return found


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("percent", [5, 50, 100])
def test_a_scenario_counts_the_same(percent: int, eager: bool) -> None:
    """Instructions instead of bare accesses, and every page is touched once."""
    expected = first("nested", percent, eager=eager)
    found = by_scenario(percent, eager=eager)
    assert found["touched"] == expected.accesses == PAGES
    assert tuple(found[cause] for cause in CAUSES) == expected[2:5]
    dirty = PAGES - written(percent)[0] if not eager else len(written(percent))
    assert found["dirty"] == dirty


@pytest.mark.parametrize("l1", ["32", "pae", "57"])
def test_the_form_of_the_nested_tables_does_not_matter(l1: str) -> None:
    for eager in (False, True):
        assert by_scenario(10, eager=eager, huge_pages=2, l1=l1) == by_scenario(10, eager=eager, huge_pages=2)


def test_causes_are_told_by_the_events() -> None:
    fault = ev.kvm_page_fault(0, MEMORY, 7)
    absent = ev.kvm_page_fault(0, MEMORY, 6)
    huge, small, table, frozen = 0x800000000E7, 0x80000000067, 0x80000000827, 0x5A0
    dropped = ev.kvm_tdp_mmu_spte_changed(0, MEMORY >> 12, 2, huge | 1 << 11, frozen)
    split = ev.kvm_tdp_mmu_spte_changed(0, MEMORY >> 12, 2, huge | 1 << 11, table)
    changed = ev.kvm_tdp_mmu_spte_changed(0, MEMORY >> 12, 1, small | 1 << 11, small | 1 << 11)
    assert fault_kinds([fault, changed, absent]) == ["write_protect", "not_present"]
    assert fault_kinds([fault, dropped]) == fault_kinds([fault, split]) == ["huge_write_protect"]
    assert fault_kinds([ev.kvm_page_fault(0, MEMORY - 1, 7), dropped]) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"setup": "none"}, "setup 'none': unknown; the setups are tdp_mmu, nested, "),
        ({"setup": "nested", "passes": 0}, "passes is 0, expected 1 or more"),
        ({"setup": "nested", "vcpus": 0}, "vcpus is 0, expected 1 or more"),
        ({"setup": "nested", "percent": -1}, "percent is -1, expected 0 or more"),
    ],
)
def test_refusals(given: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        dirty_log_perf(eager=True, **given)  # type: ignore[arg-type]


def test_no_such_phase() -> None:
    with pytest.raises(InputError, match="phase 'none': unknown; the phases are populate, enable, pass 1"):
        phase(dirty_log_perf("nested", eager=True), "none")
