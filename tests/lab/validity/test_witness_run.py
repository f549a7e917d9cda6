"""A witness under a marker, step by step."""

from __future__ import annotations

import pytest

from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.validity import VALIDITIES
from mmulab.lab.validity.witness_run import NO_PROGRESS, REFERENCE, base_word, extended, run_witness
from mmulab.lab.validity.witnesses import witnesses

DESIGN = DESIGNS["passthrough"]


def test_the_mark_is_seen_before_and_gone_after_in_the_context_in_use() -> None:
    run = run_witness(witnesses()["root-shadow-narrows"], VALIDITIES["valid"])
    assert [step.text for step in run.steps] == ["init", "cpuid maxphyaddr 24", "rd s 4 40000000"]
    change = run.steps[1]
    assert change.accepted
    (decision,) = change.decisions
    assert (decision.old_root_role, decision.old_cpu_role.valid, decision.unchanged) == (0, 0, False)
    assert change.before["root_mmu"] == change.after["root_mmu"]
    assert not change.after["guest_mmu"].configured


def test_the_mark_waits_in_a_context_not_in_use() -> None:
    run = run_witness(witnesses()["guest-npt-narrows"], VALIDITIES["cpuid_stale"])
    change = next(step for step in run.steps if step.accepted)
    assert change.before["guest_mmu"].cpu_role.cpuid_stale == 0
    assert change.after["guest_mmu"].cpu_role.cpuid_stale == 1
    entry = run.steps[run.steps.index(change) + 1]
    assert entry.after["guest_mmu"].cpu_role.cpuid_stale == 0
    assert [decision.context for decision in entry.decisions] == ["guest_mmu", "nested_mmu"]


@pytest.mark.parametrize("name", witnesses())
def test_the_reference_skips_nothing(name: str) -> None:
    run = run_witness(witnesses()[name], REFERENCE)
    decisions = [decision for step in run.steps for decision in step.decisions]
    assert decisions
    assert not any(decision.unchanged for decision in decisions)


def test_an_instruction_that_never_ends_is_an_outcome() -> None:
    run = run_witness(witnesses()["guest-npt-in-l2"], VALIDITIES["invalid_bit"])
    last = run.steps[-1]
    assert (last.step, last.text, last.outcome) == (3, "rd s 4 40000000", NO_PROGRESS)


def test_an_interrupted_run_leaves_a_root_and_a_vcpu_that_has_not_run() -> None:
    run = run_witness(witnesses()["free-roots-lock"], VALIDITIES["invalid_bit"])
    (lock,) = run.steps[1].locks
    assert (lock.tdp_mmu_roots, lock.shared, run.steps[1].accepted) == (1, True, True)
    uninterrupted = witnesses()["free-roots-lock"]._replace(interrupted=False)
    without = run_witness(uninterrupted, VALIDITIES["invalid_bit"])
    assert without.steps[1].locks == ()


def test_roles_in_words() -> None:
    role = CpuRole(level=4, valid=1, maxphyaddr=40, efer_lma=1)
    assert extended(role) == "valid maxphyaddr=40 efer_lma"
    assert base_word(role, DESIGN) == DESIGN.layout.pack(level=4, access=7)
    run = run_witness(witnesses()["nested-nonpaging"], VALIDITIES["valid"])
    change = next(step for step in run.steps if step.accepted)
    before, after = (roles["guest_mmu"].words(DESIGN) for roles in (change.before, change.after))
    assert (before[0], after[0]) == ("0x21704", "0x0")
    assert (before[1], before[2], after[2]) == (after[1], "valid efer_lma", "efer_lma")
