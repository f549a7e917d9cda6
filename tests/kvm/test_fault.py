"""What every fault goes through, whatever tables it is on."""

from __future__ import annotations

import pytest

from mmulab.kvm.fault import (
    handle_abnormal_pfn,
    is_page_fault_stale,
    kvm_faultin_pfn,
    page_fault_handle_page_track,
    shadow_page_table_clear_flood,
)
from mmulab.kvm.mmu_internal import (
    KVM_PFN_ERR_RO_FAULT,
    KVM_PFN_NOSLOT,
    PageFault,
    RetPf,
)
from mmulab.kvm.state import Request
from mmulab.kvm.zap import kvm_mmu_zap_all_fast
from mmulab.machine.config import HostConfig
from mmulab.memory.memslots import KVM_MEM_READONLY, KVM_MEMSLOT_INVALID
from mmulab.x86.pferr import ACC_ALL
from tests.kvm.guest import DATA, GVA, Guest


def fault_at(guest: Guest, gfn: int, **flags: bool) -> PageFault:
    bits = {"exec": False, "write": False, "present": False, "rsvd": False, "user": False} | flags
    fault = PageFault(GVA, 0, **bits)
    fault.gfn, fault.slot = gfn, guest.kvm.slots[0].lookup(gfn)
    return fault


@pytest.mark.parametrize(
    ("flags", "tracked"),
    [
        ({"present": True, "write": True}, True),
        ({"present": True}, False),
        ({"write": True}, False),
        ({"present": True, "write": True, "rsvd": True}, False),
    ],
)
def test_only_a_write_to_a_present_entry_can_meet_write_tracking(
    guest: Guest, flags: dict[str, bool], tracked: bool
) -> None:
    guest.read(GVA)
    upper = guest.table(GVA, 2) >> 12
    assert page_fault_handle_page_track(guest.vcpu, fault_at(guest, upper, **flags)) is tracked
    assert not page_fault_handle_page_track(guest.vcpu, fault_at(guest, DATA >> 12, **flags))


def test_the_frame_and_whether_it_may_be_written(guest: Guest) -> None:
    gfn = DATA >> 12
    fault = fault_at(guest, gfn, write=True)
    assert kvm_faultin_pfn(guest.vcpu, fault) is RetPf.CONTINUE
    assert (fault.pfn, fault.map_writable) == (guest.slot.frame(gfn), True)
    guest.slot.flags = KVM_MEM_READONLY
    assert kvm_faultin_pfn(guest.vcpu, fault) is RetPf.CONTINUE
    assert fault.pfn == KVM_PFN_ERR_RO_FAULT
    assert handle_abnormal_pfn(guest.vcpu, fault, ACC_ALL) is RetPf.EMULATE
    read = fault_at(guest, gfn)
    assert kvm_faultin_pfn(guest.vcpu, read) is RetPf.CONTINUE
    assert (read.pfn, read.map_writable) == (guest.slot.frame(gfn), False)
    assert handle_abnormal_pfn(guest.vcpu, read, ACC_ALL) is RetPf.CONTINUE


def test_a_slot_on_its_way_out_means_another_try(guest: Guest) -> None:
    guest.slot.flags |= KVM_MEMSLOT_INVALID
    assert kvm_faultin_pfn(guest.vcpu, fault_at(guest, 1)) is RetPf.RETRY


@pytest.mark.parametrize("caching", [True, False])
def test_no_slot_is_a_device(caching: bool) -> None:
    guest = Guest("64", host=HostConfig(mmio_caching=caching)).map(GVA, DATA)
    fault = fault_at(guest, 0x40000)
    assert kvm_faultin_pfn(guest.vcpu, fault) is RetPf.CONTINUE
    assert fault.pfn == KVM_PFN_NOSLOT
    ret = handle_abnormal_pfn(guest.vcpu, fault, ACC_ALL)
    assert ret is (RetPf.CONTINUE if caching else RetPf.EMULATE)
    assert (guest.vcpu.mmio_gva, guest.vcpu.mmio_gfn, guest.vcpu.mmio_access) == (GVA, 0x40000, 6)


def test_beyond_the_guests_addresses_nothing_is_cached_in_an_entry() -> None:
    """``kvm_mmu_max_gfn``: with TDP the host's width, in shadow paging all 52 bits."""
    shadow = Guest("64")
    assert handle_abnormal_pfn(shadow.vcpu, fault_at(shadow, 1 << 39), ACC_ALL) is RetPf.CONTINUE
    two_dimensional = Guest("64", host=HostConfig(tdp=True, phys_bits=40))
    for gfn, ret in (((1 << 28) - 1, RetPf.CONTINUE), (1 << 28, RetPf.EMULATE)):
        assert handle_abnormal_pfn(two_dimensional.vcpu, fault_at(two_dimensional, gfn), ACC_ALL) is ret


def test_a_fault_is_stale_when_its_root_is_out_of_use(guest: Guest) -> None:
    guest.read(GVA)
    assert not is_page_fault_stale(guest.vcpu)
    guest.page(GVA, 4).mmu_valid_gen ^= 1
    assert is_page_fault_stale(guest.vcpu)


def test_on_special_roots_the_request_tells() -> None:
    guest = Guest("32").map(GVA, DATA)
    guest.read(GVA)
    assert not is_page_fault_stale(guest.vcpu)
    kvm_mmu_zap_all_fast(guest.kvm)
    assert guest.vcpu.requests & Request.MMU_FREE_OBSOLETE_ROOTS
    assert is_page_fault_stale(guest.vcpu)


def test_use_clears_the_flood_on_the_whole_way(guest: Guest) -> None:
    guest.read(GVA)
    pages = [guest.page(GVA, level) for level in (1, 2, 3, 4)]
    for sp in pages:
        sp.write_flooding_count = 2
    shadow_page_table_clear_flood(guest.vcpu, GVA)
    assert [sp.write_flooding_count for sp in pages] == [0, 0, 0, 0]
