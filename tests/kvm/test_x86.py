"""Control registers, and what is done before the guest is entered."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.behaviours import Behaviours
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.kvm.state import Request
from mmulab.kvm.x86 import (
    EINVAL,
    GeneralProtectionError,
    kvm_invalidate_pcid,
    kvm_set_cr0,
    kvm_set_cr3,
    kvm_set_cr4,
    load_pdptrs,
    serve_requests,
    set_efer,
    set_sregs,
    vcpu_enter_guest,
)
from mmulab.machine.config import HostConfig
from mmulab.machine.op import OutcomeKind
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    EFER_SCE,
    X86_CR0_CD,
    X86_CR0_NW,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_TS,
    X86_CR0_WP,
    X86_CR3_PCID_NOFLUSH,
    X86_CR4_LA57,
    X86_CR4_PAE,
    X86_CR4_PCIDE,
    X86_CR4_PGE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
)
from tests.kvm.guest import DATA, GVA, HOLE, Guest, P

RESET = ev.kvm_mmu_reset_context()


def resets(events: list[ev.Event]) -> int:
    return events.count(RESET)


# CR0 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flip", "resets_context"), [(X86_CR0_WP, 1), (X86_CR0_TS, 0), (X86_CR0_CD, 0), (0, 0)]
)
def test_cr0_resets_the_context_when_a_role_bit_changes(guest: Guest, flip: int, resets_context: int) -> None:
    with guest.watch() as seen:
        kvm_set_cr0(guest.vcpu, guest.vcpu.cr0 ^ flip, cs_l=True)
    assert resets(seen) == resets_context


@pytest.mark.parametrize(
    ("value", "cs_l"),
    [
        (X86_CR0_PG, True),
        (X86_CR0_PE | X86_CR0_NW, True),
        (1 << 32 | X86_CR0_PE, True),
        (X86_CR0_PE, True),
    ],
)
def test_what_cr0_may_not_be(guest: Guest, value: int, cs_l: bool) -> None:
    before = guest.vcpu.cr0
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr0(guest.vcpu, value, cs_l=cs_l)
    assert guest.vcpu.cr0 == before


def test_paging_goes_off_in_compatibility_mode_and_lma_with_it(guest: Guest) -> None:
    kvm_set_cr0(guest.vcpu, guest.vcpu.cr0 & ~X86_CR0_PG, cs_l=False)
    assert not guest.vcpu.efer & EFER_LMA
    assert guest.vcpu.mmu.kind == "nonpaging"
    assert guest.vcpu.requests & Request.TLB_FLUSH_GUEST
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr0(guest.vcpu, guest.vcpu.cr0 | X86_CR0_PG, cs_l=True)
    kvm_set_cr0(guest.vcpu, guest.vcpu.cr0 | X86_CR0_PG, cs_l=False)
    assert guest.vcpu.efer & EFER_LMA
    assert guest.vcpu.mmu.root_level == 4


def test_pae_paging_needs_good_pdptes() -> None:
    guest = Guest("pae", off=X86_CR0_PG)
    assert guest.vcpu.mmu.kind == "nonpaging"
    guest.poke(guest.root, DATA | P | 2)
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr0(guest.vcpu, guest.vcpu.cr0 | X86_CR0_PG, cs_l=False)
    guest.poke(guest.root, DATA | P)
    kvm_set_cr0(guest.vcpu, guest.vcpu.cr0 | X86_CR0_PG, cs_l=False)
    assert guest.vcpu.mmu.pdptrs == [DATA | P, 0, 0, 0]


def test_with_pcids_paging_stays_on() -> None:
    guest = Guest("64", cpu=CpuModel(pcid=True))
    guest.vcpu.cr4 |= X86_CR4_PCIDE
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr0(guest.vcpu, guest.vcpu.cr0 & ~X86_CR0_PG, cs_l=False)


# CR4 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flip", "reset", "request_"),
    [
        (X86_CR4_PSE, 1, 0),
        (X86_CR4_SMAP, 1, 0),
        (X86_CR4_SMEP, 1, Request.TLB_FLUSH_CURRENT),
        (X86_CR4_PGE, 0, Request.TLB_FLUSH_GUEST),
        (1 << 3, 0, 0),
    ],
)
def test_what_a_bit_of_cr4_brings_about(guest: Guest, flip: int, reset: int, request_: int) -> None:
    """``kvm_post_set_cr4``, Linux 6.1."""
    guest.vcpu.requests = 0
    with guest.watch() as seen:
        kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 ^ flip)
    assert resets(seen) == reset
    assert guest.vcpu.requests == request_


def test_turning_smep_off_flushes_nothing() -> None:
    guest = Guest("64", on=X86_CR4_SMEP << 32)
    guest.vcpu.requests = 0
    kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 & ~X86_CR4_SMEP)
    assert guest.vcpu.requests == 0


@pytest.mark.parametrize("flip", [X86_CR4_PAE, X86_CR4_LA57, 1 << 33, X86_CR4_PCIDE])
def test_what_cr4_may_not_be_in_long_mode(guest: Guest, flip: int) -> None:
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 ^ flip)


def test_a_feature_that_cpuid_lacks_may_not_be_used() -> None:
    guest = Guest("64", cpu=CpuModel(smap=False))
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 | X86_CR4_SMAP)
    kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 | X86_CR4_SMEP)


def test_pcids_are_turned_on_with_pcid_0_and_end_all_roots() -> None:
    guest = Guest("64", cpu=CpuModel(pcid=True)).map(GVA, DATA)
    guest.read(GVA)
    guest.vcpu.cr3 |= 5
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 | X86_CR4_PCIDE)
    guest.vcpu.cr3 &= ~5
    kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 | X86_CR4_PCIDE)
    assert guest.vcpu.mmu.root_hpa == INVALID_PAGE


def test_cr4_loads_pdptes_anew() -> None:
    guest = Guest("pae").map(GVA, DATA)
    guest.poke(guest.root, DATA | P)
    kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 | 1 << 3)
    assert guest.vcpu.mmu.pdptrs[0] != DATA | P
    kvm_set_cr4(guest.vcpu, guest.vcpu.cr4 | X86_CR4_PGE)
    assert guest.vcpu.mmu.pdptrs[0] == DATA | P


# CR3 ---------------------------------------------------------------------------------------


def test_cr3_flushes_even_if_it_stays(guest: Guest) -> None:
    guest.enter()
    with guest.watch() as seen:
        kvm_set_cr3(guest.vcpu, guest.root)
    assert seen == []
    assert guest.vcpu.requests == Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT


def test_another_cr3_is_another_root(guest: Guest) -> None:
    guest.enter()
    other = guest.new_table()
    with guest.watch() as seen:
        kvm_set_cr3(guest.vcpu, other)
    assert seen[0] == ev.kvm_mmu_new_pgd(other)
    assert guest.vcpu.cr3 == other
    assert guest.vcpu.requests & (Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT)


def test_cr3_has_no_bit_beyond_the_guests_addresses(guest: Guest) -> None:
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr3(guest.vcpu, 1 << 40)


def test_bad_pdptes_leave_cr3_as_it_is() -> None:
    guest = Guest("pae").map(GVA, DATA)
    other = guest.new_table()
    guest.poke(other + 8, P | 2)
    with pytest.raises(GeneralProtectionError):
        kvm_set_cr3(guest.vcpu, other)
    assert guest.vcpu.cr3 == guest.root


def test_without_a_flush_nothing_is_asked_for() -> None:
    guest = Guest("64", cpu=CpuModel(pcid=True)).map(GVA, DATA)
    guest.vcpu.cr4 |= X86_CR4_PCIDE
    guest.enter()
    kvm_set_cr3(guest.vcpu, guest.root | X86_CR3_PCID_NOFLUSH)
    assert guest.vcpu.requests == 0
    assert guest.vcpu.cr3 == guest.root
    kvm_set_cr3(guest.vcpu, guest.root)
    assert guest.vcpu.requests == Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT


def test_a_flush_of_a_pcid_ends_its_previous_roots() -> None:
    """``kvm_invalidate_pcid``: the previous root with the same PCID goes, the other one stays."""
    guest = Guest("64", cpu=CpuModel(pcid=True)).map(GVA, DATA)
    first, second, third = guest.root, guest.new_table(), guest.new_table()
    guest.vcpu.cr4 |= X86_CR4_PCIDE
    guest.enter()
    for root in (first | 1, second | 2, third | 1):
        kvm_set_cr3(guest.vcpu, root | X86_CR3_PCID_NOFLUSH)
        guest.enter()
    with guest.watch() as seen:
        kvm_set_cr3(guest.vcpu, third | 1)
    (freed,) = [e.roots_to_free for e in seen if isinstance(e, ev.kvm_mmu_free_roots)]
    pgds = [pgd for pgd, _ in guest.vcpu.mmu.prev_roots]
    assert freed == sum(2 << i for i, pgd in enumerate(pgds) if pgd & 0xFFF == 1)
    assert second | 2 in pgds


def test_free_places_count_for_the_pcid_that_they_tell() -> None:
    """``kvm_invalidate_pcid`` does not look whether a root is valid; one never used is of PCID fff."""
    guest = Guest("64", cpu=CpuModel(pcid=True)).map(GVA, DATA)
    guest.vcpu.cr4 |= X86_CR4_PCIDE
    guest.enter()
    for pcid in (1, 2):
        kvm_set_cr3(guest.vcpu, guest.root | pcid | X86_CR3_PCID_NOFLUSH)
        guest.enter()
    masks = []
    for pcid in (1, 1, 0, 2, 0xFFF):
        with guest.watch() as seen:
            kvm_invalidate_pcid(guest.vcpu, pcid)
        masks += [event.roots_to_free for event in seen if isinstance(event, ev.kvm_mmu_free_roots)]
    assert masks == [1 << 1, 1 << 1, 1 << 2, 0, 1 << 3]


def test_with_two_dimensional_paging_a_flush_is_the_guests() -> None:
    guest = Guest("64", host=HostConfig(tdp=True))
    guest.enter()
    kvm_set_cr3(guest.vcpu, guest.root)
    assert guest.vcpu.requests == Request.TLB_FLUSH_GUEST


# EFER, sregs, PDPTEs -----------------------------------------------------------------------


@pytest.mark.parametrize(("flip", "reset"), [(EFER_NX, 1), (EFER_SCE, 0)])
def test_efer_resets_the_context_by_nx(guest: Guest, flip: int, reset: int) -> None:
    with guest.watch() as seen:
        set_efer(guest.vcpu, guest.vcpu.efer ^ flip)
    assert resets(seen) == reset


def test_the_guest_cannot_write_lma(guest: Guest) -> None:
    set_efer(guest.vcpu, EFER_LME | EFER_NX)
    assert guest.vcpu.efer & EFER_LMA
    flat = Guest("np")
    set_efer(flat.vcpu, EFER_LME | EFER_LMA)
    assert not flat.vcpu.efer & EFER_LMA


@pytest.mark.parametrize("value", [EFER_LMA, 1 << 16])
def test_what_efer_may_not_be(guest: Guest, value: int) -> None:
    with pytest.raises(GeneralProtectionError):
        set_efer(guest.vcpu, value)


def test_nx_needs_its_cpuid_bit() -> None:
    guest = Guest("np", cpu=CpuModel(nx=False))
    with pytest.raises(GeneralProtectionError):
        set_efer(guest.vcpu, EFER_NX)


def test_the_vmm_resets_a_pae_guest_always_and_others_by_change() -> None:
    for mode, count in (("64", 0), ("32", 0), ("pae", 1)):
        guest = Guest(mode).map(GVA, DATA)
        with guest.watch() as seen:
            set_sregs(guest.vcpu, *guest.regs)
        assert resets(seen) == count


def test_whether_the_vmm_may_set_what_the_guest_may_not_is_a_matter_of_the_kernel() -> None:
    """``kvm_is_valid_sregs``: 6.1 does not look whether the guest's CPUID has what EFER turns on."""
    for refuses in (False, True):
        behaviours = Behaviours(sregs_check_efer=refuses)
        guest = Guest("64", cpu=CpuModel(nx=False), off=EFER_NX << 64, behaviours=behaviours)
        cr0, cr3, cr4, efer = guest.regs
        result = set_sregs(guest.vcpu, cr0, cr3, cr4, efer | EFER_NX)
        assert (result, guest.vcpu.efer) == ((-EINVAL, efer) if refuses else (None, efer | EFER_NX))


