"""The dirty ring: pages that a vCPU dirtied, in order, for the VMM to take from shared memory.

KVM adds entries in front (``dirty_index``); the VMM takes them as they come and
marks them; a reset gives the marked ones back (``reset_index``) and protects
their pages again. A ring that is all but full lets its vCPU run no more.

Source: Linux 6.1 ``virt/kvm/dirty_ring.c``, ``kvm_main.c``
(``kvm_vm_ioctl_enable_dirty_log_ring``); 6.12 has the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from errno import E2BIG, EINVAL

KVM_DIRTY_RING_RSVD_ENTRIES = 64
KVM_DIRTY_RING_MAX_ENTRIES = 65536
PML_ENTITY_NUM = 512
"""Entries of the processor's own log (``kvm_cpu_dirty_log_size``)."""
DIRTY_GFN_BYTES = 16
PAGE_SIZE = 4096
BITS_PER_LONG = 64
_LONG = (1 << BITS_PER_LONG) - 1


class DirtyRingFullError(Exception):
    """``KVM_RUN`` ends with ``KVM_EXIT_DIRTY_RING_FULL``, before the guest is entered."""


def kvm_dirty_ring_get_rsvd_entries(*, pml: bool) -> int:
    """Return how many entries are kept for what one run of the guest may still dirty."""
    return KVM_DIRTY_RING_RSVD_ENTRIES + (PML_ENTITY_NUM if pml else 0)


def check_dirty_ring(entries: int, *, pml: bool) -> int:
    """Check what ``KVM_CAP_DIRTY_LOG_RING`` is asked for, in entries; 0 or a negative errno."""
    size = entries * DIRTY_GFN_BYTES
    if not size or size & (size - 1):
        return -EINVAL
    if entries < kvm_dirty_ring_get_rsvd_entries(pml=pml) or size < PAGE_SIZE:
        return -EINVAL
    return -E2BIG if entries > KVM_DIRTY_RING_MAX_ENTRIES else 0


@dataclass(slots=True)
class DirtyRing:
    """The ring of one vCPU (``struct kvm_dirty_ring``).

    Attributes
    ----------
    index : int
        Number of the vCPU.
    size, soft_limit : int
        Its entries, and how many of them may be in use when the guest is entered.
    dirty_index, reset_index : int
        Entries added, and given back, so far.
    fetch_index : int
        Entries that the VMM took so far.
    gfns : dict of int to (slot, offset, harvested)
        The entries in use, by their place; `slot` has its address space from bit 16 on.
    """

    index: int
    size: int
    soft_limit: int
    dirty_index: int = 0
    reset_index: int = 0
    fetch_index: int = 0
    gfns: dict[int, tuple[int, int, bool]] = field(default_factory=dict)

    def soft_full(self) -> bool:
        """Whether no more than the reserve is left."""
        return self.dirty_index - self.reset_index >= self.soft_limit

    def push(self, slot: int, offset: int) -> None:
        """Add a page; beyond its size the ring loses the oldest (the kernel warns)."""
        self.gfns[self.dirty_index & self.size - 1] = (slot, offset, False)
        self.dirty_index += 1

    def harvest(self) -> list[tuple[int, int]]:
        """Take what is new, as the VMM does: return slots and offsets, and mark the entries."""
        taken: list[tuple[int, int]] = []
        while True:
            place = self.fetch_index & self.size - 1
            slot, offset, harvested = self.gfns.get(place, (0, 0, True))
            if harvested:
                return taken
            self.gfns[place] = (slot, offset, True)
            self.fetch_index += 1
            taken.append((slot, offset))

    def give_back(self) -> list[tuple[int, int]]:
        """Free the entries that the VMM has marked, in order, and return their slots and offsets."""
        freed: list[tuple[int, int]] = []
        while True:
            place = self.reset_index & self.size - 1
            slot, offset, harvested = self.gfns.get(place, (0, 0, False))
            if not harvested:
                return freed
            del self.gfns[place]
            self.reset_index += 1
            freed.append((slot, offset))


def coalesce(entries: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Put entries of one slot that follow each other, up and down, into masks of at most 64 pages.

    Yields
    ------
    slot, offset, mask : int
        Bit n of `mask` is page `offset` + n.

    Examples
    --------
    >>> list(coalesce([(0, 8), (0, 9), (0, 7), (0, 100)]))
    [(0, 7, 7), (0, 100, 1)]
    """
    slot = offset = mask = 0
    for next_slot, next_offset in entries:
        delta = next_offset - offset
        if mask and next_slot == slot:
            if 0 <= delta < BITS_PER_LONG:
                mask |= 1 << delta
                continue
            if -BITS_PER_LONG < delta < 0 and mask << -delta <= _LONG:
                mask = mask << -delta | 1
                offset = next_offset
                continue
        if mask:
            yield slot, offset, mask
        slot, offset, mask = next_slot, next_offset, 1
    if mask:
        yield slot, offset, mask
