"""Making leaf sptes and putting them in place.

Source: Linux 6.1 ``arch/x86/kvm/mmu/spte.c`` (``make_spte``), ``mmu.c``
(``mmu_set_spte``, ``kvm_mmu_max_mapping_level``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.dirty import kvm_slot_dirty_track_enabled, mark_page_dirty_in_slot
from mmulab.kvm.flush import kvm_flush_remote_tlbs_gfn
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmio import mark_mmio_spte
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.nx_huge_page import is_nx_huge_page_enabled
from mmulab.kvm.rmap import (
    KVM_MAX_HUGEPAGE_LEVEL,
    drop_spte,
    kvm_mmu_page_set_access,
    mmu_spte_update,
    rmap_add,
)
from mmulab.kvm.spte import (
    SPTE_MMU_PRESENT_MASK,
    SPTE_TDP_AD_DISABLED_MASK,
    SPTE_TDP_AD_WRPROT_ONLY_MASK,
    is_executable_pte,
    is_large_pte,
    is_last_spte,
    is_shadow_present_pte,
    is_writable_pte,
    kvm_mark_spte_for_access_track,
    spte_ad_enabled,
    spte_to_pfn,
)
from mmulab.kvm.state import Kvm, Vcpu, spte_index, sptep_to_sp
from mmulab.kvm.zap import drop_parent_pte
from mmulab.kvm.zero_check import is_rsvd_spte, zero_check
from mmulab.x86.mode import PT_PAGE_SIZE_MASK, PT_PRESENT_MASK, PT_WRITABLE_MASK
from mmulab.x86.pferr import ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK

KVM_PFN_NOSLOT = -1
KVM_PFN_ERR_RO_FAULT = -2
KVM_PFN_ERR_FAULT = -3


class RetPf(IntEnum):
    """What became of a fault (``RET_PF_*``); the numbers are 6.1's, which has no WRITE_PROTECTED."""

    CONTINUE = 0
    RETRY = 1
    EMULATE = 2
    INVALID = 3
    FIXED = 4
    SPURIOUS = 5
    WRITE_PROTECTED = 6


@dataclass(slots=True)
class PageFault:
    """One fault on its way through the MMU (``struct kvm_page_fault``).

    Attributes
    ----------
    addr, error_code : int
        A guest-virtual address, or a guest-physical one under TDP.
    exec, write, present, rsvd, user : bool
        Bits of the error code.
    is_tdp, prefetch : bool
    max_level, req_level, goal_level : int
        Largest page allowed by the guest, by the host too, and wanted.
    gfn, pfn : int
    slot : KvmMemslot or None
    map_writable : bool
    write_fault_to_shadow_pgtable : bool
        The guest writes a table that translates this very write.
    """

    addr: int
    error_code: int
    exec: bool
    write: bool
    present: bool
    rsvd: bool
    user: bool
    is_tdp: bool = False
    prefetch: bool = False
    max_level: int = KVM_MAX_HUGEPAGE_LEVEL
    req_level: int = 1
    goal_level: int = 1
    gfn: int = 0
    pfn: int = KVM_PFN_NOSLOT
    slot: KvmMemslot | None = None
    map_writable: bool = False
    nx_huge_page_workaround_enabled: bool = False
    huge_page_disallowed: bool = False
    write_fault_to_shadow_pgtable: bool = False


