"""Mapping a page in the TDP MMU: the tables it makes, the leaf it sets, what it reports."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.invariants import violations
from mmulab.kvm.mmu_internal import RetPf
from mmulab.kvm.spte import REMOVED_SPTE, is_mmio_spte, is_shadow_present_pte
from mmulab.kvm.tdp_map import kvm_tdp_mmu_map
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.x86.pferr import PFERR_PRESENT_MASK, PFERR_WRITE_MASK
from tests.kvm.guest import DATA, HOLE, MIB, D, Guest, W
from tests.kvm.test_direct import fault_of
from tests.kvm.test_tdp_iter import NPT, tdp_guest

EPT = HostConfig(vendor="intel", tdp=True, tdp_mmu=True)
LOG = ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0)


@pytest.mark.parametrize("host", [NPT, EPT], ids=["npt", "ept"])
def test_tables_are_made_from_the_top_down_and_then_the_leaf(host: HostConfig) -> None:
    guest = tdp_guest(host=host)
    guest.enter()
    with guest.watch() as seen:
        assert guest.write(DATA + 8, 7).hpa == guest.hpa(DATA + 8)
    changed = [e for e in seen if isinstance(e, ev.kvm_tdp_mmu_spte_changed)]
    assert [(e.level, e.gfn) for e in changed] == [(4, 0), (3, 0), (2, 0), (1, DATA >> 12)]
    assert all(e.old_spte == 0 for e in changed)
    made = [e for e in seen if isinstance(e, ev.kvm_mmu_get_page)]
    design = guest.kvm.config.kernel.design
    assert [(design.facts(e.role).level, e.gfn, e.created) for e in made] == [
        (3, 0, True),
        (2, 0, True),
        (1, 0, True),
    ]
    assert guest.maps(DATA, DATA)
    assert violations(guest.kvm) == []


def test_pages_are_outside_the_hash_and_have_no_rmap() -> None:
    guest = tdp_guest(DATA >> 12)
    assert guest.page(DATA).tdp_mmu_page
    assert guest.pages(0) == []
    assert guest.rmap(DATA >> 12) == []
    assert guest.kvm.n_used_mmu_pages == 0


def test_a_second_page_uses_the_tables_that_are_there() -> None:
    guest = tdp_guest(0x10)
    with guest.watch() as seen:
        guest.read(0x11 << 12)
    (changed,) = [e for e in seen if isinstance(e, ev.kvm_tdp_mmu_spte_changed)]
    assert (changed.level, changed.gfn) == (1, 0x11)
    assert not [e for e in seen if isinstance(e, ev.kvm_mmu_get_page)]


def test_a_huge_page_is_one_entry() -> None:
    guest = tdp_guest(0x405, thp=True)
    assert guest.path(4 * MIB).keys() == {4, 3, 2}
    assert guest.maps(4 * MIB, 4 * MIB, 2)
    assert (guest.kvm.stat["pages_2m"], guest.kvm.stat["pages_4k"]) == (1, 0)


def tracked_guest() -> Guest:
    """A guest with a page that KVM tracks writes to, as it does where L1's nested tables lie."""
    guest = tdp_guest()
    guest.slot.gfn_track[DATA >> 12] = 1
    guest.read(DATA)
    return guest


def map_again(guest: Guest, code: int) -> RetPf:
    fault = fault_of(guest, DATA, code)
    fault.pfn, fault.map_writable = guest.hpa(DATA) >> 12, True
    return kvm_tdp_mmu_map(guest.vcpu, fault)


def test_a_fault_that_finds_its_entry_is_spurious() -> None:
    """Another vCPU was faster."""
    guest = tracked_guest()
    with guest.watch() as seen:
        assert map_again(guest, 0) is RetPf.SPURIOUS
    assert not [e for e in seen if isinstance(e, ev.kvm_tdp_mmu_spte_changed)]


def test_a_write_to_a_protected_page_is_emulated() -> None:
    guest = tracked_guest()
    assert map_again(guest, PFERR_WRITE_MASK | PFERR_PRESENT_MASK) is RetPf.WRITE_PROTECTED
    assert guest.maps(DATA, DATA)
    assert not guest.spte(DATA) & W


def test_a_second_map_of_a_writable_page_loses_d() -> None:
    """``make_spte`` leaves early for an entry that is writable already, before it sets D."""
    guest = tdp_guest(DATA >> 12)
    before = guest.spte(DATA)
    assert before & W
    assert before & D
    assert map_again(guest, PFERR_WRITE_MASK) is RetPf.FIXED
    assert guest.spte(DATA) == before & ~D


def test_a_smaller_page_takes_a_huge_ones_place() -> None:
    """The huge entry is frozen while its translations are flushed, and only then replaced."""
    guest = tdp_guest(0x405, thp=True, host=HostConfig(tdp=True, tdp_mmu=True, eager_page_split=False))
    guest.machine.execute(LOG)
    with guest.watch() as seen:
        guest.write(0x405 << 12)
    kinds = ev.kvm_tdp_mmu_spte_changed, ev.kvm_flush_remote_tlbs
    order = [e for e in seen if isinstance(e, kinds)]
    huge = next(number for number, e in enumerate(order) if isinstance(e, kinds[0]) and e.level == 2)
    frozen, linked = order[huge], order[huge + 2]
    assert isinstance(frozen, ev.kvm_tdp_mmu_spte_changed)
    assert isinstance(linked, ev.kvm_tdp_mmu_spte_changed)
    assert frozen.new_spte == REMOVED_SPTE
    assert isinstance(order[huge + 1], ev.kvm_flush_remote_tlbs)
    assert (linked.level, linked.old_spte) == (2, 0)
    assert guest.maps(0x405 << 12, 0x405 << 12)
    assert guest.spte(0x406 << 12) == 0
    assert violations(guest.kvm) == []


def test_an_address_without_memory_gets_a_marker_and_is_emulated() -> None:
    guest = tdp_guest()
    with guest.watch() as seen:
        guest.read(HOLE)
    assert is_mmio_spte(guest.kvm.fmt, guest.spte(HOLE))
    assert not is_shadow_present_pte(guest.spte(HOLE))
    (mark,) = [e for e in seen if isinstance(e, ev.mark_mmio_spte)]
    assert (mark.gfn, mark.sptep) == (HOLE >> 12, guest.sptep(HOLE))
    assert guest.machine.stats["pf_mmio_spte_created"] == 1
    assert guest.kvm.stat["pages_4k"] == 0
