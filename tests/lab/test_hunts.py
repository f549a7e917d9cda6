"""Hunts in processes: how work is shared out, what is kept, and what of several parts is one whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.check.finding import Finding, FindingKind
from mmulab.check.hunt import Hunted, Job, Trouble
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12, find_kernel
from mmulab.lab.hunts import ALL, Shared, file_name, hunt_each, merged, right_of, shared_out, with_bugs
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.text import read_scenario

JOB = Job(LINUX_6_1, None, ("paths-32", "paths-64", "shadow-64"), 0, 60.0, ALL)


def trouble(name: str) -> Trouble:
    finding = Finding(FindingKind.INVARIANT, name, 0, "nop", "wrong")
    return Trouble(finding, ScenarioBuilder("32").build(), "paths-32", 1, 0.0, 0.0)


def test_a_recorded_kernel_is_its_own_measure() -> None:
    assert right_of(LINUX_6_1) is None
    assert right_of(LINUX_6_12) is None
    assert right_of(find_kernel("6.12+B13")) == LINUX_6_12


def test_a_job_a_bug() -> None:
    jobs = with_bugs(LINUX_6_1, ["B13", "B17"], JOB)
    assert [job.kernel.name for job in jobs] == ["6.1.192+B13", "6.1.192+B17"]
    assert {(job.right, job.most, job.places) for job in jobs} == {(LINUX_6_1, 1, JOB.places)}


def test_places_are_shared_out() -> None:
    assert [job.places for job in shared_out(JOB, 2)] == [("paths-32", "shadow-64"), ("paths-64",)]
    assert len(shared_out(JOB, 8)) == 3


def test_parts_are_one_whole() -> None:
    one, other = Hunted(JOB, [trouble("A"), trouble("B")], states=2), Hunted(JOB, [trouble("B")], states=3)
    one.known, other.known = {("outcome", "x"): 1}, {("outcome", "x"): 2}
    one.deviations, other.deviations = {"d": 1}, {"d": 1, "e": 1}
    other.interrupted = True
    whole = merged([one, other])
    assert [found.finding.name for found in whole.found] == ["A", "B"]
    assert (whole.states, whole.known, whole.interrupted) == (5, {("outcome", "x"): 3}, True)
    assert whole.deviations == {"d": 2, "e": 1}


def test_what_is_found_is_written_at_once_and_told(tmp_path: Path) -> None:
    (job,) = with_bugs(LINUX_6_1, ["B17"], JOB)
    shared = Shared()
    (hunted,) = hunt_each([job], 1, shared, tmp_path / "new" / "out")
    (found,) = hunted.found
    scenario = read_scenario(tmp_path / "new" / "out" / file_name(job, found))
    assert [step.op for step in scenario.steps] == [step.op for step in found.scenario.steps]
    assert (shared.states, shared.ops) == (hunted.states, hunted.ops)


def test_an_ended_search_finds_nothing() -> None:
    shared = Shared()
    shared.end()
    (hunted,) = hunt_each(with_bugs(LINUX_6_1, ["B17"], JOB), 1, shared, None)
    assert (hunted.found, hunted.states, hunted.interrupted) == ([], 0, True)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="name a folder that can be made"):
        list(hunt_each([JOB], 1, Shared(), tmp_path / "file" / "out"))
