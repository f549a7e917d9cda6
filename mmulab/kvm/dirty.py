"""Marking guest pages dirty.

Source: Linux 6.1 ``virt/kvm/kvm_main.c`` (``mark_page_dirty_in_slot``), ``dirty_ring.c``
(``kvm_dirty_ring_push``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.state import Kvm, Vcpu, vcpu_memslots
from mmulab.kvm.trace import trace
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES


def kvm_slot_dirty_track_enabled(slot: KvmMemslot) -> bool:
    """Whether writes to the slot are logged."""
    return slot.flags & KVM_MEM_LOG_DIRTY_PAGES != 0


def mark_page_dirty_in_slot(kvm: Kvm, slot: KvmMemslot, gfn: int) -> None:
    """Note in a slot that is logged that the page is dirty: in the bitmap, or the running vCPU's ring."""
    if not kvm_slot_dirty_track_enabled(slot):
        return
    if kvm.dirty_ring_size:
        kvm_dirty_ring_push(kvm.vcpus[kvm.running_vcpu], slot, gfn)
    elif slot.dirty_bitmap is not None:
        slot.dirty_bitmap[gfn - slot.base_gfn] = 1


def kvm_dirty_ring_push(vcpu: Vcpu, slot: KvmMemslot, gfn: int) -> None:
    """Add the page to the vCPU's ring, be it there already or not."""
    ring = vcpu.dirty_ring
    assert ring is not None
    id, offset = slot.as_id << 16 | slot.id, gfn - slot.base_gfn
    ring.push(id, offset)
    trace(vcpu.kvm, ev.kvm_dirty_ring_push, ring.index, ring.dirty_index, ring.reset_index, id, offset)


def kvm_vcpu_mark_page_dirty(vcpu: Vcpu, gfn: int) -> None:
    """Note that `gfn` of the vCPU's address space is dirty."""
    slot = vcpu_memslots(vcpu).lookup(gfn)
    if slot is not None:
        mark_page_dirty_in_slot(vcpu.kvm, slot, gfn)


def gfn_to_memslot_dirty_bitmap(vcpu: Vcpu, gfn: int, *, no_dirty_log: bool) -> KvmMemslot | None:
    """Return the slot of `gfn`; None if it is none, or logged while that is unwanted."""
    slot = vcpu_memslots(vcpu).lookup(gfn)
    if slot is None or slot.invalid or (no_dirty_log and kvm_slot_dirty_track_enabled(slot)):
        return None
    return slot
