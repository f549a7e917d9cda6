"""What is known of Linux with an L1 that has guests is no more than that."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.check.asserted import Asserted
from mmulab.check.finding import FindingKind
from mmulab.check.hunt import IN_GUESTS
from mmulab.check.known import beyond, deviation_of
from mmulab.check.known_nested import NESTED_DEVIATIONS
from mmulab.check.trial import make_bench
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.scenario.runner import Runner
from mmulab.scenario.text import parse_scenario, read_scenario

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "data/sequences/reachable"


def test_the_same_assertion_of_a_removed_fix_is_not_passed_over() -> None:
    """B20 makes a reserved spte too, in a guest without guests."""
    scenario = read_scenario(ROOT / "tests/kvm/bugs/B20.mmu")
    met: dict[str, int] = {}
    finding = make_bench(scenario, find_kernel("6.1+B20"), beyond(IN_GUESTS, met)).run(()).finding
    assert finding is not None
    assert (finding.kind, finding.name, met) == (FindingKind.ASSERTION, "spte.c:make_spte:reserved", {})


MENDED = (
    ("nested-emulated-at-table", "wr s 4 8000001008 0", "wr s 4 8000001010 0"),
    ("nested-pse-kept", "cr4 0", "cr4 10"),
    ("nested-npf-mixed", "wr s 8 1c008 2a065", "wr s 8 1c008 2a067"),
    ("nested-nx-reserved-spte", "nx_huge_pages=1", "nx_huge_pages=0"),
    ("nested-tables-outside", "m8 a550 900067", "m8 a550 10067"),
)


@pytest.mark.parametrize(("name", "old", "new"), MENDED, ids=[name for name, *_ in MENDED])
def test_without_its_cause_nothing_is_wrong(name: str, old: str, new: str) -> None:
    text = (KEPT / f"{name}.mmu").read_text()
    assert text.count(old) == 1
    met: dict[str, int] = {}
    scenario = parse_scenario(text.replace(old, new))
    trial = make_bench(scenario, LINUX_6_1, beyond(IN_GUESTS, met)).run(())
    assert (trial.finding, trial.refused, met) == (None, None, {})


@pytest.mark.parametrize(("entry", "known"), [(0x81164, True), (0x81165, False)])
def test_an_spte_without_rights_is_known_only_of_an_entry_without(entry: int, known: bool) -> None:
    """Its way grants reads and writes: of an entry that may be read, the spte must not have lost that."""
    scenario = read_scenario(KEPT / "nested-no-rights.mmu")
    runner = Runner(scenario)
    watcher = Asserted(runner.machine)
    for result in runner.results():
        finding = watcher.after(result)
        if finding is not None:
            break
    assert finding is not None
    slot = runner.machine.kvm.slots[0].lookup(0xB4)
    assert slot is not None
    runner.machine.memory.write(slot.frame(0xB4) << 12 | 8, 8, entry)
    deviation = deviation_of(runner.machine, result, finding)
    assert (deviation.name if deviation else None) == ("nested-no-rights" if known else None)


def test_no_other_name_is_in_two_rows() -> None:
    names = [name for deviation in NESTED_DEVIATIONS for name in deviation.findings if ":" in name]
    by_cause = {"nested.c:nested_svm_vmexit:run_pending", "nested.c:nested_vmx_vmexit:run_pending"}
    assert len(names) == len(set(names))
    assert by_cause <= set(names)
