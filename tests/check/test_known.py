"""What is known of Linux: each sequence shows it, is passed over, and no removed fix is taken for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mmulab.check.deviation import Deviation
from mmulab.check.finding import FindingKind
from mmulab.check.hunt import IN_GUESTS
from mmulab.check.known import DEVIATIONS, beyond
from mmulab.check.trial import make_bench
from mmulab.kvm import page_fault
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.scenario.text import parse_scenario, read_scenario

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


MARKED = "m8 22000 8000000000100065"
"""The leaf of a user's page that may not be written, with bit 63, which is reserved without EFER.NX."""
IN_A_KNOWN_PLACE = (
    ("B10", MARKED, ("efer 500", "cr0 80010031", "wr s 8000000000 2")),
    ("B12", MARKED, ("efer 500", "cr4 200020", "rd s 8000000000")),
)


@pytest.mark.parametrize(("bug", "leaf", "then"), IN_A_KNOWN_PLACE, ids=[bug for bug, *_ in IN_A_KNOWN_PLACE])
def test_rights_that_a_removed_fix_loses_are_found_where_a_reserved_bit_is(
    bug: str, leaf: str, then: tuple[str, ...]
) -> None:
    """``nx-reserved-lost`` gives what the entry gives with EFER.NX, and that is a #PF too."""
    header, _, _ = (ROOT / f"tests/kvm/bugs/{bug}.mmu").read_text().partition("\nops\n")
    assert header.count("m8 22000 100065") == 1
    lines = (header.replace("m8 22000 100065", leaf), "ops", "wr s 8000000000 1", *then, "end\n")
    scenario = parse_scenario("\n".join(lines))
    met: dict[str, int] = {}
    watchers = beyond(IN_GUESTS, met)
    assert make_bench(scenario, LINUX_6_1, watchers).run(()).finding is None
    finding = make_bench(scenario, find_kernel(f"6.1+{bug}"), watchers).run(()).finding
    assert finding is not None
    assert (finding.name, finding.text.split()[0], met) == ("fault-reached", then[-1].split()[0], {})


def test_rights_that_a_removed_fix_loses_are_found_where_a_large_page_stays() -> None:
    """B10 writes to a large page that is for reading; ``pse-kept`` alone would give #PF."""
    scenario = parse_scenario(
        "mmulab-scenario 1\nmode 32\nsregs 80000031 10000 10 0\nroot 10000\nm4 10800 4000e5\nops\n"
        "wr s 80000000 1\ncr4 0\ncr0 80010031\nwr s 80000000 2\nend\n"
    )
    met: dict[str, int] = {}
    watchers = beyond(IN_GUESTS, met)
    finding = make_bench(scenario, find_kernel("6.1+B10"), watchers).run(()).finding
    assert finding is not None
    assert (finding.name, finding.op, met) == ("fault-reached", 3, {})
    assert (make_bench(scenario, LINUX_6_1, watchers).run(()).finding, met) == (None, {})


def test_an_old_mmio_entry_that_is_taken_for_todays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the sync that ``mmio-refreshed`` needs."""
    scenario = read_scenario(KEPT / "mmio-refreshed.mmu")
    scenario = replace(scenario, steps=(*scenario.steps[:3], scenario.steps[-1]))
    met: dict[str, int] = {}
    watchers = beyond(IN_GUESTS, met)
    assert make_bench(scenario, LINUX_6_1, watchers).run(()).finding is None
    monkeypatch.setattr(page_fault, "check_mmio_spte", lambda vcpu, spte: True)
    finding = make_bench(scenario, LINUX_6_1, watchers).run(()).finding
    assert finding is not None
    assert (finding.name, met) == ("page-not-reached", {})


def test_each_sequence_is_told_of() -> None:
    named = {deviation.name for deviation in DEVIATIONS}
    rows = [line for line in (KEPT / "PROVENANCE.md").read_text().splitlines() if line.startswith("| `")]
    assert {path.stem for path in KEPT.glob("*.mmu")} == {row.split("`")[1] for row in rows} == named