def test_a_changed_pdpte_ends_the_root() -> None:
    guest = Guest("pae").map(GVA, DATA)
    guest.read(GVA)
    assert load_pdptrs(guest.vcpu, guest.root)
    assert guest.vcpu.mmu.root_hpa != INVALID_PAGE
    guest.poke(guest.root + 8, DATA | P)
    assert load_pdptrs(guest.vcpu, guest.root)
    assert guest.vcpu.mmu.root_hpa == INVALID_PAGE
    assert guest.vcpu.requests & Request.LOAD_MMU_PGD
    assert not load_pdptrs(guest.vcpu, HOLE)


# Entering ---------------------------------------------------------------------------------


def test_an_entry_serves_what_was_put_off(guest: Guest) -> None:
    guest.enter()
    guest.vcpu.requests = Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT | Request.LOAD_MMU_PGD
    flushes = guest.vcpu.stat["tlb_flush"]
    with guest.watch() as seen:
        assert serve_requests(guest.vcpu)
    assert seen == [ev.kvm_mmu_sync_roots()]
    assert guest.vcpu.requests == 0
    assert guest.vcpu.stat["tlb_flush"] == flushes + 1


def test_one_flush_of_all_serves_the_current_one_too(guest: Guest) -> None:
    guest.enter()
    guest.vcpu.requests = Request.TLB_FLUSH | Request.TLB_FLUSH_CURRENT
    flushes = guest.vcpu.stat["tlb_flush"]
    assert serve_requests(guest.vcpu)
    assert guest.vcpu.stat["tlb_flush"] == flushes + 1


