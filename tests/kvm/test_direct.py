"""Direct maps: guests without paging, and two-dimensional paging by the shadow MMU's tables."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.direct import fast_page_fault
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu_internal import PageFault, RetPf
from mmulab.kvm.spte import is_access_track_spte, mark_spte_for_access_track
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.x86.pferr import PFERR_PRESENT_MASK, PFERR_RSVD_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import X86_CR0_PG
from tests.kvm.guest import DATA, GVA, HOLE, MIB, Guest, W

MMU_WRITABLE = 1 << 10
LOG = ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0)


def fault_of(guest: Guest, gpa: int, code: int) -> PageFault:
    fault = PageFault(
        gpa,
        code,
        exec=False,
        write=bool(code & PFERR_WRITE_MASK),
        present=bool(code & PFERR_PRESENT_MASK),
        rsvd=bool(code & PFERR_RSVD_MASK),
        user=False,
    )
    fault.gfn, fault.slot = gpa >> 12, guest.slot
    return fault


def test_addresses_map_to_themselves() -> None:
    guest = Guest("np")
    assert guest.write(DATA + 8, 7).hpa == guest.hpa(DATA + 8)
    assert guest.maps(DATA, DATA)
    assert guest.spte(DATA) & W
    assert guest.page(DATA).gfn == 0
    assert guest.of(ev.kvm_mmu_pagetable_walk) == []


def test_the_request_comes_before_the_pages() -> None:
    guest = Guest("np")
    guest.enter()
    with guest.watch() as seen:
        guest.read(DATA)
    kinds = [type(e).__name__ for e in seen if isinstance(e, ev.kvm_mmu_spte_requested | ev.kvm_mmu_get_page)]
    assert kinds == ["kvm_mmu_spte_requested", "kvm_mmu_get_page"]


def test_two_mib_is_the_largest_page_without_paging() -> None:
    guest = Guest("np", thp=True)
    guest.read(4 * MIB + 0x5000)
    assert guest.path(4 * MIB).keys() == {2}
    assert guest.maps(4 * MIB, 4 * MIB, 2)
    assert guest.page(4 * MIB, 2).level == 2


def test_a_hole_is_a_device() -> None:
    guest = Guest("np")
    outcome = guest.write(HOLE, 3)
    assert outcome.mmio is not None
    assert outcome.mmio[0].gpa == HOLE


def test_a_write_after_the_log_was_read_is_mended_without_the_lock() -> None:
    guest = Guest("np")
    guest.machine.execute(LOG)
    guest.write(DATA)
    assert guest.machine.execute(ops.GetDirtyLog(0)).dirty == [DATA >> 12]
    assert guest.spte(DATA) & (W | MMU_WRITABLE) == MMU_WRITABLE
    with guest.watch() as seen:
        guest.write(DATA)
    (fast,) = [e for e in seen if isinstance(e, ev.fast_page_fault)]
    assert (fast.ret, fast.new_spte) == (RetPf.FIXED, fast.old_spte | W)
    assert guest.vcpu.stat["pf_fast"] == 1
    assert not any(isinstance(e, ev.kvm_mmu_set_spte) for e in seen)
    assert guest.machine.execute(ops.GetDirtyLog(0)).dirty == [DATA >> 12]


@pytest.mark.parametrize(
    ("code", "tried"),
    [
        (PFERR_PRESENT_MASK | PFERR_WRITE_MASK, True),
        (PFERR_PRESENT_MASK, False),
        (PFERR_WRITE_MASK, False),
        (PFERR_PRESENT_MASK | PFERR_WRITE_MASK | PFERR_RSVD_MASK, False),
    ],
)
def test_only_a_write_to_a_present_entry_is_tried_fast(code: int, tried: bool) -> None:
    """``page_fault_can_be_fast``, where the format has A bits."""
    guest = Guest("np")
    guest.read(DATA)
    with guest.watch() as seen:
        ret = fast_page_fault(guest.vcpu, fault_of(guest, DATA, code))
    assert bool(seen) is tried
    # The entry has W already: somebody else mended it.
    assert ret is (RetPf.SPURIOUS if tried else RetPf.INVALID)


@pytest.mark.parametrize("case", ["no entry", "no mmu-writable", "huge and logged"])
def test_what_more_than_w_is_missing_is_not_mended(case: str) -> None:
    guest = Guest("np", thp=True)
    gpa, level = (4 * MIB, 2) if case == "huge and logged" else (0x2000, 1)
    if case != "no entry":
        guest.slot.disallow_lpage[2][gpa >> 21] = int(level == 1)
        guest.read(gpa)
        keep = MMU_WRITABLE if case == "huge and logged" else 0
        spte = guest.spte(gpa, level) & ~(W | MMU_WRITABLE) | keep
        guest.machine.memory.store64(guest.sptep(gpa, level), spte)
    if case == "huge and logged":
        guest.slot.flags |= KVM_MEM_LOG_DIRTY_PAGES
    before = guest.path(gpa)
    code = PFERR_PRESENT_MASK | PFERR_WRITE_MASK
    assert fast_page_fault(guest.vcpu, fault_of(guest, gpa, code)) is RetPf.INVALID
    assert guest.path(gpa) == before
    assert guest.of(ev.fast_page_fault)[-1].ret == RetPf.INVALID


def test_an_access_tracked_entry_gets_its_rights_back_fast() -> None:
    """EPT without A bits: an entry waits for its first use with no rights at all."""
    guest = Guest("np", host=HostConfig(vendor="intel", tdp=True, eptad=False))
    guest.read(DATA)
    fmt, used = guest.kvm.fmt, guest.spte(DATA)
    guest.machine.memory.store64(guest.sptep(DATA), mark_spte_for_access_track(fmt, used))
    assert is_access_track_spte(fmt, guest.spte(DATA))
    with guest.watch() as seen:
        guest.read(DATA)
    assert [e.ret for e in seen if isinstance(e, ev.fast_page_fault)] == [RetPf.FIXED]
    assert guest.spte(DATA) == used & ~W


def test_an_nx_huge_page_is_split_for_a_fetch() -> None:
    guest = Guest("np", thp=True, host=HostConfig(nx_huge_pages=True))
    guest.read(4 * MIB)
    assert guest.spte(4 * MIB, 2) >> 63
    guest.fetch(4 * MIB)
    assert guest.path(4 * MIB).keys() == {2, 1}
    # The page is counted only under two-dimensional paging (is_tdp in direct_map).
    assert guest.kvm.stat["nx_lpage_splits"] == 0
    assert violations(guest.kvm) == []


def test_direct_pages_outlive_the_turn_to_paging() -> None:
    """Their role is another one, so nobody finds them until the guest comes back."""
    guest = Guest("32").map(GVA, DATA)
    paged = guest.regs
    guest.regs = (paged[0] & ~X86_CR0_PG, *paged[1:])
    guest.reset()
    guest.read(DATA)
    flat = {sp.frame for sp in guest.kvm.pages.values()}
    guest.regs = paged
    guest.reset()
    guest.read(GVA)
    assert flat <= set(guest.kvm.pages)
    assert not guest.vcpu.mmu.direct
    guest.regs = (paged[0] & ~X86_CR0_PG, *paged[1:])
    guest.reset()
    with guest.watch() as seen:
        guest.read(DATA)
    assert not any(e.created for e in seen if isinstance(e, ev.kvm_mmu_get_page))