def make_spte(
    vcpu: Vcpu,
    sp: ShadowPage,
    slot: KvmMemslot,
    pte_access: int,
    gfn: int,
    pfn: int,
    old_spte: int,
    *,
    prefetch: bool,
    can_unsync: bool,
    host_writable: bool,
) -> tuple[int, bool]:
    """Build the leaf entry that maps `gfn` to `pfn` in `sp`.

    Returns
    -------
    spte : int
    wrprot : bool
        It had to stay read-only although the guest may write, because the page
        is a guest table.
    """
    kvm = vcpu.kvm
    fmt, level = kvm.fmt, sp.level
    nothing, counts = not pte_access and not fmt.present, kvm.assertion_counts is not None
    if nothing or counts:
        warn_on(kvm, "spte.c:make_spte:access", nothing)
    spte = SPTE_MMU_PRESENT_MASK
    if sp.ad_disabled:
        spte |= SPTE_TDP_AD_DISABLED_MASK
    elif kvm.config.pml and sp.guest_mode:
        spte |= SPTE_TDP_AD_WRPROT_ONLY_MASK
    spte |= fmt.present
    ad_enabled = spte_ad_enabled(spte)
    if not prefetch and ad_enabled:
        spte |= fmt.accessed
    if level > 1 and pte_access & ACC_EXEC_MASK and is_nx_huge_page_enabled(kvm):
        pte_access &= ~ACC_EXEC_MASK
    spte |= fmt.x if pte_access & ACC_EXEC_MASK else fmt.nx
    if pte_access & ACC_USER_MASK:
        spte |= fmt.user
    if level > 1:
        spte |= PT_PAGE_SIZE_MASK
    spte |= fmt.memtype | pfn << 12
    if host_writable:
        spte |= fmt.host_writable
    else:
        pte_access &= ~ACC_WRITE_MASK
    wrprot = False
    if pte_access & ACC_WRITE_MASK:
        spte |= PT_WRITABLE_MASK | fmt.mmu_writable
        # An old writable entry proves that whatever shadows this gfn is unsync already,
        # and its D bit is left as it was made.
        was_writable = is_last_spte(old_spte, level) and is_writable_pte(old_spte)
        if not was_writable:
            wrprot = not kvm.sync.try_to_unsync(kvm, slot, gfn, can_unsync=can_unsync, prefetch=prefetch)
            if wrprot:
                spte &= ~(PT_WRITABLE_MASK | fmt.mmu_writable)
            elif ad_enabled:
                spte |= fmt.dirty
    if prefetch:
        spte = kvm_mark_spte_for_access_track(kvm, spte)
    reserved = is_rsvd_spte(zero_check(vcpu), spte, level)
    if reserved or counts:
        warn_on(kvm, "spte.c:make_spte:reserved", reserved)
    if spte & PT_WRITABLE_MASK and kvm_slot_dirty_track_enabled(slot):
        warn_on(kvm, "spte.c:make_spte:level", level > 1)
        mark_page_dirty_in_slot(kvm, slot, gfn)
    return spte, wrprot


def mmu_set_spte(
    vcpu: Vcpu,
    slot: KvmMemslot | None,
    sptep: int,
    pte_access: int,
    gfn: int,
    pfn: int,
    fault: PageFault | None,
) -> RetPf:
    """Map `gfn` at `sptep`; without a `fault` it is a prefetch."""
    kvm = vcpu.kvm
    words = kvm.memory.words
    sp = sptep_to_sp(kvm, sptep)
    level = sp.level
    old = words[sptep >> 3]
    flush = was_rmapped = False
    overwrites = kvm.bugs.B5 and pfn == KVM_PFN_NOSLOT
    if is_shadow_present_pte(old) and not overwrites:
        if level > 1 and not is_large_pte(old):
            drop_parent_pte(kvm, kvm.pages[spte_to_pfn(old)], sptep)
            flush = True
        elif pfn != spte_to_pfn(old):
            drop_spte(kvm, sptep)
            flush = True
        else:
            was_rmapped = True
    if pfn == KVM_PFN_NOSLOT:
        vcpu.stat["pf_mmio_spte_created"] += 1
        mark_mmio_spte(vcpu, sptep, gfn, pte_access)
        if flush:
            kvm_flush_remote_tlbs_gfn(kvm, gfn, level)
        return RetPf.EMULATE
    assert slot is not None
    spte, wrprot = make_spte(
        vcpu,
        sp,
        slot,
        pte_access,
        gfn,
        pfn,
        words[sptep >> 3],
        prefetch=fault is None or fault.prefetch,
        can_unsync=True,
        host_writable=fault is None or fault.map_writable,
    )
    ret = RetPf.FIXED
    if words[sptep >> 3] == spte:
        ret = RetPf.SPURIOUS
    else:
        flush |= mmu_spte_update(kvm, sptep, spte)
        trace_set_spte(kvm, level, gfn, sptep, spte)
    if wrprot and fault is not None and fault.write:
        ret = RetPf.WRITE_PROTECTED
    if flush:
        kvm_flush_remote_tlbs_gfn(kvm, gfn, level)
    if was_rmapped:
        kvm_mmu_page_set_access(kvm, sp, spte_index(sptep), pte_access)
    else:
        spurious = ret == RetPf.SPURIOUS
        if spurious or kvm.assertion_counts is not None:
            warn_on(kvm, "mmu.c:mmu_set_spte:spurious", spurious)
        rmap_add(kvm, slot, sptep, gfn, pte_access)
    return ret


