"""VMCBs of the cases against those that real kernels ran with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mmulab.conform.recording import read_recording
from mmulab.lab.cases.vmcb import vmcb
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.scenario import MODES, Value

GPA, L2_ROOT, NPT_ROOT = 0xB000, 0x200000, 0x14000
RIP = 0x578


def page(values: Iterable[Value]) -> dict[int, int]:
    """Return the bytes of the VMCB that are not 0, but for RIP, which each VMRUN sets."""
    found = {}
    for value in values:
        for at, byte in enumerate(value.value.to_bytes(value.size, "little"), value.gpa - GPA):
            if 0 <= at < 4096 and byte and not RIP <= at < RIP + 8:
                found[at] = byte
    return found


@pytest.mark.parametrize(
    ("recording", "mode", "root_gpa", "nested_cr3"),
    [
        ("nested48/nested-64-l2-64", "64", L2_ROOT, NPT_ROOT),
        ("nested57/nested-64-l2-32", "32", L2_ROOT, NPT_ROOT),
        ("nested-nonpt/nested-nonpt-32-l2-np", "np", 0, None),
    ],
)
def test_a_vmcb_is_that_of_the_recordings(
    root: Path, recording: str, mode: str, root_gpa: int, nested_cr3: int | None
) -> None:
    builder = ScenarioBuilder("64")
    vmcb(builder, GPA, MODES[mode]._replace(cr3=root_gpa), nested_cr3)
    wanted = read_recording(root / f"data/conformance/6.1.192/{recording}.jsonl.xz").scenario.header
    assert page(builder.build().header.values) == page(wanted.values)
