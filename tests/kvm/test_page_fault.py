"""The way of a page fault that the processor reported: counted, handled, emulated."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.emulate import EmulationType, Verdict
from mmulab.kvm.mmu_internal import RetPf
from mmulab.kvm.page_fault import handle_mmio_page_fault, kvm_mmu_do_page_fault, kvm_mmu_page_fault
from mmulab.machine.config import HostConfig
from mmulab.machine.op import OutcomeKind
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_GUEST_PAGE_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from tests.kvm.guest import DATA, GVA, HOLE, A, D, Guest, P, U

LOAD = Instruction(Mnemonic.LOAD, gva=GVA, size=4)
COUNTED = ("pf_taken", "pf_fixed", "pf_emulate", "pf_spurious")


def counts(guest: Guest) -> tuple[int, ...]:
    return tuple(guest.vcpu.stat[name] for name in COUNTED)


def test_each_end_of_a_fault_is_counted() -> None:
    guest = Guest("64").map(GVA, DATA, P | U | A | D).map(GVA + 0x40000, HOLE)
    guest.enter()
    kvm_mmu_page_fault(guest.vcpu, GVA, 0, LOAD)
    assert counts(guest) == (1, 1, 0, 0)
    kvm_mmu_page_fault(guest.vcpu, GVA, 0, LOAD)
    assert counts(guest) == (2, 1, 0, 1)
    kvm_mmu_page_fault(guest.vcpu, GVA + 0x40000, 0, LOAD)
    assert counts(guest) == (3, 1, 1, 1)
    kvm_mmu_page_fault(guest.vcpu, GVA + 0x80000, 0, LOAD)
    assert counts(guest) == (4, 1, 1, 1)
    assert guest.vcpu.exception is not None


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        (0, 0),
        (PFERR_WRITE_MASK | PFERR_USER_MASK, PFERR_WRITE_MASK | PFERR_USER_MASK),
        (PFERR_FETCH_MASK, PFERR_FETCH_MASK),
        (PFERR_WRITE_MASK | PFERR_RSVD_MASK, PFERR_WRITE_MASK),
    ],
)
def test_the_walk_is_for_the_access_that_faulted(guest: Guest, code: int, seen: int) -> None:
    guest.enter()
    with guest.watch() as events:
        kvm_mmu_do_page_fault(guest.vcpu, GVA, code, EmulationType())
    assert events[0] == ev.kvm_mmu_pagetable_walk(GVA, seen)


def test_a_fault_that_was_mended_lets_the_guest_go_on(guest: Guest) -> None:
    guest.enter()
    assert kvm_mmu_page_fault(guest.vcpu, GVA, 0, LOAD) is Verdict.RESUME
    assert guest.maps(GVA, DATA)


def test_a_device_access_is_emulated() -> None:
    guest = Guest("64").map(GVA, HOLE)
    guest.enter()
    assert kvm_mmu_page_fault(guest.vcpu, GVA, 0, LOAD) is Verdict.MMIO
    with guest.watch() as seen:
        assert kvm_mmu_page_fault(guest.vcpu, GVA, PFERR_RSVD_MASK | PFERR_PRESENT_MASK, LOAD) is Verdict.MMIO
    assert not any(isinstance(e, ev.kvm_mmu_pagetable_walk) for e in seen)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [("cached", RetPf.EMULATE), ("fresh", RetPf.EMULATE), ("stale", RetPf.INVALID), ("absent", RetPf.RETRY)],
)
def test_a_fault_on_reserved_bits(state: str, wanted: RetPf) -> None:
    """``handle_mmio_page_fault``; where the entry is none of MMIO, somebody else changed it."""
    guest = Guest("64").map(GVA, HOLE).map(GVA + 0x40000, DATA)
    guest.read(GVA)
    guest.read(GVA + 0x40000)
    if state != "cached":
        guest.vcpu.mmio_gva = 0
    if state == "stale":
        guest.kvm.slots[0].generation += 2
    gva = GVA + 0x40000 if state == "absent" else GVA
    with guest.watch() as seen:
        assert handle_mmio_page_fault(guest.vcpu, gva, False) is wanted
    handled = [e for e in seen if isinstance(e, ev.handle_mmio_page_fault)]
    assert bool(handled) == (state == "fresh")
    assert guest.vcpu.mmio_gva == (GVA if wanted is RetPf.EMULATE else 0)


def test_a_stale_device_entry_goes_the_long_way(guest: Guest) -> None:
    guest.map(GVA + 0x40000, HOLE)
    guest.read(GVA + 0x40000)
    guest.kvm.slots[0].generation += 2
    with guest.watch() as seen:
        assert guest.read(GVA + 0x40000).kind is OutcomeKind.OK
    kinds = [type(e) for e in seen]
    assert kinds.index(ev.check_mmio_spte) < kinds.index(ev.kvm_mmu_pagetable_walk)
    assert ev.mark_mmio_spte in kinds


def test_npt_writing_a_protected_guest_table_unprotects_it() -> None:
    """``PFERR_NESTED_GUEST_PAGE``: the processor sets A there itself, nothing can be emulated."""
    guest = Guest("np", host=HostConfig(tdp=True))
    guest.slot.flags = 2
    guest.enter()
    code = PFERR_GUEST_PAGE_MASK | PFERR_WRITE_MASK | PFERR_PRESENT_MASK
    with guest.watch() as seen:
        assert kvm_mmu_page_fault(guest.vcpu, DATA, code, LOAD) is Verdict.RESUME
    assert seen[-1] == ev.kvm_mmu_unprotect_page(DATA >> 12)
    assert not any(isinstance(e, ev.kvm_emulate_insn | ev.kvm_mmio) for e in seen)