def test_a_flush_for_the_guest_syncs_all_roots(guest: Guest) -> None:
    guest.enter()
    guest.vcpu.requests = Request.TLB_FLUSH_GUEST
    with guest.watch() as seen:
        assert serve_requests(guest.vcpu)
    assert seen[:2] == [ev.kvm_mmu_sync_roots(), ev.kvm_mmu_sync_prev_roots()]


def test_a_triple_fault_ends_it(guest: Guest) -> None:
    guest.vcpu.requests |= Request.TRIPLE_FAULT
    assert not vcpu_enter_guest(guest.vcpu, reinject=False)
    assert guest.read(GVA).kind is OutcomeKind.SHUTDOWN


def test_the_root_comes_last_and_the_exception_is_reported_before(guest: Guest) -> None:
    guest.vcpu.exception = (14, 2, GVA)
    guest.vcpu.requests = Request.MMU_FREE_OBSOLETE_ROOTS
    with guest.watch() as seen:
        assert vcpu_enter_guest(guest.vcpu, reinject=False)
    kinds = [type(e).__name__ for e in seen]
    assert kinds.index("kvm_inj_exception") < kinds.index("kvm_mmu_load")
    assert ev.kvm_inj_exception(14, 2, False) in seen
    assert guest.vcpu.mmu.root_hpa != INVALID_PAGE


def test_what_an_entry_asks_for_is_served_before_the_guest_runs() -> None:
    """Making a root flushes writable sptes of its table; then the exception counts as reinjected."""
    guest = Guest("64").map(GVA, DATA)
    other = guest.new_table()
    guest.map(GVA + 0x1000, other)
    guest.write(GVA + 0x1000)
    guest.vcpu.exception = (14, 2, GVA)
    kvm_set_cr3(guest.vcpu, other)
    with guest.watch() as seen:
        assert vcpu_enter_guest(guest.vcpu, reinject=False)
    assert [e.reinjected for e in seen if isinstance(e, ev.kvm_inj_exception)] == [False, True]
    assert guest.vcpu.requests == 0
