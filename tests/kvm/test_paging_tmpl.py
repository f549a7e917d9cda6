"""Faults where guest tables are shadowed: what is built, in which order, and prefetch."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.guest_walk import walk_addr_generic
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu_internal import PageFault, RetPf
from mmulab.kvm.paging_tmpl import fetch, page_fault
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import OutcomeKind
from mmulab.memory.memslots import KVM_MEM_READONLY
from mmulab.x86.pferr import PF_VECTOR, PFERR_PRESENT_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import X86_CR0_WP, X86_CR4_SMEP
from tests.kvm.guest import DATA, GVA, MIB, NX, PAGE, A, D, Guest, P, U, W, cr4


def fault_of(gva: int, code: int = 0) -> PageFault:
    return PageFault(
        gva,
        code,
        exec=False,
        write=bool(code & PFERR_WRITE_MASK),
        present=bool(code & PFERR_PRESENT_MASK),
        rsvd=False,
        user=bool(code & PFERR_USER_MASK),
    )


@pytest.mark.parametrize(("mode", "below_root"), [("32", 1), ("pae", 1), ("64", 3), ("57", 4)])
def test_a_fault_builds_the_levels_from_the_top(mode: str, below_root: int) -> None:
    pages = list(range(below_root, 0, -1))
    guest = Guest(mode).map(GVA, DATA)
    guest.enter()
    with guest.watch() as seen:
        guest.read(GVA)
    created = [e for e in seen if isinstance(e, ev.kvm_mmu_get_page)]
    assert [e.role & 15 for e in created] == pages
    assert [e.gfn for e in created] == [guest.table(GVA, level) >> 12 for level in pages]
    kinds = [type(e) for e in seen]
    # spte_req comes after the shadow pages of guest tables, before the leaf.
    assert kinds.index(ev.kvm_mmu_spte_requested) > max(
        i for i, kind in enumerate(kinds) if kind is ev.kvm_mmu_get_page
    )
    assert kinds.index(ev.kvm_mmu_set_spte) == kinds.index(ev.kvm_mmu_spte_requested) + 1


def test_the_leaf_has_the_rights_of_the_path() -> None:
    guest = Guest("64").map(GVA, DATA)
    at = guest.entry(GVA, 3)
    guest.poke(at, guest.load(at) & ~W | NX)
    guest.read(GVA)
    assert guest.spte(GVA) & (W | U | NX) == U | NX
    assert guest.page(GVA).access == 4
    assert guest.page(GVA, 3).access == 7
    # The links have all rights; only the leaf tells.
    assert all(guest.spte(GVA, level) & (W | U | NX) == W | U for level in (4, 3, 2))


@pytest.mark.parametrize("mode", ["32", "64"])
def test_the_guests_own_fault_goes_to_the_guest(mode: str) -> None:
    guest = Guest(mode).map(GVA, DATA, PAGE & ~U)
    outcome = guest.read(GVA, "u")
    assert (outcome.kind, outcome.vector, outcome.error_code) == (OutcomeKind.EXC, PF_VECTOR, 5)
    assert outcome.cr2 == GVA
    assert guest.vcpu.stat["pf_guest"] == 1
    assert guest.spte(GVA) == 0


def test_the_first_write_to_a_clean_page_comes_back() -> None:
    """D of the guest's entry must be set: until then the spte has no W."""
    guest = Guest("64").map(GVA, DATA, PAGE & ~D)
    guest.read(GVA)
    assert not guest.spte(GVA) & W
    guest.write(GVA)
    assert guest.spte(GVA) & W
    assert guest.load(guest.entry(GVA)) & D


# Large pages ---------------------------------------------------------------------------------


def test_a_large_page_on_small_host_pages_has_a_direct_table() -> None:
    guest = Guest("64").map(GVA, 4 * MIB, level=2)
    guest.read(GVA + 0x5000)
    page = guest.page(GVA)
    assert (page.direct, page.gfn, page.access) == (True, 4 * MIB >> 12, 7)
    assert guest.maps(GVA + 0x5000, 4 * MIB + 0x5000)
    kinds = [type(e) for e in guest.events]
    last_page = max(i for i, kind in enumerate(kinds) if kind is ev.kvm_mmu_get_page)
    assert kinds.index(ev.kvm_mmu_spte_requested) < last_page


def test_a_large_page_on_a_huge_host_page_is_one_entry() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2)
    guest.read(GVA + 0x5000)
    assert guest.path(GVA).keys() == {4, 3, 2}
    assert guest.maps(GVA, 4 * MIB, 2)
    assert guest.kvm.stat["pages_2m"] == 1


