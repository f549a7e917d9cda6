"""Bringing an upper-level page up to date that was out of sync, as no Linux lets one be."""

from __future__ import annotations

from mmulab.kvm.gpte import gpte_access
from mmulab.kvm.guest_walk import kvm_read_guest
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import SPTE_ENT_PER_PAGE, is_last_spte, is_shadow_present_pte, spte_to_pfn
from mmulab.kvm.state import Vcpu
from mmulab.kvm.zap import mmu_page_zap_pte
from mmulab.x86.mode import PT_BASE_ADDR_MASK


def sync_links(vcpu: Vcpu, sp: ShadowPage) -> bool:
    """Drop every entry that no longer leads to the table of the guest's; return whether a flush is needed.

    What has no table of the guest's below it, a huge page or the direct pages of one, is
    dropped too: nothing is kept of the guest's entry to compare with.
    """
    kvm, paging = vcpu.kvm, vcpu.mmu.paging
    kvm.sync_stat["syncs"] += 1
    base, flush = sp.frame * SPTE_ENT_PER_PAGE, False
    for index, spte in enumerate(kvm.memory.words[base : base + SPTE_ENT_PER_PAGE].tolist()):
        if spte == kvm.fmt.nonpresent:
            continue
        kvm.sync_stat["entries"] += 1
        child = None
        if is_shadow_present_pte(spte) and not is_last_spte(spte, sp.level):
            child = kvm.pages[spte_to_pfn(spte)]
        gpte = None
        if child is not None and child.has_gptes and paging is not None:
            # Two entries of a shadow directory stand for one of 4 bytes.
            width = paging.mode.entry_bytes
            at = index // 2 + sp.quadrant * 256 if sp.has_4_byte_gpte else index
            gpte = kvm_read_guest(vcpu, (sp.gfn << 12) + at * width, width)
        same = False
        if gpte is not None and child is not None and paging is not None:
            usable = gpte & paging.present_mask and not gpte & paging.rsvd[gpte >> 7 & 1][sp.level]
            leads = (gpte & PT_BASE_ADDR_MASK) >> 12 == child.gfn and not (sp.level == 2 and gpte & 1 << 7)
            same = bool(usable) and leads and sp.access & gpte_access(paging, gpte) == child.access
        if not same:
            mmu_page_zap_pte(kvm, sp, (base + index) << 3, None)
            flush = True
    return flush
