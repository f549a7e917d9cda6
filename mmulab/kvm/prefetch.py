"""Prefetch in direct maps.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``__direct_pte_prefetch``,
``direct_pte_prefetch_many``).
"""

from __future__ import annotations

from itertools import takewhile

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.dirty import gfn_to_memslot_dirty_bitmap
from mmulab.kvm.gpte import PTE_PREFETCH_NUM
from mmulab.kvm.mmu_page import ShadowPage, kvm_mmu_page_get_gfn
from mmulab.kvm.set_spte import mmu_set_spte
from mmulab.kvm.spte import is_shadow_present_pte
from mmulab.kvm.state import Vcpu, spte_at, spte_index, sptep_to_sp
from mmulab.x86.pferr import ACC_WRITE_MASK


def direct_pte_prefetch(vcpu: Vcpu, sptep: int) -> None:
    """Map the neighbours of an entry of a direct map, if A bits can tell them from used ones."""
    sp = sptep_to_sp(vcpu.kvm, sptep)
    if sp.ad_disabled or sp.level > 1 or vcpu.kvm.mmu_invalidate_in_progress:
        return
    direct_pte_prefetch_group(vcpu, sp, sptep)


def direct_pte_prefetch_group(vcpu: Vcpu, sp: ShadowPage, sptep: int) -> None:
    """Map the entries of the group of eight that are not present, run by run."""
    warn_on(vcpu.kvm, "mmu.c:__direct_pte_prefetch:direct", not sp.direct)
    first = sptep & ~(PTE_PREFETCH_NUM * 8 - 1)
    run: list[int] = []
    for neighbour in range(first, first + 8 * PTE_PREFETCH_NUM, 8):
        if neighbour == sptep or is_shadow_present_pte(spte_at(vcpu.kvm, neighbour)):
            if run and not _prefetch_many(vcpu, sp, run):
                return
            run = []
        else:
            run.append(neighbour)
    if run:
        _prefetch_many(vcpu, sp, run)


def _prefetch_many(vcpu: Vcpu, sp: ShadowPage, run: list[int]) -> bool:
    """Map a run of entries, up to the first that the host cannot write; False if that is the very first."""
    gfn = kvm_mmu_page_get_gfn(sp, spte_index(run[0]))
    slot = gfn_to_memslot_dirty_bitmap(vcpu, gfn, no_dirty_log=bool(sp.access & ACC_WRITE_MASK))
    if slot is None or slot.readonly or gfn + len(run) > slot.base_gfn + slot.npages:
        return False
    frames = [slot.frame(gfn + i) for i in range(len(run))]
    writable = list(takewhile(lambda frame: not vcpu.kvm.memory.is_special(frame), frames))
    for i, (sptep, frame) in enumerate(zip(run, writable, strict=False)):
        mmu_set_spte(vcpu, slot, sptep, sp.access, gfn + i, frame, None)
    return bool(writable)
