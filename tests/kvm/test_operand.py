"""Memory operands of instructions that KVM executes without its emulator."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.emulate import Verdict
from mmulab.kvm.operand import NoOperandError, read_operand
from tests.kvm.guest import DATA, GVA, HOLE, Guest


def test_one_walk_reads_all_its_words(guest: Guest) -> None:
    for number in range(3):
        guest.poke(DATA + 0x18 + 8 * number, number + 7, 8)
    with guest.watch() as seen:
        assert read_operand(guest.vcpu, GVA + 0x18, 3) == [7, 8, 9]
    assert [e.addr for e in seen if isinstance(e, ev.kvm_mmu_pagetable_walk)] == [GVA + 0x18]


def test_a_fault_is_the_guests(guest: Guest) -> None:
    with pytest.raises(NoOperandError) as none:
        read_operand(guest.vcpu, GVA + 0x10000, 1)
    assert none.value.verdict is Verdict.RESUME
    assert guest.vcpu.exception == (14, 0, GVA + 0x10000)


def test_a_device_has_no_operand(guest: Guest) -> None:
    guest.map(GVA + 0x1000, HOLE)
    with pytest.raises(NoOperandError) as none:
        read_operand(guest.vcpu, GVA + 0x1000, 1)
    assert none.value.verdict is Verdict.FAILED
    assert guest.vcpu.exception is None
