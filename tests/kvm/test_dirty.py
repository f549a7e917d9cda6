"""Marking pages dirty."""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.dirty import (
    gfn_to_memslot_dirty_bitmap,
    kvm_slot_dirty_track_enabled,
    kvm_vcpu_mark_page_dirty,
    mark_page_dirty_in_slot,
)
from mmulab.kvm.memslot import KvmMemslot
from mmulab.machine import op as ops
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEMSLOT_INVALID
from tests.kvm.guest import DATA, HOLE, Guest


def test_a_page_is_marked_by_its_place_in_the_slot(guest: Guest) -> None:
    slot = KvmMemslot(0, 0x100, 16, 0)
    slot.dirty_bitmap = bytearray(16)
    mark_page_dirty_in_slot(guest.kvm, slot, 0x105)
    assert not any(slot.dirty_bitmap)
    slot.flags = KVM_MEM_LOG_DIRTY_PAGES
    mark_page_dirty_in_slot(guest.kvm, slot, 0x105)
    assert list(slot.dirty_bitmap) == [0] * 5 + [1] + [0] * 10


def test_a_page_goes_into_the_ring_of_the_vcpu_that_runs() -> None:
    guest = Guest("np", dirty_ring=256, vcpus=2)
    slot = KvmMemslot(3, 0x100, 16, 0, flags=KVM_MEM_LOG_DIRTY_PAGES, as_id=1)
    guest.kvm.running_vcpu = 1
    with guest.watch() as seen:
        mark_page_dirty_in_slot(guest.kvm, slot, 0x105)
        mark_page_dirty_in_slot(guest.kvm, slot, 0x105)
    assert seen == [ev.kvm_dirty_ring_push(1, count, 0, 0x10003, 5) for count in (1, 2)]
    taken = [guest.machine.execute(ops.GetDirtyRing(vcpu=vcpu)).ring for vcpu in (0, 1)]
    assert taken == [[], [(0x10003, 5), (0x10003, 5)]]


def test_logging_is_a_flag_of_the_slot() -> None:
    assert not kvm_slot_dirty_track_enabled(KvmMemslot(0, 0, 1, 0))
    assert kvm_slot_dirty_track_enabled(KvmMemslot(0, 0, 1, 0, flags=KVM_MEM_LOG_DIRTY_PAGES))


def test_the_vcpus_address_space_counts(guest: Guest) -> None:
    smm = KvmMemslot(0, 0, guest.slot.npages, guest.slot.base_frame, as_id=1)
    guest.kvm.slots[1].replace(None, smm)
    guest.slot.flags = smm.flags = KVM_MEM_LOG_DIRTY_PAGES
    guest.slot.dirty_bitmap, smm.dirty_bitmap = bytearray(2048), bytearray(2048)
    kvm_vcpu_mark_page_dirty(guest.vcpu, DATA >> 12)
    kvm_vcpu_mark_page_dirty(guest.vcpu, HOLE >> 12)
    assert guest.slot.dirty_bitmap.count(1) == 1
    guest.vcpu.smm = 1
    kvm_vcpu_mark_page_dirty(guest.vcpu, DATA >> 12)
    assert smm.dirty_bitmap[DATA >> 12] == 1


def test_a_slot_that_a_prefetch_may_use(guest: Guest) -> None:
    """``gfn_to_memslot_dirty_bitmap``: none on its way out, none logged if that is unwanted."""
    vcpu, slot, gfn = guest.vcpu, guest.slot, DATA >> 12
    assert gfn_to_memslot_dirty_bitmap(vcpu, gfn, no_dirty_log=True) is slot
    assert gfn_to_memslot_dirty_bitmap(vcpu, HOLE >> 12, no_dirty_log=False) is None
    slot.flags = KVM_MEM_LOG_DIRTY_PAGES
    assert gfn_to_memslot_dirty_bitmap(vcpu, gfn, no_dirty_log=False) is slot
    assert gfn_to_memslot_dirty_bitmap(vcpu, gfn, no_dirty_log=True) is None
    slot.flags = KVM_MEMSLOT_INVALID
    assert gfn_to_memslot_dirty_bitmap(vcpu, gfn, no_dirty_log=False) is None
