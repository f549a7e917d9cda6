"""What the ready sweeps run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmulab import paths
from mmulab.errors import InputError
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.sync.find import SYNC_POLICIES
from mmulab.lab.sweeps import (
    COUNTS,
    design_on_cases,
    interval,
    policy_on_boot,
    scenario_counts,
    seed_study,
)
from mmulab.report.experiment import read_experiment
from mmulab.report.results import Table
from mmulab.scenario.runner import run
from mmulab.scenario.text import read_scenario

READY = sorted((paths.checkout() / "notebooks" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_ready_sweeps_are_valid(path: Path) -> None:
    found = read_experiment(path)
    assert found.name == path.stem
    assert found.runs


def test_ready_design_sweep_has_every_design() -> None:
    found = read_experiment(paths.checkout() / "notebooks" / "sweeps" / "designs.yaml")
    assert [run.parameters["design"] for run in found.runs] == [design.id for design in DESIGNS.values()]


def test_ready_policy_sweep_has_every_policy() -> None:
    found = read_experiment(paths.checkout() / "notebooks" / "sweeps" / "policies.yaml")
    assert {run.parameters["sync"] for run in found.runs} == set(SYNC_POLICIES)


def test_design_on_cases_names_the_wrong_access() -> None:
    names = "la57-switch-npt-4to5-l0-5"
    wrong, right = (
        dict(zip(found.columns, found.rows[0], strict=True))
        for found in (design_on_cases("D0", names), design_on_cases("passthrough", names))
    )
    assert (wrong["verdict"], right["verdict"]) == ("wrong", "correct")
    assert wrong["wrong_text"] is not None
    assert right["wrong_text"] is None


def counts(table: Table, what: str) -> dict[str, int]:
    found = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    return {row["name"]: row["count"] for row in found if row["what"] == what}


def test_scenario_counts_are_those_of_its_run() -> None:
    name = "tests/scenario/examples/first_fault.mmu"
    results = run(read_scenario(paths.checkout() / name))
    table = scenario_counts(name)
    assert counts(table, "outcome") == {"ok": 2, "host": 2}  # with init and teardown
    assert sum(counts(table, "event").values()) == sum(len(result.events) for result in results)
    assert counts(table, "event")["kvm_page_fault"] == 3
    assert counts(table, "statistic")["pf_taken"] == sum(one.stats.get("pf_taken", 0) for one in results)


def test_scenario_counts_under_another_kernel_and_design() -> None:
    name = "tests/scenario/examples/first_fault.mmu"
    syncs = "kvm_mmu_sync_roots"
    assert counts(scenario_counts(name), "event")[syncs] == 1
    assert counts(scenario_counts(name, kernel="6.12"), "event")[syncs] == 2
    with pytest.raises(InputError, match="design 'nonsense'"):
        scenario_counts(name, design="nonsense")


def test_policy_on_boot_agrees_with_the_recorded_addresses() -> None:
    table = policy_on_boot("write_protect", "boot-686-nonpae", 20_000)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["verdict"] == "correct"
    assert row["agree"] == row["translations"]
    assert 0 < row["translations"] <= 20_000


def test_seed_study_has_an_interval_around_each_mean() -> None:
    draws, intervals = seed_study("passthrough", "fork-exec/64/shadow", 3)
    assert [row[2] for row in draws.rows] == [0, 1, 2]
    assert [row[2] for row in intervals.rows] == list(COUNTS)
    for row in intervals.rows:
        mean, low, high = row[4:]
        assert low <= mean <= high
    assert intervals.rows == seed_study("passthrough", "fork-exec/64/shadow", 3)[1].rows


def test_seed_study_refuses_a_single_draw() -> None:
    with pytest.raises(InputError, match="draws"):
        seed_study("passthrough", "fork-exec/64/shadow", 1)


def test_interval_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(5).normal(100, 10, 400)
    low, high = interval(list(values), 1)
    wide = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - wide, abs=0.15)
    assert high == pytest.approx(values.mean() + wide, abs=0.15)


def test_interval_of_equal_values_is_a_point() -> None:
    assert interval([7, 7, 7], 1) == (7, 7)