def test_a_4_mib_page_is_two_huge_entries() -> None:
    guest = Guest("32", thp=True).map(GVA, 4 * MIB, level=2)
    guest.read(GVA)
    guest.read(GVA + 2 * MIB)
    assert guest.maps(GVA, 4 * MIB, 2)
    assert guest.maps(GVA + 2 * MIB, 6 * MIB, 2)


def test_a_small_guest_page_stays_small_on_a_huge_host_page() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB)
    guest.read(GVA)
    assert guest.path(GVA).keys() == {4, 3, 2, 1}


def test_a_large_page_that_holds_its_own_table_is_mapped_small() -> None:
    """``is_self_change_mapping``: else the guest could write the table through it."""
    guest = Guest("64", thp=True).map(GVA, 0, level=2)
    assert guest.table(GVA, 2) < 2 * MIB
    guest.read(GVA)
    assert guest.path(GVA).keys() == {4, 3, 2, 1}
    assert guest.page(GVA).direct


# CR0.WP=0 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("smep", [False, True])
def test_a_supervisor_write_without_wp_makes_a_supervisor_page(smep: bool) -> None:
    """W=1, U=0, and no execution where SMEP would stop it; a user access turns it back."""
    guest = Guest("64", off=X86_CR0_WP, on=cr4(X86_CR4_SMEP) if smep else 0)
    guest.map(GVA, DATA, P | U | A | D)
    guest.read(GVA)
    assert guest.spte(GVA) & (W | U | NX) == U
    guest.write(GVA)
    assert guest.spte(GVA) & (W | U | NX) == W | (NX if smep else 0)
    with guest.watch() as seen:
        guest.read(GVA, "u")
    assert guest.spte(GVA) & (W | U | NX) == U
    assert ev.kvm_flush_remote_tlbs() in seen
    assert guest.write(GVA, mode="u").error_code == 7


# Write-protected pages ------------------------------------------------------------------------


def test_a_write_to_a_read_only_slot_goes_to_the_vmm() -> None:
    rom = 0x2000000
    guest = Guest("64").map(GVA, rom)
    guest.machine.execute(ops.SetMemslot(1, rom, 0x1000, KVM_MEM_READONLY, DATA))
    guest.read(GVA)
    assert not guest.spte(GVA) & W
    outcome = guest.write(GVA, 9)
    assert outcome.mmio is not None
    assert (outcome.mmio[0].gpa, outcome.mmio[0].value) == (rom, 9)
    assert guest.load(DATA) == 0


def test_a_write_to_a_tracked_page_is_emulated_at_once() -> None:
    """Its entry is present, so ``page_fault_handle_page_track`` sends it to the emulator."""
    guest = Guest("64").map(GVA, DATA)
    window = GVA + 0x1000
    guest.map(window, guest.table(GVA, 2))
    guest.read(window)
    with guest.watch() as seen:
        guest.write(window + 0xFF8, 5)
    assert not any(isinstance(e, ev.kvm_mmu_spte_requested | ev.kvm_mmu_set_spte) for e in seen)
    assert guest.load(guest.table(GVA, 2) + 0xFF8, 4) == 5
    assert guest.vcpu.stat["pf_emulate"] == 1


# Changes on the way ------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_an_entry_that_changed_since_the_walk_means_another_try(level: int) -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.enter()
    w = walk_addr_generic(guest.vcpu, guest.vcpu.mmu, GVA, 0).walk
    fault = fault_of(GVA)
    fault.gfn, fault.slot, fault.pfn = DATA >> 12, guest.slot, guest.slot.frame(DATA >> 12)
    at = guest.entry(GVA, level)
    guest.poke(at, guest.load(at) ^ W)
    assert fetch(guest.vcpu, fault, w) is RetPf.RETRY
    assert violations(guest.kvm) == []
    guest.poke(at, guest.load(at) ^ W)
    assert fetch(guest.vcpu, fault, w) is RetPf.FIXED
    assert guest.maps(GVA, DATA)


def test_a_root_that_went_out_of_use_means_another_try() -> None:
    guest = Guest("64").map(GVA, DATA)
    guest.enter()
    guest.page(GVA, 4).invalid = True
    assert page_fault(guest.vcpu, fault_of(GVA)) is RetPf.RETRY
    assert guest.spte(GVA, 4) == 0


