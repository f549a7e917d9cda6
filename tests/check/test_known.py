"""What is known of Linux: each sequence shows it, is passed over, and no removed fix is taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmulab.check.finding import FindingKind
from mmulab.check.hunt import IN_GUESTS
from mmulab.check.known import DEVIATIONS, Deviation, beyond
from mmulab.check.trial import make_bench
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.scenario.text import read_scenario

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "data/sequences/reachable"


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda deviation: deviation.name)
def test_its_sequence_shows_it_and_is_passed_over(deviation: Deviation) -> None:
    scenario = read_scenario(KEPT / f"{deviation.name}.mmu")
    finding = make_bench(scenario, LINUX_6_1, IN_GUESTS).run(()).finding
    assert finding is not None
    assert finding.kind is deviation.kind
    assert finding.name in deviation.findings
    met: dict[str, int] = {}
    trial = make_bench(scenario, LINUX_6_1, beyond(IN_GUESTS, met)).run(())
    assert (trial.finding, met) == (None, {deviation.name: 1})


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda deviation: deviation.name)
def test_its_sequence_has_no_step_to_spare(deviation: Deviation) -> None:
    scenario = read_scenario(KEPT / f"{deviation.name}.mmu")
    bench = make_bench(replace(scenario, steps=()), LINUX_6_1, IN_GUESTS)
    steps = scenario.steps
    for at in range(len(steps)):
        finding = bench.run(steps[:at] + steps[at + 1 :]).finding
        assert finding is None or finding.name not in deviation.findings, at


@pytest.mark.parametrize("bug", ["B10", "B12"])
def test_a_removed_fix_is_not_passed_over(bug: str) -> None:
    """They lose the same rights, but by another way."""
    scenario = read_scenario(ROOT / f"tests/kvm/bugs/{bug}.mmu")
    met: dict[str, int] = {}
    trial = make_bench(scenario, find_kernel(f"6.1+{bug}"), beyond(IN_GUESTS, met)).run(())
    assert trial.finding is not None
    assert (trial.finding.kind, trial.finding.name) == (FindingKind.OUTCOME, "fault-reached")
    assert not met


def test_each_sequence_is_told_of() -> None:
    named = {deviation.name for deviation in DEVIATIONS}
    rows = [line for line in (KEPT / "PROVENANCE.md").read_text().splitlines() if line.startswith("| `")]
    assert {path.stem for path in KEPT.glob("*.mmu")} == {row.split("`")[1] for row in rows} == named
