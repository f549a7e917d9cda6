"""What L1 is told of L2's faults, against recordings of real kernels and outcomes that are changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import pytest

from mmulab.check.access import Access, TwoWalks
from mmulab.check.allowed import two_walks, walks_of
from mmulab.check.oracle import Oracle, Verdict
from mmulab.check.told import judge_fault
from mmulab.conform.recording import read_recording
from mmulab.lab.cases.build import below_level_5, nested_guest
from mmulab.lab.cases.run import runner_of
from mmulab.machine.machine import Machine
from mmulab.machine.op import Outcome, Vmrun
from mmulab.scenario.runner import Result
from mmulab.scenario.scenario import Scenario
from mmulab.x86.ept import EPT_VIOLATION_GVA_TRANSLATED, VMX_EPTP_PWL_5

Judged = tuple[Machine, Oracle, Result, TwoWalks]


def nested_accesses(scenario: Scenario) -> Iterator[Judged]:
    """Yield each access of L2, after it ran, with the walks that were made before it."""
    runner = runner_of(scenario, "passthrough")
    machine, running = runner.machine, runner.results()
    oracle = Oracle(machine)
    oracle.judge(next(running))
    for step in scenario.steps:
        access = step.op if isinstance(step.op, Access) else None
        walks = walks_of(machine, access) if access and machine.kvm.vcpus[0].guest_mode else None
        result = next(running)
        while result.op is not step.op:
            oracle.judge(result)
            result = next(running)
        if walks is not None:
            yield machine, oracle, result, walks
        else:
            oracle.judge(result)


def scenario_of(root: Path, name: str) -> Scenario:
    return read_recording(root / f"data/conformance/6.1.192/{name}.jsonl.xz").scenario


@pytest.mark.parametrize(
    "name", ["ept-perms-leaf-ad", "ept-perms-leaf-noad", "ept-perms-l2-ad", "ept-perms-l4-noad"]
)
def test_what_l1_was_told_on_a_real_kernel_is_what_its_ept_says(root: Path, name: str) -> None:
    """Every R, W, X of an entry; L1 flushes in between, so nothing stale is allowed."""
    seen: Counter[str] = Counter()
    for _, oracle, result, walks in nested_accesses(scenario_of(root, f"nested-ept/{name}")):
        assert walks.ept
        assert oracle.judge(result) == (Verdict.ALLOWED, ANY, None), result.text
        told = result.outcome.vmexit
        seen["mapped" if told is None else f"reason {told['reason']}"] += 1
    assert seen["mapped"] > 10
    assert seen["reason 48"] > 10
    assert seen["reason 49"] > 3


@pytest.mark.parametrize(("key", "bit"), [("qual", 8), ("qual", 1), ("gpa", 12), ("reason", 0)])
def test_an_exit_told_wrong_is_found(root: Path, key: str, bit: int) -> None:
    found = nested_accesses(scenario_of(root, "nested-ept/ept-perms-leaf-ad"))
    for _, oracle, result, _ in found:
        if (result.outcome.vmexit or {}).get("reason") == 48:
            break
        oracle.judge(result)
    told = result.outcome.vmexit
    assert told is not None
    changed = replace(result.outcome, vmexit={**told, key: told[key] ^ 1 << bit})
    _, _, wrong = oracle.judge(result.with_(outcome=changed))
    assert wrong is not None
    assert wrong.wanted.startswith(f"reason 0x30 qual {told['qual']:#x} gpa {told['gpa']:#x}")


def test_ept_of_a_paging_l2_is_walked_for_every_table(root: Path) -> None:
    _, _, _, walks = next(nested_accesses(scenario_of(root, "nested-ept/ept-l2-64-ad")))
    assert [found.va & ~0xFFF for found in walks.inner[:4]] == [walks.outer.table[n] for n in (4, 3, 2, 1)]
    assert walks.inner[4].va == walks.outer.pa
    assert {(found.max_level, found.level) for found in walks.inner} == {(4, 1)}
    assert walks.gpa == walks.inner[-1].pa


def test_pdptes_under_ept_are_registers(root: Path) -> None:
    """L2's walk begins with one, and no nested walk belongs to it; under NPT there is one for it too."""
    _, _, _, walks = next(nested_accesses(scenario_of(root, "nested-ept-tdpmmu/ept-l2-pae-noad")))
    assert walks.outer.pdpte
    assert [found.va & ~0xFFF for found in walks.inner[:2]] == [walks.outer.table[n] for n in (2, 1)]
    assert len(walks.inner) == 3
    npt = nested_guest("64", "pae", 4, nested_paging=True, npt=1, tdp_mmu=0)
    _, _, _, walks = next(nested_accesses(npt))
    assert len(walks.inner) == 4


def test_a_changed_pdpte_in_memory_is_not_seen_under_ept(root: Path) -> None:
    scenario = scenario_of(root, "nested-ept-tdpmmu/ept-l2-pae-noad")
    runner = runner_of(scenario, "passthrough")
    running = runner.results()
    while not isinstance(next(running).op, Vmrun):
        pass
    machine = runner.machine
    vcpu = machine.kvm.vcpus[0]
    before = two_walks(machine, 0x40000000)
    assert before.gpa is not None
    vcpu.walk_mmu.pdptrs = [0, 0, 0, 0]
    assert two_walks(machine, 0x40000000).outer.error == 0


def test_levels_follow_the_ept_pointer(root: Path) -> None:
    scenario = below_level_5(scenario_of(root, "nested-ept/ept-basic-ad"))
    machine, _, _, walks = next(nested_accesses(scenario))
    assert machine.kvm.vcpus[0].vmx.get("ept_pointer") & VMX_EPTP_PWL_5
    assert [found.max_level for found in walks.inner] == [5]


def test_another_page_than_the_tables_name_is_found(root: Path) -> None:
    found = nested_accesses(scenario_of(root, "nested-ept/ept-basic-ad"))
    for _, oracle, result, walks in found:  # noqa: B007
        if result.outcome.hpa != -1:
            break
        oracle.judge(result)
    elsewhere: Outcome = replace(result.outcome, hpa=result.outcome.hpa + 0x1000)
    _, _, wrong = oracle.judge(result.with_(outcome=elsewhere))
    assert wrong is not None
    assert (wrong.expected, wrong.reached) == (walks.gpa, (walks.gpa or 0) + 0x1000)


def test_a_walk_of_l2_writes_its_tables_where_ept_has_dirty_bits(root: Path) -> None:
    """L1 was told so: bits 0 and 1 for a table of L2's, bit 0 alone without A/D (SDM 3, 29.3.5)."""
    for name, bits in (("ept-fuzz64-ad-04", 3), ("ept-fuzz64-noad-00", 1)):
        at_tables = []
        for _, oracle, result, walks in nested_accesses(scenario_of(root, f"nested-ept/{name}")):
            oracle.judge(result)
            told = result.outcome.vmexit or {"reason": 0, "qual": 0}
            # L1 does not flush after each of its writes: only what is as its tables are now counts.
            if told["reason"] == 48 and judge_fault(walks, result.outcome)[1]:
                at_tables += [told["qual"] & 7] * (not told["qual"] & EPT_VIOLATION_GVA_TRANSLATED)
        assert len(at_tables) > 5
        assert set(at_tables) == {bits}
