"""Leaf entries: which bits they get, of which size, and what they take the place of."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu_internal import KVM_PFN_NOSLOT, RetPf
from mmulab.kvm.set_spte import make_spte, mmu_set_spte
from mmulab.kvm.spte import is_mmio_spte
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.x86.pferr import ACC_ALL, ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK
from tests.kvm.guest import DATA, GVA, MIB, NX, PS, A, D, Guest, P, U, W, fault_at

HOST_WRITABLE, MMU_WRITABLE, PRESENT = 1 << 9, 1 << 10, 1 << 11
BASE = PRESENT | P


@pytest.mark.parametrize(
    ("access", "prefetch", "host_writable", "wanted"),
    [
        (ACC_ALL, False, True, BASE | A | U | W | D | HOST_WRITABLE | MMU_WRITABLE),
        (ACC_ALL, True, True, BASE | U | W | D | HOST_WRITABLE | MMU_WRITABLE),
        (ACC_ALL, False, False, BASE | A | U),
        (ACC_USER_MASK | ACC_EXEC_MASK, False, True, BASE | A | U | HOST_WRITABLE),
        (ACC_WRITE_MASK, False, True, BASE | A | W | D | HOST_WRITABLE | MMU_WRITABLE | NX),
        (0, False, True, BASE | A | HOST_WRITABLE | NX),
    ],
)
def test_the_bits_say_what_is_allowed(
    guest: Guest, access: int, prefetch: bool, host_writable: bool, wanted: int
) -> None:
    """``make_spte``, Linux 6.1 ``spte.c``; a page nobody shadows may be written at once."""
    guest.read(GVA)
    gfn = (DATA >> 12) + 1
    made = make_spte(
        guest.vcpu,
        guest.page(GVA),
        guest.slot,
        access,
        gfn,
        0x123,
        0,
        prefetch=prefetch,
        can_unsync=True,
        host_writable=host_writable,
    )
    assert made == (wanted | 0x123 << 12, False)


def test_a_table_in_sync_is_not_mapped_writable_by_prefetch(guest: Guest) -> None:
    guest.read(GVA)

    def make(gfn: int, **how: bool) -> tuple[int, bool]:
        args = {"prefetch": False, "can_unsync": True, "host_writable": True} | how
        return make_spte(guest.vcpu, guest.page(GVA), guest.slot, ACC_ALL, gfn, 5, 0, **args)

    leaf, upper = guest.table(GVA) >> 12, guest.table(GVA, 2) >> 12
    for gfn, how in ((leaf, {"prefetch": True}), (leaf, {"can_unsync": False}), (upper, {})):
        spte, wrprot = make(gfn, **how)
        assert wrprot
        assert not spte & (W | MMU_WRITABLE | D)
    assert make(leaf)[0] & (W | MMU_WRITABLE | D) == W | MMU_WRITABLE | D


def test_over_a_writable_entry_d_is_left_as_it_comes(guest: Guest) -> None:
    """The old entry has told already that the page is dirty."""
    guest.write(GVA)
    made, _ = make_spte(
        guest.vcpu,
        guest.page(GVA),
        guest.slot,
        ACC_ALL,
        DATA >> 12,
        5,
        guest.spte(GVA),
        prefetch=False,
        can_unsync=True,
        host_writable=True,
    )
    assert made & (W | D) == W


def test_a_writable_entry_marks_the_page_dirty_in_the_log(guest: Guest) -> None:
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))
    guest.read(GVA)
    assert guest.slot.dirty_bitmap is not None
    assert guest.slot.dirty_bitmap[DATA >> 12] == 1
    assert sum(guest.slot.dirty_bitmap[DATA >> 12 :][:16]) == 1


def test_an_executable_huge_page_is_kept_from_execution() -> None:
    guest = Guest("64", thp=True, host=HostConfig(nx_huge_pages=True)).map(GVA, 4 * MIB, level=2)
    guest.read(GVA)
    assert guest.spte(GVA, 2) & NX
    assert guest.spte(GVA, 2) & PS
    guest.fetch(GVA)
    assert guest.path(GVA).keys() == {4, 3, 2, 1}
    assert not guest.spte(GVA) & NX
    assert guest.kvm.stat["nx_lpage_splits"] == 1
    assert violations(guest.kvm) == []


# Putting them in place ------------------------------------------------------------------


def put(guest: Guest, gva: int, gfn: int, pfn: int | None = None, **more: object) -> RetPf:
    """Set the level-1 entry of `gva` as a fault does."""
    fault = fault_at(guest, gfn, **more)
    frame = fault.pfn if pfn is None else pfn
    return mmu_set_spte(guest.vcpu, guest.slot, guest.sptep(gva), ACC_ALL, gfn, frame, fault)


def test_a_new_entry_is_fixed_and_the_same_again_spurious(guest: Guest) -> None:
    guest.read(GVA)
    gfn = (DATA >> 12) + 3
    gva = GVA + 0x3000
    assert put(guest, gva, gfn) is RetPf.FIXED
    with guest.watch() as seen:
        # An entry over a writable one has no D, so it differs from the first.
        assert put(guest, gva, gfn) is RetPf.FIXED
        assert put(guest, gva, gfn) is RetPf.SPURIOUS
    assert [e.gfn for e in seen if isinstance(e, ev.kvm_mmu_set_spte)] == [gfn]
    assert guest.rmap(gfn) == [guest.sptep(gva)]


def test_another_frame_drops_the_old_entry_and_flushes(guest: Guest) -> None:
    guest.read(GVA)
    with guest.watch() as seen:
        assert put(guest, GVA, (DATA >> 12) + 1) is RetPf.FIXED
    kinds = [type(e).__name__ for e in seen]
    assert kinds == ["drop_spte", "kvm_mmu_set_spte", "kvm_flush_remote_tlbs"]
    assert guest.rmap(DATA >> 12) == []
    assert violations(guest.kvm) == []


def test_no_slot_makes_an_mmio_entry(guest: Guest) -> None:
    guest.read(GVA)
    assert put(guest, GVA + 0x3000, 0x40000, KVM_PFN_NOSLOT) is RetPf.EMULATE
    assert is_mmio_spte(guest.kvm.fmt, guest.spte(GVA + 0x3000))


def test_a_write_to_a_protected_page_must_be_emulated(guest: Guest) -> None:
    guest.read(GVA)
    upper = guest.table(GVA, 2) >> 12
    assert put(guest, GVA + 0x3000, upper, write=True) is RetPf.WRITE_PROTECTED
    assert put(guest, GVA + 0x4000, upper) is RetPf.FIXED
    assert not guest.spte(GVA + 0x3000) & W


def test_a_huge_page_takes_the_place_of_a_table() -> None:
    """While a page of the range was a table, small pages were mapped; then it was unprotected."""
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2)
    table = 4 * MIB + 0x10000
    guest.slot.disallow_lpage[2][table >> 21] = 1
    guest.read(GVA)
    small = guest.page(GVA)
    assert small.direct
    assert small.parent_ptes
    del guest.slot.disallow_lpage[2][table >> 21]
    with guest.watch() as seen:
        guest.read(GVA + 0x9000)
    assert 1 not in guest.path(GVA)
    assert small.parent_ptes == []
    assert ev.kvm_flush_remote_tlbs() in seen
    assert violations(guest.kvm) == []
