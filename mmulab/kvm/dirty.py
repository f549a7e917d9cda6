"""Marking guest pages dirty.

Source: Linux 6.1 ``virt/kvm/kvm_main.c`` (``mark_page_dirty_in_slot``).
"""

from __future__ import annotations

from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.state import Vcpu, vcpu_memslots
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES


def kvm_slot_dirty_track_enabled(slot: KvmMemslot) -> bool:
    """Whether writes to the slot are logged."""
    return slot.flags & KVM_MEM_LOG_DIRTY_PAGES != 0


def mark_page_dirty_in_slot(slot: KvmMemslot, gfn: int) -> None:
    """Set the page's bit in the dirty bitmap, if there is one."""
    if slot.dirty_bitmap is not None:
        slot.dirty_bitmap[gfn - slot.base_gfn] = 1


def kvm_vcpu_mark_page_dirty(vcpu: Vcpu, gfn: int) -> None:
    """Set the bit of `gfn` in the vCPU's address space."""
    slot = vcpu_memslots(vcpu).lookup(gfn)
    if slot is not None:
        mark_page_dirty_in_slot(slot, gfn)


def gfn_to_memslot_dirty_bitmap(vcpu: Vcpu, gfn: int, *, no_dirty_log: bool) -> KvmMemslot | None:
    """Return the slot of `gfn`; None if it is none, or logged while that is unwanted."""
    slot = vcpu_memslots(vcpu).lookup(gfn)
    if slot is None or slot.invalid or (no_dirty_log and kvm_slot_dirty_track_enabled(slot)):
        return None
    return slot
