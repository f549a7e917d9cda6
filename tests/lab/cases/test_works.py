"""Work by name: the workloads among it."""

from __future__ import annotations

import pytest

from mmulab.cli.work import read_work
from mmulab.errors import InputError
from mmulab.lab.cases.run import run_case
from mmulab.lab.cases.works import find_works
from mmulab.workload.patterns import WORKLOADS, TextPatching


def test_a_workload_goes_by_its_name_mode_and_host() -> None:
    (case,) = find_works(["workload/text-patching/pae/tdp"])
    assert case.scenario is not None
    assert case.scenario() == TextPatching().scenario("pae", "tdp")
    assert case.host == "npt=1 tdp_mmu=1"
    assert read_work("workload/text-patching/pae/tdp") == TextPatching().scenario("pae", "tdp")


def test_all_are_found_and_none_by_chance() -> None:
    assert len(find_works(["workload/*"])) == len(WORKLOADS) * 4 * 3
    assert not [case for case in find_works(["all"]) if "/" in case.name]


@pytest.mark.parametrize("name", ["fork-exec", "text-patching", "context-switches"])
def test_they_are_right_by_the_guests_tables(name: str) -> None:
    run = run_case(WORKLOADS[name].scenario("64", "shadow"))
    assert run.wrong is None
    assert run.judged > 500


def test_no_such_workload() -> None:
    with pytest.raises(InputError, match="boots stream/NAME, workloads workload/NAME/MODE/HOST"):
        find_works(["workload/none/*"])


@pytest.mark.parametrize(
    ("name", "drawn"), [("workload/fork-exec/64/shadow", True), ("sync/two-modes-64", False)]
)
def test_a_seed_changes_the_workloads_and_nothing_else(name: str, drawn: bool) -> None:
    (before,), (zero,), (one,) = (find_works([name]), find_works([name], seed=0), find_works([name], seed=1))
    assert before.scenario is not None
    assert zero.scenario is not None
    assert one.scenario is not None
    assert before.scenario().steps == zero.scenario().steps
    assert (zero.scenario().steps == one.scenario().steps) == (not drawn)
