"""Making leaf sptes and putting them in place.

Source: Linux 6.1 ``arch/x86/kvm/mmu/spte.c`` (``make_spte``), ``mmu.c``
(``mmu_set_spte``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.dirty import kvm_slot_dirty_track_enabled, mark_page_dirty_in_slot
from mmulab.kvm.flush import kvm_flush_remote_tlbs_gfn
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmio import mark_mmio_spte
from mmulab.kvm.mmu_internal import KVM_PFN_NOSLOT, PageFault, RetPf
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.nx_huge_page import is_nx_huge_page_enabled
from mmulab.kvm.rmap import (
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
from mmulab.kvm.state import Kvm, Vcpu, spte_at, spte_index, sptep_to_sp
from mmulab.kvm.trace import trace
from mmulab.kvm.zap import drop_parent_pte
from mmulab.kvm.zero_check import is_rsvd_spte, zero_check
from mmulab.x86.mode import PT_PAGE_SIZE_MASK, PT_PRESENT_MASK, PT_WRITABLE_MASK
from mmulab.x86.pferr import ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK


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

    The parameters are the kernel's, in its order.

    Parameters
    ----------
    sp : ShadowPage
        Its level is the size of the page mapped.
    slot : KvmMemslot
        Of `gfn`.
    pte_access : int
        What the guest's tables allow (``ACC_*``).
    gfn, pfn : int
        First ones of the page.
    old_spte : int
        What stands in the entry's place.
    prefetch : bool
        Nobody has accessed the page yet, so the entry is made an old one.
    can_unsync : bool
        Shadow pages of `gfn`, if it is a guest table, may go out of sync; else the entry stays read-only.
    host_writable : bool
        The host's mapping allows writes.

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
    sp = sptep_to_sp(kvm, sptep)
    level = sp.level
    old = spte_at(kvm, sptep)
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
        spte_at(kvm, sptep),
        prefetch=fault is None or fault.prefetch,
        can_unsync=True,
        host_writable=fault is None or fault.map_writable,
    )
    ret = RetPf.FIXED
    if spte_at(kvm, sptep) == spte:
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
    fmt = kvm.fmt
    readable = bool(fmt.present or spte & PT_PRESENT_MASK)
    user = int(spte & fmt.user != 0) if fmt.user else -1
    executable = is_executable_pte(fmt, spte)
    trace(kvm, ev.kvm_mmu_set_spte, gfn, spte, level, sptep, readable, executable, user)
