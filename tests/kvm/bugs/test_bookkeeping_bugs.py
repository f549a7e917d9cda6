"""B1 to B9: with the bug KVM's books go wrong, and the same sequence without it leaves them right."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.bugs_bookkeeping import BOOKKEEPING_BUGS
from mmulab.kvm.invariants import Invariant, status, violations
from mmulab.machine.op import OutcomeKind
from tests.kvm.bugs.witness import HERE, Witness

BROKEN = [
    ("B1", "6.1+B1", Invariant.RMAP | Invariant.FRAME),
    ("B2", "6.1+B2", Invariant.RMAP | Invariant.FRAME),
    ("B4", "6.1+B3+B4", Invariant.PAGE_COUNTS | Invariant.WRITE_TRACKING | Invariant.DISALLOW_LPAGE),
    ("B5", "6.1+B5", Invariant.RMAP | Invariant.STATISTICS),
    ("B7", "6.1+B7", Invariant.UNSYNC),
]


@pytest.mark.parametrize(("bug", "kernel", "broken"), BROKEN, ids=[row[1] for row in BROKEN])
def test_the_books_are_wrong_after_the_witness(bug: str, kernel: str, broken: Invariant) -> None:
    right, wrong = Witness(bug, "6.1"), Witness(bug, kernel)
    assert violations(right.machine.kvm) == []
    assert status(wrong.machine.kvm) == broken
    assert wrong.steps[-1].outcome.kind is OutcomeKind.OK


def test_b1_and_b2_are_one_line_apart() -> None:
    """Neither shows the other's: between huge pages the roles are equal, and B2 keeps the gfn."""
    for bug, other in (("B1", "B2"), ("B2", "B1")):
        witness = Witness(bug, f"6.1+{other}")
        assert violations(witness.machine.kvm) == []


def test_b3_alone_shows_nothing() -> None:
    witness = Witness("B4", "6.1+B3")
    assert violations(witness.machine.kvm) == []


def test_b4_maps_below_a_root_that_its_own_reclaim_put_out_of_use() -> None:
    kinds = (ev.kvm_mmu_prepare_zap_page, ev.kvm_mmu_set_spte, ev.kvm_mmu_free_roots)

    def seen(kernel: str) -> list[type]:
        """What the last op did from the zapping of a root in use on."""
        events = Witness("B4", kernel).steps[-1].events
        in_use = [i for i, event in enumerate(events) if getattr(event, "root_count", 0)]
        return [type(event) for event in events[in_use[0] :] if type(event) in kinds] if in_use else []

    after = seen("6.1+B4")
    assert ev.kvm_mmu_set_spte in after[: after.index(ev.kvm_mmu_free_roots)]
    assert seen("6.1") == []


def test_b5_hides_the_device_access_no_less() -> None:
    """The guest sees nothing of it."""
    assert Witness("B5", "6.1").outcome() == Witness("B5", "6.1+B5").outcome()
    assert "mmio=w4@f000000=" in Witness("B5", "6.1").outcome()


def test_b7_keeps_the_write_from_the_table_of_smm() -> None:
    right, wrong = Witness("B7", "6.1"), Witness("B7", "6.1+B7")
    assert right.outcome() == "ok rip=1812 rax=0"  # emulated
    assert wrong.outcome() == "ok 18000"
    assert ev.kvm_mmu_unsync_page in map(type, wrong.steps[-1].events)


def test_b8_goes_on_asking_the_device() -> None:
    right, wrong = Witness("B8", "6.1"), Witness("B8", "6.1+B8")
    assert right.steps[1].outcome == wrong.steps[1].outcome
    assert right.outcome() == "ok 1000000"
    assert right.steps[-1].outcome.rax == 0xC0FFEE
    assert wrong.steps[-1].outcome == wrong.steps[1].outcome


def test_each_switch_has_a_witness() -> None:
    """B3's is B4's."""
    switches = {bug.id for bug in BOOKKEEPING_BUGS if bug.has_switch}
    assert {bug for bug in switches if not (HERE / f"{bug}.mmu").exists()} == {"B3"}
