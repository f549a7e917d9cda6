"""The kept sequences: each has its finding with the bug switched on, and none without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmulab.check.finding import Finding
from mmulab.check.hunt import IN_SCOPES
from mmulab.check.mmu import Invariants
from mmulab.check.scopes import MAKERS
from mmulab.check.trial import make_bench
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.scenario.text import read_scenario

SEQUENCES = Path(__file__).parents[2] / "data" / "sequences"
ROW = re.compile(r"\| (B\w+) \| (\S+) \| (\d+) \|")
ROWS = [ROW.fullmatch(line) for line in (SEQUENCES / "PROVENANCE.md").read_text().splitlines()]
KEPT = {row[1]: (row[2], int(row[3])) for row in ROWS if row}
MOST = 12
"""Steps of a sequence, those of the beginning included."""


def found_with(bug: str, kernel: Kernel) -> Finding | None:
    scenario = read_scenario(SEQUENCES / f"{bug}.mmu")
    return make_bench(scenario, kernel, (*IN_SCOPES, Invariants)).run(()).finding


def test_each_file_has_a_row_and_each_row_a_file() -> None:
    assert {path.stem for path in SEQUENCES.glob("*.mmu")} == set(KEPT)


@pytest.mark.parametrize("bug", KEPT)
def test_a_sequence_shows_its_bug_and_the_right_kernel_none(bug: str) -> None:
    place, steps = KEPT[bug]
    scenario = read_scenario(SEQUENCES / f"{bug}.mmu")
    assert place in MAKERS
    assert len(scenario.steps) == steps <= MOST
    finding = found_with(bug, find_kernel(f"6.1+{bug}"))
    assert finding is not None
    assert finding.op == steps - 1
    assert found_with(bug, LINUX_6_1) is None
