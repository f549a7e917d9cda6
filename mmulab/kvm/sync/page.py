"""Bringing an unsync page up to date.

Source: Linux 6.1 ``arch/x86/kvm/mmu/paging_tmpl.h`` (``FNAME(sync_page)``), ``mmu.c``
(``kvm_sync_page``).
"""

from __future__ import annotations

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.flush import kvm_flush_remote_tlbs
from mmulab.kvm.gpte import (
    gpte_access,
    gpte_to_gfn,
    kvm_get_level1_sp_gpa,
    prefetch_invalid_gpte,
    protect_clean_gpte,
)
from mmulab.kvm.guest_walk import kvm_read_guest_atomic
from mmulab.kvm.mmio import sync_mmio_spte
from mmulab.kvm.mmu import SHADOWING
from mmulab.kvm.mmu_page import ShadowPage, kvm_mmu_page_get_gfn
from mmulab.kvm.rmap import (
    drop_spte,
    kvm_mmu_page_get_access,
    kvm_mmu_page_set_access,
    kvm_mmu_slot_gfn_write_protect,
    mmu_spte_update,
)
from mmulab.kvm.set_spte import make_spte
from mmulab.kvm.spte import SPTE_ENT_PER_PAGE, spte_to_pfn
from mmulab.kvm.state import Vcpu, spte_at, vcpu_memslots
from mmulab.kvm.zap import InvalidList, kvm_mmu_prepare_zap_page
from mmulab.x86.paging import Paging


def sync_page(vcpu: Vcpu, sp: ShadowPage) -> int:
    """Compare every spte of `sp` with the guest's entry and mend it.

    Returns
    -------
    int
        Below 0: the page must be zapped. 0: synced. Above 0: synced, and a
        flush is needed.
    """
    mmu = vcpu.mmu
    paging = mmu.paging
    shadows = mmu.kind in SHADOWING
    if not shadows or paging is None:
        return -1
    design = vcpu.kvm.config.kernel.design
    mismatch = (sp.role ^ mmu.root_role) & design.sync_mask
    if vcpu.kvm.bugs.B27:  # only the size of an entry was looked at
        mismatch &= design.layout.mask.get("has_4_byte_gpte", 0)
    if warn_on(vcpu.kvm, "paging_tmpl.h:sync_page:role", bool(sp.direct or mismatch)):
        return -1
    width = paging.mode.entry_bytes
    first = kvm_get_level1_sp_gpa(vcpu.kvm, sp, width)
    stat = vcpu.kvm.sync_stat
    stat["syncs"] += 1
    flush = False
    for index in vcpu.kvm.memory.words_but(sp.frame, vcpu.kvm.fmt.nonpresent):
        gpte = kvm_read_guest_atomic(vcpu, first + index * width, width)
        if gpte is None:
            return -1
        stat["entries"] += 1
        flush |= _sync_spte(vcpu, sp, index, gpte, paging)
    return int(flush)


def kvm_sync_spte(vcpu: Vcpu, sp: ShadowPage, index: int) -> int:
    """Mend one spte; returns as :func:`sync_page` does. One that is empty stays so."""
    paging = vcpu.mmu.paging
    if vcpu.kvm.memory.words[sp.frame * SPTE_ENT_PER_PAGE + index] == vcpu.kvm.fmt.nonpresent:
        return 0
    assert paging is not None
    vcpu.kvm.sync_stat["entries"] += 1
    width = paging.mode.entry_bytes
    gpte = kvm_read_guest_atomic(vcpu, kvm_get_level1_sp_gpa(vcpu.kvm, sp, width) + index * width, width)
    return -1 if gpte is None else int(_sync_spte(vcpu, sp, index, gpte, paging))


def _sync_spte(vcpu: Vcpu, sp: ShadowPage, index: int, gpte: int, paging: Paging) -> bool:
    """Mend one spte; return whether a flush is needed."""
    kvm = vcpu.kvm
    sptep = (sp.frame * SPTE_ENT_PER_PAGE + index) << 3
    if prefetch_invalid_gpte(vcpu, sptep, gpte, paging):
        return not kvm.bugs.B28
    gfn = gpte_to_gfn(gpte)
    access = protect_clean_gpte(paging, sp.access & gpte_access(paging, gpte), gpte)
    if sync_mmio_spte(vcpu, sptep, gfn, access):
        return False
    invisible = access | kvm.fmt.present == kvm.fmt.nonpresent
    if invisible or gfn != kvm_mmu_page_get_gfn(sp, index):
        drop_spte(kvm, sptep)
        return not kvm.bugs.B28
    if kvm.sync.follows_leaves:
        kvm.sync.leaf_set(vcpu, sp, index, gpte)
    if kvm.behaviours.sync_keeps_clean_sptes and access == kvm_mmu_page_get_access(sp, index):
        return False
    kvm_mmu_page_set_access(kvm, sp, index, access)
    spte = spte_at(kvm, sptep)
    slot = vcpu_memslots(vcpu).lookup(gfn)
    assert slot is not None
    new, _ = make_spte(
        vcpu,
        sp,
        slot,
        access,
        gfn,
        spte_to_pfn(spte),
        spte,
        prefetch=True,
        can_unsync=False,
        host_writable=bool(spte & kvm.fmt.host_writable),
    )
    return mmu_spte_update(kvm, sptep, new)


def kvm_sync_page(vcpu: Vcpu, sp: ShadowPage, invalid: InvalidList) -> int:
    """Sync `sp`, or zap it if it cannot be; returns what :func:`sync_page` returned."""
    ret = sync_page(vcpu, sp)
    if ret < 0:
        kvm_mmu_prepare_zap_page(vcpu.kvm, sp, invalid)
    return ret


def kvm_vcpu_write_protect_gfn(vcpu: Vcpu, gfn: int) -> bool:
    """Write-protect a guest table before it is synced; return whether a flush is needed."""
    slot = vcpu_memslots(vcpu).lookup(gfn)
    assert slot is not None
    return kvm_mmu_slot_gfn_write_protect(vcpu.kvm, slot, gfn, 1)


def sync_transiently(vcpu: Vcpu, sp: ShadowPage, invalid: InvalidList) -> bool:
    """Refresh an unsync page that is about to be linked, leaving it unsync.

    Returns
    -------
    bool
        False if it had to be zapped.
    """
    ret = kvm_sync_page(vcpu, sp, invalid)
    if ret >= 0:
        warn_on(vcpu.kvm, "mmu.c:kvm_mmu_find_shadow_page:invalid_list", bool(invalid))
    if ret > 0:
        kvm_flush_remote_tlbs(vcpu.kvm)
    return ret >= 0
