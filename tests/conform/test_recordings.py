"""The model against the kernel: whole recordings, event for event, at level full."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.conform.compare import Level, compare
from mmulab.conform.explain import explain
from mmulab.conform.recording import find_recordings, read_recording, scenario_name

DATA = Path(__file__).resolve().parents[2] / "data/conformance"
KERNELS = ("6.1.192", "6.12.117")
FOLDERS = {
    "sh": 143,
    "intel-sh": 86,
    "tdp0": 10,
    "tdp1": 10,
    "ept0": 16,
    "ept1": 16,
    "ept0-pml": 16,
    "ept1-pml": 16,
    "ept0-host-noad": 16,
    "ept1-host-noad": 16,
    "nested57": 31,
    "nested48": 22,
    "nested-nonpt": 6,
    "nested-ept": 73,
    "nested-ept-tdpmmu": 36,
    "nested-ept-host-noad": 21,
    "nested-noept-shadow": 4,
    "nested-noept-tdp": 4,
}
"""Folders of each kernel with whose recordings the model agrees, and how many each has."""


def _paths() -> list[Path]:
    return find_recordings([str(DATA / kernel / folder) for kernel in KERNELS for folder in FOLDERS])


def _name(path: Path) -> str:
    return f"{path.parent.relative_to(DATA)}/{scenario_name(path)}"


@pytest.mark.parametrize("path", _paths(), ids=_name)
def test_the_model_reports_what_the_kernel_reported(path: Path) -> None:
    recording = read_recording(path)
    comparison = compare(recording, Level.FULL)
    if not comparison.agrees:
        pytest.fail(comparison.problem or explain(recording, Level.FULL, comparison), pytrace=False)
    assert recording.scenario.header.kernel == path.parts[-3]
    assert comparison.ops_agree == comparison.ops > 2
    assert comparison.events_agree == comparison.events > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_folders_are_whole(kernel: str) -> None:
    assert {f: len(find_recordings([str(DATA / kernel / f)])) for f in FOLDERS} == FOLDERS
    assert len(find_recordings([str(DATA / kernel)])) == 542


def test_no_other_recordings_are_there() -> None:
    assert sorted(path.name for path in DATA.iterdir() if path.is_dir()) == list(KERNELS)
