"""The host's page behind a guest's: whether the VMM's mapping allows an access, and bringing it in for one.

Source: Linux 6.1 ``virt/kvm/kvm_main.c`` (``hva_to_pfn``, ``__kvm_read_guest_page``,
``__kvm_write_guest_page``), ``mm/memory.c`` (``do_swap_page``, ``do_wp_page``).
"""

from __future__ import annotations

from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.state import Kvm
from mmulab.memory.host import ALL_ACCESS, READ_ACCESS
from mmulab.memory.memslots import Memslots


def access_host_page(kvm: Kvm, frame: int, *, write: bool = False) -> bool:
    """Bring in what is swapped out, or make writable what is to be written; False: the mapping forbids it.

    Of KVM the host's faults have no event.
    """
    memory = kvm.memory
    if not memory.is_special(frame):
        return True
    if memory.access(frame) < (ALL_ACCESS if write else READ_ACCESS):
        return False
    memory.bring_in(frame, writable=write or kvm.behaviours.swapin_is_writable)
    if write:
        memory.make_writable(frame)
    return True


def readable_frame(kvm: Kvm, slots: Memslots[KvmMemslot], gfn: int) -> int | None:
    """Return the frame behind `gfn`, ready to be read; None: it has no slot, or may not be read."""
    slot = slots.lookup(gfn)
    if slot is None or slot.invalid:
        return None
    frame = slot.frame(gfn)
    return frame if access_host_page(kvm, frame) else None
