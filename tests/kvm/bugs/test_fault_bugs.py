"""B31 to B34: with the bug an access, a log or a root goes wrong; without it the same sequence is right."""

from __future__ import annotations

from mmulab.kvm.bugs_fault import FAULT_BUGS
from mmulab.kvm.invariants import Invariant, status, violations
from mmulab.kvm.kernels import LINUX_6_12
from mmulab.machine.op import OutcomeKind
from tests.kvm.bugs.witness import HERE, Witness


def test_b32_judges_by_the_cr0_wp_of_before() -> None:
    assert "mmio=w2@f000ffe=" in Witness("B32", "6.1").outcome()
    assert Witness("B32", "6.1+B32").outcome() == "exc vec=e err=3 rip=1810 cr2=8000001000"


def test_b33_loses_what_l2_writes_again() -> None:
    right, wrong = Witness("B33", "6.1"), Witness("B33", "6.1+B33")
    assert right.steps[3].outcome.dirty == wrong.steps[3].outcome.dirty
    assert right.steps[-1].outcome.dirty == [0x100]
    assert wrong.steps[-1].outcome.dirty == []
    assert violations(right.machine.kvm) == []
    assert status(wrong.machine.kvm) == Invariant.DIRTY_LOG


def test_b34a_has_no_root_to_load() -> None:
    assert Witness("B34a", "6.1").outcome() == "ok 1000"
    assert Witness("B34a", "6.1+B34a").outcome() == "hang errno=5 EIO"


def test_b34b_ends_a_guest_of_less_than_a_gib() -> None:
    assert Witness("B34b", "6.1").outcome() == "ok 1000"
    assert Witness("B34b", "6.1+B34b").steps[-1].outcome.kind is OutcomeKind.SHUTDOWN


def test_b34c_keeps_small_pages() -> None:
    right, wrong = Witness("B34c", "6.1"), Witness("B34c", "6.1+B34c")
    for witness, huge, small in ((right, 2, 0), (wrong, 0, 1024)):
        stat = witness.machine.kvm.stat
        assert (stat["pages_2m"], stat["pages_4k"]) == (huge, small)
        assert violations(witness.machine.kvm) == []


def test_the_switches_are_not_of_one_kernel() -> None:
    assert Witness("B33", "6.12").steps[-1].outcome.dirty == [0x100]
    assert Witness("B33", LINUX_6_12.toggled(B33=True)).steps[-1].outcome.dirty == []


def test_each_switch_has_a_witness() -> None:
    assert all((HERE / f"{bug.id}.mmu").exists() for bug in FAULT_BUGS if bug.has_switch)
