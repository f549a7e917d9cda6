"""What the VMM's own mapping of the backing allows, and what the host does when that changes.

Source: Linux 6.1 ``mm/mprotect.c`` (``mprotect_fixup``), ``mm/huge_memory.c`` (``vma_adjust_trans_huge``),
``mm/madvise.c`` (``madvise_pageout``), ``mm/vmscan.c`` (``shrink_folio_list``).
"""

from __future__ import annotations

from mmulab.kvm.mmu_notifier import kvm_age_hva, kvm_unmap_hva_range
from mmulab.kvm.state import Kvm

BLOCK = 512
"""Frames of a huge page of 2 MiB."""


def mprotect(kvm: Kvm, first: int, last: int, access: int) -> None:
    """Leave the VMM `access` to the frames of a range: 0 none, 1 reads, 3 all.

    The mappings of the range are changed one by one, those that allow just that
    already excepted. One that is changed in part is split at the ends, which
    invalidates the 2 MiB around an end inside it and leaves 4 KiB pages where
    there was a huge one.
    """
    at = first
    while at <= last:
        low, high = _mapping(kvm, at)
        end = min(high, last + 1)
        if kvm.memory.access(at) != access:
            for edge in (at, end):
                _split(kvm, edge, low, high)
                low = at
            kvm.memory.protect(at, end, access)
            kvm_unmap_hva_range(kvm, at, end - 1)
        at = end


def _mapping(kvm: Kvm, frame: int) -> tuple[int, int]:
    """Return the first frame and the end of the mapping that `frame` lies in; equal neighbours are one."""
    memory = kvm.memory
    low, high = memory.backing, memory.backing + memory.backing_frames
    if not memory.protection:
        return low, high
    access = memory.access(frame)
    first = next((at + 1 for at in range(frame - 1, low - 1, -1) if memory.access(at) != access), low)
    return first, next((at for at in range(frame + 1, high) if memory.access(at) != access), high)


def _split(kvm: Kvm, edge: int, low: int, high: int) -> None:
    """Split the huge page around an edge, if it lies whole in the mapping from `low` to below `high`."""
    block = edge & -BLOCK
    if edge & BLOCK - 1 and low <= block and block + BLOCK <= high:
        kvm.memory.page_level[block >> 9] = 1
        kvm_unmap_hva_range(kvm, block, block + BLOCK - 1)


def swap_out(kvm: Kvm, first: int, last: int) -> None:
    """Reclaim a range of 4 KiB pages, pass by pass until nothing of it is left in memory.

    Before 6.9 a pass spares the pages that were accessed since the one before.
    """
    swapped = kvm.memory.swapped
    while present := [frame for frame in range(first, last + 1) if frame not in swapped]:
        for frame in present:
            if not kvm.behaviours.pageout_ignores_references and kvm_age_hva(kvm, frame, frame):
                continue
            kvm_unmap_hva_range(kvm, frame, frame)
            kvm.memory.swap_out(frame)
