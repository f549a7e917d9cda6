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
MORE = DATA.parent / "conformance-more"
MORE_AMD = {
    "dirtyring": 4,
    "host-flushonreuse-sh": 13,
    "host-noeager-tdp0": 11,
    "host-noeager-tdp1": 11,
    "host-nommiocaching-sh": 7,
    "host-nxhuge-sh": 15,
    "host-nxhuge-tdp0": 11,
    "host-nxhuge-tdp1": 11,
    "pku-tdp0": 1,
    "pku-tdp1": 1,
    "smep-paging": 1,
    "smm": 28,
    "smm-nested": 2,
    "smp": 59,
    "smp-nested": 12,
    "smp-nested48": 9,
    "tdpf0": 7,
    "tdpf1": 7,
    "tdpsmm0": 6,
    "tdpsmm1": 6,
}
"""The same of what the first recordings lack, as many of either kernel: several vCPUs, SMM."""
MORE_6_1 = MORE_AMD | {
    "age": 7,
    "cpuid": 10,
    "intel-ept0": 33,
    "intel-ept0-noad": 33,
    "intel-ept1-noad": 33,
    "intel-ept1-pml": 33,
    "intel-smep-paging": 1,
    "intel-smm": 23,
    "intel-smp": 25,
    "intel-smp-nested-ept": 8,
    "intel-smp-nested-ept-tdpmmu": 8,
    "new-tdp0": 19,
    "new-tdp1": 19,
    "pcid": 8,
    "pcid-amd": 18,
}
"""With PCID, ageing and Intel hosts."""
MORE_6_12 = MORE_AMD | {
    "age": 3,
    "cpuid": 9,
    "new-tdp0": 17,
    "new-tdp1": 17,
}
"""Of AMD hosts alone; no op of 6.12's host ages a page."""
MORE_OF_EACH = {
    "mprotect-sh": 20,
    "mprotect-tdp0": 7,
    "mprotect-tdp1": 7,
    "nommiocaching-sh": 6,
    "nommiocaching-tdp0": 5,
    "nommiocaching-tdp1": 4,
    "nxrecover-sh": 13,
    "nxrecover-tdp0": 7,
    "nxrecover-tdp1": 8,
    "nxswitch-sh": 11,
    "nxswitch-tdp0": 12,
    "nxswitch-tdp1": 12,
    "smmtrack-sh": 9,
    "smmtrack-tdp0": 2,
    "smmtrack-tdp1": 1,
    "swapout-sh": 11,
    "swapout-tdp0": 5,
    "swapout-tdp1": 6,
}
"""Those of each kernel: NX huge pages, pages protected and swapped, tables written in SMM, no MMIO sptes."""
MORE_FOLDERS = {"6.1.192": MORE_6_1 | MORE_OF_EACH, "6.12.117": MORE_6_12 | MORE_OF_EACH}


def _paths() -> list[Path]:
    first = [str(DATA / kernel / folder) for kernel in KERNELS for folder in FOLDERS]
    more = [str(MORE / kernel / folder) for kernel, folders in MORE_FOLDERS.items() for folder in folders]
    return find_recordings([*first, *more])


def _name(path: Path) -> str:
    return f"{path.parent.relative_to(DATA.parent)}/{scenario_name(path)}"


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


@pytest.mark.parametrize("kernel", MORE_FOLDERS)
def test_the_further_folders_are_whole(kernel: str) -> None:
    found = {path.name: len(find_recordings([str(path)])) for path in (MORE / kernel).iterdir()}
    assert found == MORE_FOLDERS[kernel]


def test_no_other_recordings_are_there() -> None:
    for folder in (DATA, MORE):
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == list(KERNELS)
