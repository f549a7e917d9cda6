"""Going through the tables of the TDP MMU.

Depth first, an entry before what is below it, ascending by gfn. The walk reads
each entry when it comes to it, so entries may change under it.

Source: Linux 6.1 ``arch/x86/kvm/mmu/tdp_iter.c``.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import is_last_spte, is_shadow_present_pte
from mmulab.kvm.state import Kvm
from mmulab.x86.mode import PT_BASE_ADDR_MASK

PT64_ROOT_MAX_LEVEL = 5


class TdpEntry:
    """An entry that the iteration stands on.

    Attributes
    ----------
    level, gfn, as_id : int
    sptep : int
        Host-physical address.
    old_spte : int
        Its value when it was reached, or what the visitor made of it.
    """

    __slots__ = ("as_id", "gfn", "level", "old_spte", "sptep")

    def __init__(self, level: int, gfn: int, sptep: int, old_spte: int, as_id: int) -> None:
        self.level = level
        self.gfn = gfn
        self.sptep = sptep
        self.old_spte = old_spte
        self.as_id = as_id


def for_each_tdp_pte(
    kvm: Kvm, root: ShadowPage, start: int, end: int, min_level: int = 1
) -> Iterator[TdpEntry]:
    """Yield the entries of `root`'s tables that cover gfns from `start` to below `end`."""
    warn_on(kvm, "tdp_iter.c:tdp_iter_start:low", root.level < 1)
    warn_on(kvm, "tdp_iter.c:tdp_iter_start:high", root.level > PT64_ROOT_MAX_LEVEL)
    yield from _entries(kvm, root.frame << 12, root.level, 0, start, end, min_level, root.smm)


def _entries(
    kvm: Kvm, table: int, level: int, base: int, start: int, end: int, min_level: int, as_id: int
) -> Iterator[TdpEntry]:
    words = kvm.memory.words
    shift = KVM_HPAGE_GFN_SHIFT[level]
    first = max(0, (start - base) >> shift)
    for index in range(first, 512):
        gfn = base + (index << shift)
        if gfn >= end:
            return
        sptep = table + 8 * index
        entry = TdpEntry(level, gfn, sptep, words[sptep >> 3], as_id)
        yield entry
        spte = words[sptep >> 3]
        if level > min_level and is_shadow_present_pte(spte) and not is_last_spte(spte, level):
            child = spte & PT_BASE_ADDR_MASK
            yield from _entries(kvm, child, level - 1, gfn, max(start, gfn), end, min_level, as_id)
