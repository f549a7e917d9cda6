"""Each bug of a key that says too little: with it and without, the same sequence ends otherwise."""

from __future__ import annotations

import pytest

from mmulab.kvm.bug import SWITCHES, Bugs
from mmulab.kvm.bugs_role import ROLE_BUGS
from mmulab.kvm.bugs_sync import SYNC_BUGS
from mmulab.kvm.free_roots_lock import MmuLockHeld
from mmulab.kvm.invariants import violations
from mmulab.kvm.shadow_page import shadow_path
from mmulab.kvm.validity import find_validity
from mmulab.kvm.x86 import vcpu_enter_guest
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from tests.kvm.bugs.witness import HERE, Witness
from tests.kvm.guest import Guest

LAST_OP = [
    ("B10", "exc vec=e err=3 rip=1810 cr2=8000000000", "ok 100000"),
    ("B11", "exc vec=e err=11 rip=8000000800 cr2=8000000800", "ok rip=8000000801 rax=0"),
    ("B12", "exc vec=e err=1 rip=1800 cr2=8000000000", "ok 100000"),
    ("B13", "exc vec=e err=7 rip=2810 cr2=8040200000", "ok 101000"),
    ("B14", "exc vec=e err=7 rip=2810 cr2=8000200000", "ok 400000"),
    ("B16", "ok 300000", "ok 100000"),
    ("B17", "ok 100000", "ok 101000"),
    (
        "B19",
        "ok rip=1802 rax=d0d0d0d0 mmio=r4@40000000=d0d0d0d0",
        "exc vec=e err=10 rip=1800 cr2=1800",
    ),
    ("B22", "exc vec=e err=9 rip=1800 cr2=8000100000", "ok 100000"),
]


@pytest.mark.parametrize(("bug", "right", "wrong"), LAST_OP, ids=[row[0] for row in LAST_OP])
def test_the_last_op_of_the_witness_goes_wrong(bug: str, right: str, wrong: str) -> None:
    assert Witness(bug, "6.1").outcome() == right
    assert Witness(bug, f"6.1+{bug}").outcome() == wrong


@pytest.mark.parametrize("bug", [row[0] for row in LAST_OP])
def test_the_kernel_without_the_bug_keeps_its_books(bug: str) -> None:
    assert violations(Witness(bug, "6.1").machine.kvm) == []


def test_b13_is_hidden_by_the_comparison_of_roles() -> None:
    """B2 alone leaves a wrong child in place, but none is made with wrong rights."""
    assert Witness("B13", "6.1+B2").outcome() == Witness("B13", "6.1").outcome()


def test_b15_writes_a_page_whose_entry_stays_clean() -> None:
    right, wrong = Witness("B15", "6.1"), Witness("B15", "6.1+B15")
    assert right.outcome() == wrong.outcome() == "ok 400000"
    assert (right.load(0x21008), wrong.load(0x21008)) == (0x4000E5, 0x4000A5)


def test_b21_gives_the_processor_tables_of_too_few_levels() -> None:
    """It never gets through, and KVM finds nothing to mend."""
    right, wrong = Witness("B21", "6.1"), Witness("B21", "6.1+B21")
    assert right.outcome() == "ok 100000"
    assert wrong.outcome(0) == "hang errno=4 EINTR"
    assert wrong.machine.kvm.vcpus[0].guest_mmu.root_level == 4


def test_each_switch_has_a_witness() -> None:
    ids = {bug.id for bug in (*ROLE_BUGS, *SYNC_BUGS) if bug.has_switch}
    assert ids <= set(SWITCHES)
    assert {path.stem for path in HERE.glob("*.mmu")} >= ids - {"B23"}  # is seen in no outcome


@pytest.mark.parametrize(
    ("bug", "marker", "asserts"),
    [(False, "valid", False), (True, "valid", True), (True, "invalid_bit", False)],
)
def test_b23_frees_a_root_under_the_wrong_lock(bug: bool, marker: str, asserts: bool) -> None:
    """The VMM ends KVM_RUN before the guest was entered, and changes CPUID; nobody sees an outcome."""
    guest = Guest(
        "64", host=HostConfig(tdp=True, tdp_mmu=True), bugs=Bugs(B23=bug), validity=find_validity(marker)
    )
    held: list[MmuLockHeld] = []
    guest.kvm.watch = lambda seen: held.append(seen) if isinstance(seen, MmuLockHeld) else None
    assert vcpu_enter_guest(guest.vcpu, reinject=False)
    assert guest.machine.execute(ops.SetCpuid("gbpages", 0)).result == 0
    assert [lock.asserts for lock in held if lock.tdp_mmu_roots] == [asserts]


@pytest.mark.parametrize(("kernel", "legal"), [("6.1", True), ("6.1+B20", False)])
def test_b20_makes_an_spte_with_a_bit_that_it_takes_for_reserved(kernel: str, legal: bool) -> None:
    """The guest sees nothing of it: bit 63 is legal to the processor, whose EFER.NX is always set."""
    witness = Witness("B20", kernel)
    assert witness.outcome() == "ok 400000"
    vcpu = witness.machine.kvm.vcpus[0]
    level, _, spte = shadow_path(vcpu, 0x8000000000)[-1]
    assert (level, spte >> 63) == (2, 1)
    assert vcpu.mmu.root_facts is not None
    assert vcpu.mmu.root_facts.efer_nx is legal
