"""A memslot with what KVM keeps for each of its gfns.

Source: Linux 6.1 ``arch/x86/include/asm/kvm_host.h`` (``struct kvm_arch_memory_slot``).
"""

from __future__ import annotations

from mmulab.memory.memslots import Memslot
from mmulab.x86.regs import PG_LEVEL_1G

KVM_MAX_HUGEPAGE_LEVEL = PG_LEVEL_1G

PteList = list[list[int]]
"""A ``struct kvm_rmap_head``: sptes in blocks of at most 14, in the kernel's order."""


class KvmMemslot(Memslot):
    """A slot with what KVM keeps for each of its gfns (``struct kvm_arch_memory_slot``).

    Attributes
    ----------
    rmap : list of dict
        ``rmap[level]``: gfn >> ``KVM_HPAGE_GFN_SHIFT[level]`` to the sptes that map it.
    disallow_lpage : list of dict
        ``disallow_lpage[level]``: the same key to the number of reasons against
        a huge page there (levels 2 and 3).
    gfn_track : dict
        gfn to the number of upper-level shadow pages that track writes to it.
    """

    __slots__ = ("disallow_lpage", "gfn_track", "rmap")

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
        super().__init__(id, base_gfn, npages, base_frame, flags=flags, as_id=as_id, host_level=host_level)
        self.rmap: list[dict[int, PteList]] = [{}, {}, {}, {}]
        self.disallow_lpage: list[dict[int, int]] = [{}, {}, {}, {}]
        self.gfn_track: dict[int, int] = {}
