"""Registers that a #VMEXIT gives L1 again."""

from __future__ import annotations

import pytest

from mmulab.check.judged import record_judged
from mmulab.check.restored import Restored
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.lab.cases.build import nested_guest
from mmulab.lab.cases.table import find_cases, row
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import Scenario
from mmulab.x86.regs import X86_CR4_MCE, X86_CR4_PAE

MENDED = find_kernel("6.1+svm_vmexit_restores_cr4")


def plain_l2(l1: str) -> Scenario:
    return nested_guest(l1, "np", 4, nested_paging=False, npt=0)


def said(scenario: Scenario, kernel: object = LINUX_6_1) -> list[str]:
    runner = Runner(scenario, config=machine_config(scenario, kernel))  # type: ignore[arg-type]
    restored = Restored(runner.machine)
    found = (restored.after(result) for result in runner.results())
    return [f"{wrong.wanted} | {wrong.seen}" for wrong in found if wrong is not None]


def test_cr4_that_comes_back_as_l2s_is_told() -> None:
    (told, *_) = said(plain_l2("64"))
    l2s = X86_CR4_PAE | X86_CR4_MCE
    assert told.startswith(f"L1's CR4 {X86_CR4_PAE:#x} | L1 comes back with CR4 {l2s:#x}; vmexit")


def test_with_the_fix_all_comes_back() -> None:
    assert said(plain_l2("64"), MENDED) == said(plain_l2("pae"), MENDED) == []


def test_an_l2_that_pages_as_l1_does_spoils_nothing() -> None:
    assert said(nested_guest("64", "64", 4, nested_paging=False, npt=0)) == []
    assert said(nested_guest("64", "np", 4, nested_paging=True, npt=1)) == []


def test_a_recording_is_judged_so_too() -> None:
    verdicts = record_judged(plain_l2("64"))[0].verdicts
    assert any("L1 comes back with CR4" in verdict for verdict in verdicts.values())
    assert record_judged(plain_l2("64"), kernel=MENDED)[0].verdicts == {}


@pytest.mark.parametrize("case", ["nonpt-shadow-32-l2-np-l0-4", "nonpt-shadow-64-l2-np-l0-4"])
@pytest.mark.parametrize("design", ["passthrough", "pre_fix"])
def test_the_verdict_is_the_kernels_and_the_fix_mends_it(case: str, design: str) -> None:
    (found,) = find_cases([case])
    spoiled, mended = row(found, design), row(found, design, kernel=MENDED)
    assert (spoiled.verdict, spoiled.record()["pre_fix"]["verdict"]) == ("kernel", "kernel")
    assert (mended.verdict, mended.run.wrong) == ("correct", None)
    assert mended.run.judged > 0
