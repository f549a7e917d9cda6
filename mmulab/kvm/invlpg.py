"""INVLPG: forgetting one translation in the shadow tables.

Source: Linux 6.1 ``arch/x86/kvm/mmu/paging_tmpl.h`` (``FNAME(invlpg)``), ``mmu.c``
(``kvm_mmu_invalidate_gva``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.flush import kvm_flush_remote_tlbs_sptep
from mmulab.kvm.gpte import kvm_get_level1_sp_gpa, prefetch_gpte
from mmulab.kvm.guest_walk import kvm_read_guest_atomic
from mmulab.kvm.mmio import vcpu_clear_mmio_info
from mmulab.kvm.mmu import INVALID_PAGE, SHADOWING, Mmu
from mmulab.kvm.shadow_page import ShadowWalk
from mmulab.kvm.spte import is_last_spte, is_shadow_present_pte
from mmulab.kvm.state import Vcpu, spte_at, spte_index, sptep_to_sp
from mmulab.kvm.sync.page import kvm_sync_spte
from mmulab.kvm.trace import trace
from mmulab.kvm.zap import mmu_page_zap_pte
from mmulab.x86.mode import is_canonical, paging_mode


def invlpg(vcpu: Vcpu, gva: int, root_hpa: int) -> None:
    """Refresh what `root_hpa` says about `gva`, if its page is out of sync."""
    kvm = vcpu.kvm
    vcpu_clear_mmio_info(vcpu, gva)
    if warn_on(kvm, "paging_tmpl.h:invlpg:root", root_hpa == INVALID_PAGE):
        return
    kvm.sync.invalidating(vcpu, gva, root_hpa)
    if kvm.behaviours.invalidate_syncs_in_place:
        _invalidate_in_place(vcpu, gva, root_hpa)
        return
    it = ShadowWalk(vcpu, root_hpa, gva)
    while it.okay():
        sp = sptep_to_sp(kvm, it.sptep)
        old = spte_at(kvm, it.sptep)
        if is_last_spte(old, it.level):
            if not sp.unsync:
                return
            _invlpg_leaf(vcpu, it.sptep, old)
        if not kvm.sync.may_hide_below(sp):
            return
        it.next()


def _invalidate_in_place(vcpu: Vcpu, gva: int, root_hpa: int) -> None:
    """Sync the sptes of unsync pages on the way to `gva` (``__kvm_mmu_invalidate_addr``, 6.12)."""
    kvm = vcpu.kvm
    it = ShadowWalk(vcpu, root_hpa, gva)
    while it.okay():
        sp = sptep_to_sp(kvm, it.sptep)
        if sp.unsync:
            ret = kvm_sync_spte(vcpu, sp, spte_index(it.sptep))
            if ret < 0:
                mmu_page_zap_pte(kvm, sp, it.sptep, None)
            if ret:
                kvm_flush_remote_tlbs_sptep(kvm, it.sptep)
        if not kvm.sync.may_hide_below(sp):
            return
        it.next()


def _invlpg_leaf(vcpu: Vcpu, sptep: int, old: int) -> None:
    kvm = vcpu.kvm
    sp = sptep_to_sp(kvm, sptep)
    paging = vcpu.mmu.paging
    assert paging is not None
    width = paging.mode.entry_bytes
    gpa = kvm_get_level1_sp_gpa(kvm, sp, width) + spte_index(sptep) * width
    mmu_page_zap_pte(kvm, sp, sptep, None)
    if is_shadow_present_pte(old):
        kvm_flush_remote_tlbs_sptep(kvm, sptep)
    gpte = kvm_read_guest_atomic(vcpu, gpa, width)
    kvm.sync_stat["entries"] += 1
    if gpte is not None:
        prefetch_gpte(vcpu, sp, sptep, gpte, no_dirty_log=False)


def kvm_mmu_invalidate_gva(vcpu: Vcpu, mmu: Mmu, gva: int, root_hpa: int) -> None:
    """Refresh `gva` below one root, or, with `root_hpa` -1, below all that are kept.

    INVLPG of a non-canonical address does nothing (SDM 2, INVLPG).
    """
    if mmu is not vcpu.guest_mmu and not is_canonical(gva, paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer)):
        return
    if mmu.kind not in SHADOWING:
        return
    if root_hpa != INVALID_PAGE:
        invlpg(vcpu, gva, root_hpa)
        return
    invlpg(vcpu, gva, mmu.root_hpa)
    for _, hpa in mmu.prev_roots:
        if hpa != INVALID_PAGE:
            invlpg(vcpu, gva, hpa)


def kvm_mmu_invlpg(vcpu: Vcpu, gva: int) -> None:
    """Serve the guest's INVLPG."""
    trace(vcpu.kvm, ev.kvm_mmu_invlpg, gva)
    kvm_mmu_invalidate_gva(vcpu, vcpu.walk_mmu, gva, INVALID_PAGE)
    vcpu.stat["invlpg"] += 1
