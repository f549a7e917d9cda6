"""Memslots: where guest-physical memory lies in host memory.

One :class:`Memslots` is an address space; KVM has two, the second for system
management mode. A gfn in no slot is a hole: reads there find nothing and
accesses become device accesses. Slots may alias: two may show the same frames.

Source: Linux 6.1 ``virt/kvm/kvm_main.c``, ``include/linux/kvm_host.h``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import Generic, TypeVar

from mmulab.memory.host import FRAME_BYTES

KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1
KVM_MEMSLOT_INVALID = 1 << 16
KVM_ADDRESS_SPACE_NUM = 2


class Memslot:
    """One slot: `npages` gfns from `base_gfn`, backed by frames from `base_frame`.

    Attributes
    ----------
    id, as_id : int
        Slot number and address space (0 normal, 1 SMM).
    base_gfn, npages, base_frame : int
        Guest frame, length in 4 KiB pages, host frame of the first page.
    flags : int
        ``KVM_MEM_*`` and ``KVM_MEMSLOT_INVALID``.
    host_level : int
        Largest page the host maps the backing with: 1 (4 KiB), 2 (2 MiB) or 3
        (1 GiB).
    dirty_bitmap : bytearray or None
        One byte a page while dirty logging is on.
    """

    __slots__ = ("as_id", "base_frame", "base_gfn", "dirty_bitmap", "flags", "host_level", "id", "npages")

    def __init__(
        self,
        id: int,
        base_gfn: int,
        npages: int,
        base_frame: int,
        *,
        flags: int = 0,
        as_id: int = 0,
        host_level: int = 1,
    ) -> None:
        self.id = id
        self.as_id = as_id
        self.base_gfn = base_gfn
        self.npages = npages
        self.base_frame = base_frame
        self.flags = flags
        self.host_level = host_level
        self.dirty_bitmap: bytearray | None = None

    @property
    def readonly(self) -> bool:
        """Whether the guest's writes leave the slot alone and go to the VMM."""
        return bool(self.flags & KVM_MEM_READONLY)

    @property
    def invalid(self) -> bool:
        """Whether the slot is being deleted or moved."""
        return bool(self.flags & KVM_MEMSLOT_INVALID)

    def __contains__(self, gfn: int) -> bool:
        return 0 <= gfn - self.base_gfn < self.npages

    def frame(self, gfn: int) -> int:
        """Return the host frame behind `gfn`, which must lie in the slot."""
        return self.base_frame + gfn - self.base_gfn

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(id={self.id}, as_id={self.as_id}, gfn {self.base_gfn:#x}"
            f"+{self.npages:#x} -> frame {self.base_frame:#x}, flags={self.flags:#x})"
        )


S = TypeVar("S", bound=Memslot)
_BASE_GFN = attrgetter("base_gfn")


class Memslots(Generic[S]):
    """An address space: slots in ascending order, and their generation.

    The generation counts changes in steps of the number of address spaces, so
    that no two spaces ever share one (``kvm_swap_active_memslots``). Slots of a
    space never overlap, so at most one starts at or below a gfn and reaches it.
    """

    __slots__ = ("_by_id", "_end", "_first", "_last", "generation", "slots")

    def __init__(self, as_id: int = 0) -> None:
        self.slots: list[S] = []
        self.generation = as_id
        self._by_id: dict[int, S] = {}
        self._forget()

    def _forget(self) -> None:
        """Forget the slot found last, and the gfns from the first to below the end that it holds."""
        self._last: S | None = None
        self._first = self._end = 0

    def lookup(self, gfn: int) -> S | None:
        """Return the slot that holds `gfn`, or None (``__gfn_to_memslot``)."""
        if self._first <= gfn < self._end:
            return self._last
        at = bisect_right(self.slots, gfn, key=_BASE_GFN) - 1
        if at < 0 or gfn not in self.slots[at]:
            return None
        found = self._last = self.slots[at]
        self._first, self._end = found.base_gfn, found.base_gfn + found.npages
        return found

    def by_id(self, id: int) -> S | None:
        """Return the slot numbered `id`, or None."""
        return self._by_id.get(id)

    def overlaps(self, base_gfn: int, npages: int, id: int) -> bool:
        """Tell whether a slot other than `id` reaches into the range."""
        at = bisect_left(self.slots, base_gfn + npages, key=_BASE_GFN)
        # Slot `id` may be the last one that starts below the range's end; only one other can reach in then.
        below = (slot for slot in reversed(self.slots[max(at - 2, 0) : at]) if slot.id != id)
        nearest = next(below, None)
        return nearest is not None and base_gfn < nearest.base_gfn + nearest.npages

    def replace(self, old: S | None, new: S | None) -> None:
        """Take `old` out and put `new` in."""
        self._forget()
        if old is not None:
            del self.slots[bisect_left(self.slots, old.base_gfn, key=_BASE_GFN)]
            del self._by_id[old.id]
        if new is not None:
            self.slots.insert(bisect_left(self.slots, new.base_gfn, key=_BASE_GFN), new)
            self._by_id[new.id] = new

    def replace_all(self, slots: list[S], generation: int) -> None:
        """Put an address space back to these slots, in ascending order, and this generation."""
        self._forget()
        self.slots = list(slots)
        self._by_id = {slot.id: slot for slot in slots}
        self.generation = generation

    def read(self, memory_bytes: memoryview, gpa: int, size: int) -> int | None:
        """Read `size` bytes of guest memory, or None if any lies in a hole."""
        first = FRAME_BYTES - (gpa & 0xFFF)
        if size > first:
            low = self.read(memory_bytes, gpa, first)
            high = self.read(memory_bytes, gpa + first, size - first)
            return None if low is None or high is None else low | high << 8 * first
        slot = self.lookup(gpa >> 12)
        if slot is None:
            return None
        hpa = slot.frame(gpa >> 12) << 12 | gpa & 0xFFF
        return int.from_bytes(memory_bytes[hpa : hpa + size], "little")