def trace_set_spte(kvm: Kvm, level: int, gfn: int, sptep: int, spte: int) -> None:
    """Report the leaf entry that now stands at `sptep`."""
    emit = kvm.emit
    if emit is None:
        return
    fmt = kvm.fmt
    readable = bool(fmt.present or spte & PT_PRESENT_MASK)
    user = int(spte & fmt.user != 0) if fmt.user else -1
    emit(ev.kvm_mmu_set_spte(gfn, spte, level, sptep, readable, is_executable_pte(fmt, spte), user))


def kvm_mmu_max_mapping_level(kvm: Kvm, slot: KvmMemslot, gfn: int, max_level: int) -> int:
    """Return the largest page size with which `gfn` may be mapped, up to `max_level`."""
    max_level = min(max_level, KVM_MAX_HUGEPAGE_LEVEL if kvm.config.gbpages else 2)
    while max_level > 1 and slot.disallow_lpage[max_level].get(gfn >> 9 * (max_level - 1), 0):
        max_level -= 1
    if max_level == 1:
        return 1
    return min(kvm.memory.mapping_level(slot.frame(gfn), slot.host_level), max_level)


def kvm_mmu_hugepage_adjust(kvm: Kvm, fault: PageFault) -> None:
    """Decide the size of the page that the fault gets."""
    fault.huge_page_disallowed = fault.exec and fault.nx_huge_page_workaround_enabled
    slot = fault.slot
    if fault.max_level == 1 or slot is None or fault.pfn < 0 or kvm_slot_dirty_track_enabled(slot):
        return
    fault.req_level = kvm_mmu_max_mapping_level(kvm, slot, fault.gfn, fault.max_level)
    if fault.req_level == 1 or fault.huge_page_disallowed:
        return
    fault.goal_level = fault.req_level
    mask = (1 << 9 * (fault.goal_level - 1)) - 1
    warn_on(kvm, "mmu.c:kvm_mmu_hugepage_adjust:pfn", (fault.gfn ^ fault.pfn) & mask != 0)
    fault.pfn &= ~mask


def disallowed_hugepage_adjust(kvm: Kvm, fault: PageFault, spte: int, level: int) -> None:
    """Go one level down where a table stands in the way of an NX huge page, from 6.2 on one by a fetch."""
    if level > 1 and level == fault.goal_level and is_shadow_present_pte(spte) and not is_large_pte(spte):
        if kvm.behaviours.nx_huge_page_is_tagged and not kvm.pages[spte_to_pfn(spte)].lpage_disallowed:
            return
        mask = (1 << 9 * (level - 1)) - (1 << 9 * (level - 2))
        fault.pfn |= fault.gfn & mask
        fault.goal_level -= 1


def trace_spte_requested(kvm: Kvm, fault: PageFault) -> None:
    """Report what the fault wants mapped."""
    emit = kvm.emit
    if emit is not None:
        offset = fault.gfn & ((1 << 9 * (fault.goal_level - 1)) - 1)
        emit(ev.kvm_mmu_spte_requested(fault.gfn, fault.pfn | offset, fault.goal_level))
