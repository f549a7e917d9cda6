"""Giving exceptions to the guest."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.inject import (
    DF_VECTOR,
    GP_VECTOR,
    UD_VECTOR,
    kvm_inject_emulated_page_fault,
    kvm_queue_exception,
    makes_double_fault,
)
from mmulab.kvm.mmu import X86Exception
from mmulab.kvm.state import Request
from mmulab.x86.pferr import PF_VECTOR, PFERR_PRESENT_MASK, PFERR_RSVD_MASK, PFERR_WRITE_MASK
from tests.kvm.guest import DATA, GVA, PAGE, Guest, W

CONTRIBUTORY = {0, 10, 11, 12, 13}


def test_which_pairs_make_a_double_fault() -> None:
    """SDM 3, table 6-5."""
    for first in range(32):
        for second in range(32):
            pair = (first in CONTRIBUTORY and second in CONTRIBUTORY) or (
                first == PF_VECTOR and second in CONTRIBUTORY | {PF_VECTOR}
            )
            assert makes_double_fault(first, second) == pair, (first, second)


def test_an_exception_waits_for_the_entry(guest: Guest) -> None:
    kvm_queue_exception(guest.vcpu, GP_VECTOR, 0)
    assert guest.vcpu.exception == (GP_VECTOR, 0, None)
    kvm_queue_exception(guest.vcpu, UD_VECTOR)
    assert guest.vcpu.exception == (UD_VECTOR, None, None)


def test_a_fault_while_one_is_delivered(guest: Guest) -> None:
    kvm_queue_exception(guest.vcpu, PF_VECTOR, 2, GVA)
    kvm_queue_exception(guest.vcpu, PF_VECTOR, 0, GVA)
    assert guest.vcpu.exception == (DF_VECTOR, 0, None)
    kvm_queue_exception(guest.vcpu, UD_VECTOR)
    assert guest.vcpu.exception is None
    assert guest.vcpu.requests & Request.TRIPLE_FAULT


WINDOW = GVA + 0x100000


def stale_guest() -> Guest:
    """A guest whose spte at GVA allows more than its entry, in a table out of sync."""
    guest = Guest("64").map(GVA, DATA)
    guest.map(WINDOW, guest.table(GVA))
    guest.write(GVA)
    guest.write(WINDOW + (guest.entry(GVA) & 0xFFF), DATA + 0x1000 | PAGE & ~W, size=8)
    return guest


@pytest.mark.parametrize(
    ("code", "refreshed"),
    [
        (PFERR_PRESENT_MASK | PFERR_WRITE_MASK, True),
        (PFERR_WRITE_MASK, False),
        (PFERR_PRESENT_MASK | PFERR_RSVD_MASK, False),
    ],
)
def test_a_stale_translation_is_dropped_before_the_guest_is_told(code: int, refreshed: bool) -> None:
    """``kvm_inject_emulated_page_fault``: P=1 and no reserved bit; else the processor keeps nothing."""
    guest = stale_guest()
    with guest.watch() as seen:
        kvm_inject_emulated_page_fault(guest.vcpu, X86Exception(code, GVA))
    assert any(isinstance(e, ev.drop_spte) for e in seen) is refreshed
    assert guest.maps(GVA, DATA + 0x1000 if refreshed else DATA)
    assert guest.vcpu.exception == (PF_VECTOR, code, GVA)
    assert guest.vcpu.stat["pf_guest"] == 1


def test_only_the_current_root_is_refreshed() -> None:
    guest = stale_guest()
    other = guest.new_table()
    guest.map(GVA, DATA, root=other)
    guest.cr3(other)
    with guest.watch() as seen:
        kvm_inject_emulated_page_fault(guest.vcpu, X86Exception(PFERR_PRESENT_MASK, GVA))
    assert seen == []