def test_the_same_fault_again_is_spurious() -> None:
    guest = Guest("64").map(GVA, DATA, P | U | A | D)
    guest.read(GVA)
    with guest.watch() as seen:
        assert page_fault(guest.vcpu, fault_of(GVA)) is RetPf.SPURIOUS
    assert not any(isinstance(e, ev.kvm_mmu_set_spte | ev.kvm_mmu_get_page) for e in seen)


def test_unsync_tables_below_a_new_link_are_synced_first() -> None:
    """Nothing not present needs a flush to become present, so it must be right (checklist U9)."""
    guest = Guest("64").map(GVA, DATA)
    window = GVA + (1 << 30)
    guest.map(window, guest.table(GVA))
    guest.read(GVA)
    guest.write(window, DATA + 0x2000 | PAGE, size=8)
    fresh = GVA + (1 << 39)
    guest.poke(guest.entry(fresh, 4), guest.load(guest.entry(GVA, 4)))
    with guest.watch() as seen:
        guest.read(fresh)
    assert any(isinstance(e, ev.kvm_mmu_sync_page) for e in seen)
    assert guest.read(fresh).hpa == guest.hpa(DATA + 0x2000)
    assert violations(guest.kvm) == []


# Prefetch ------------------------------------------------------------------------------------


def prefetched(guest: Guest) -> list[int]:
    """Return the offsets in pages, from :data:`GVA`, of the entries beside the first that are mapped."""
    return [i for i in range(1, 9) if guest.spte(GVA + i * 0x1000)]


@pytest.mark.parametrize("mode", ["32", "pae", "64", "57"])
def test_neighbours_are_mapped_in_the_aligned_group_of_eight(mode: str) -> None:
    guest = Guest(mode)
    for i in range(9):
        guest.map(GVA + i * 0x1000, DATA + i * 0x1000)
    with guest.watch() as seen:
        guest.read(GVA + 0x3000)
    gfns = [e.gfn - (DATA >> 12) for e in seen if isinstance(e, ev.kvm_mmu_set_spte)]
    assert gfns == [3, 0, 1, 2, 4, 5, 6, 7]
    assert guest.spte(GVA + 0x3000) & A
    assert not guest.spte(GVA + 0x4000) & A
    assert not guest.spte(GVA + 0x8000)


def test_prefetch_stops_at_the_first_entry_it_cannot_use() -> None:
    guest = Guest("64")
    for i in (0, 1, 2, 4, 5):
        guest.map(GVA + i * 0x1000, DATA + i * 0x1000)
    guest.read(GVA)
    assert prefetched(guest) == [1, 2]
    guest.read(GVA + 0x5000)
    assert prefetched(guest) == [1, 2, 5]


def test_entries_in_use_are_left_alone() -> None:
    guest = Guest("64")
    for i in range(8):
        guest.map(GVA + i * 0x1000, DATA + i * 0x1000)
    guest.read(GVA + 0x2000)
    guest.store(guest.entry(GVA), guest.load(guest.entry(GVA)))
    before = {i: guest.spte(GVA + i * 0x1000) for i in range(1, 8)}
    with guest.watch() as seen:
        guest.read(GVA)
    assert {i: guest.spte(GVA + i * 0x1000) for i in range(1, 8)} == before
    assert sum(isinstance(e, ev.kvm_mmu_set_spte) for e in seen) == 1


def test_nothing_is_prefetched_beside_a_huge_page() -> None:
    guest = Guest("64", thp=True).map(GVA, 4 * MIB, level=2).map(GVA + 2 * MIB, 6 * MIB, level=2)
    guest.read(GVA)
    assert guest.spte(GVA + 2 * MIB, 2) == 0


def test_a_direct_table_prefetches_like_a_direct_map() -> None:
    guest = Guest("64").map(GVA, 4 * MIB, level=2)
    guest.read(GVA + 0x3000)
    assert prefetched(guest) == [1, 2, 3, 4, 5, 6, 7]


def test_an_exec_fault_on_an_nx_huge_page_counts_the_split() -> None:
    guest = Guest("64", thp=True, host=HostConfig(nx_huge_pages=True)).map(GVA, 4 * MIB, level=2)
    guest.fetch(GVA)
    assert guest.page(GVA).lpage_disallowed
    assert guest.kvm.stat["nx_lpage_splits"] == 1
    # Data may still use a huge page elsewhere, without execution.
    guest.map(GVA + 2 * MIB, 6 * MIB, level=2)
    guest.read(GVA + 2 * MIB)
    assert guest.spte(GVA + 2 * MIB, 2) & NX
