"""How large a page a fault gets."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.hugepage import (
    disallowed_hugepage_adjust,
    kvm_mmu_hugepage_adjust,
    kvm_mmu_max_mapping_level,
    trace_spte_requested,
)
from mmulab.kvm.mmu_internal import KVM_PFN_NOSLOT
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from tests.kvm.guest import MIB, PS, Guest, P, fault_at

TABLE = 1 << 11 | P
"""A present entry, and no leaf."""


def test_the_size_is_the_least_that_anyone_allows() -> None:
    guest = Guest("64", thp=True)
    gfn = 4 * MIB >> 12

    def level(most: int) -> int:
        return kvm_mmu_max_mapping_level(guest.kvm, guest.slot, gfn, most)

    assert (level(3), level(2), level(1)) == (2, 2, 1)
    guest.slot.disallow_lpage[2][gfn >> 9] = 1
    assert level(3) == 1
    del guest.slot.disallow_lpage[2][gfn >> 9]
    guest.machine.memory.page_level[guest.slot.frame(gfn) >> 9] = 1
    assert level(3) == 1


@pytest.mark.parametrize("case", ["huge", "guest small", "logged", "split", "no slot"])
def test_a_fault_aims_at_the_largest_page(case: str) -> None:
    guest = Guest("64", thp=True)
    gfn = (4 * MIB >> 12) + 5
    fault = fault_at(guest, gfn, max_level=1 if case == "guest small" else 3)
    if case == "logged":
        guest.slot.flags |= KVM_MEM_LOG_DIRTY_PAGES
    if case == "split":
        fault.exec, fault.nx_huge_page_workaround_enabled = True, True
    if case == "no slot":
        fault.slot, fault.pfn = None, KVM_PFN_NOSLOT
    pfn = fault.pfn
    kvm_mmu_hugepage_adjust(guest.kvm, fault)
    if case == "huge":
        assert (fault.goal_level, fault.pfn) == (2, pfn - 5)
    else:
        assert (fault.goal_level, fault.pfn) == (1, pfn)
    assert fault.req_level == (2 if case in ("huge", "split") else 1)
    assert fault.huge_page_disallowed == (case == "split")


def test_below_a_table_an_nx_huge_page_becomes_smaller(guest: Guest) -> None:
    fault = fault_at(guest, 0x605, goal_level=2, pfn=0x8600)
    disallowed_hugepage_adjust(guest.kvm, fault, 0, 2)
    disallowed_hugepage_adjust(guest.kvm, fault, TABLE | PS, 2)
    disallowed_hugepage_adjust(guest.kvm, fault, TABLE, 1)
    assert fault.goal_level == 2
    disallowed_hugepage_adjust(guest.kvm, fault, TABLE, 2)
    assert (fault.goal_level, fault.pfn) == (1, 0x8605)


def test_the_request_names_the_frame_of_the_gfn(guest: Guest) -> None:
    fault = fault_at(guest, 0x605, goal_level=2, pfn=0x8600)
    with guest.watch() as seen:
        trace_spte_requested(guest.kvm, fault)
    assert seen == [ev.kvm_mmu_spte_requested(0x605, 0x8605, 2)]
