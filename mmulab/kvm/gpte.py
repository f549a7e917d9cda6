"""Guest entries as KVM reads them one at a time, outside a walk.

Source: Linux 6.1 ``arch/x86/kvm/mmu/paging_tmpl.h`` (``FNAME(gpte_access)``,
``FNAME(prefetch_invalid_gpte)``, ``FNAME(prefetch_gpte)``, ``FNAME(get_level1_sp_gpa)``).
"""

from __future__ import annotations

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.dirty import gfn_to_memslot_dirty_bitmap
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.rmap import drop_spte
from mmulab.kvm.set_spte import mmu_set_spte
from mmulab.kvm.state import Kvm, Vcpu, spte_index
from mmulab.x86.mode import (
    PT64_NX_SHIFT,
    PT_BASE_ADDR_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    VMX_EPT_RWX_MASK,
)
from mmulab.x86.paging import Paging
from mmulab.x86.pferr import ACC_EXEC_MASK, ACC_WRITE_MASK
from mmulab.x86.walk import EPT_ACCESS

PTE_PREFETCH_NUM = 8
SPTE_LEVEL_BITS = 9


def gpte_access(paging: Paging, gpte: int) -> int:
    """Return the rights that an entry grants (``ACC_*``)."""
    if paging.ept:
        return EPT_ACCESS[gpte & VMX_EPT_RWX_MASK]
    return gpte & (PT_WRITABLE_MASK | PT_USER_MASK) | (~gpte >> PT64_NX_SHIFT & ACC_EXEC_MASK)


def gpte_to_gfn(gpte: int) -> int:
    """Return the gfn in an entry of a level-1 table."""
    return (gpte & PT_BASE_ADDR_MASK) >> 12


def protect_clean_gpte(paging: Paging, access: int, gpte: int) -> int:
    """Take W from the rights of a clean entry, so that its first write is seen."""
    if paging.have_ad and not gpte & paging.dirty_mask:
        access &= ~ACC_WRITE_MASK
    return access


def get_level1_sp_gpa(sp: ShadowPage, entry_bytes: int) -> int:
    """Return the gpa of the guest entry that entry 0 of `sp` shadows.

    Of a 4-byte table the page shadows one half, which its quadrant says.
    """
    offset = sp.quadrant << SPTE_LEVEL_BITS if entry_bytes == 4 else 0
    return (sp.gfn << 12) + offset * entry_bytes


def kvm_get_level1_sp_gpa(kvm: Kvm, sp: ShadowPage, entry_bytes: int) -> int:
    """Return the same of a page of the VM, which must be of level 1."""
    warn_on(kvm, "paging_tmpl.h:get_level1_sp_gpa:level", sp.level != 1)
    return get_level1_sp_gpa(sp, entry_bytes)


def prefetch_invalid_gpte(vcpu: Vcpu, sptep: int, gpte: int, paging: Paging) -> bool:
    """Drop the spte if its guest entry is no longer usable; return whether it was not."""
    usable = gpte & paging.present_mask
    if paging.have_ad and not gpte & paging.accessed_mask:
        usable = 0
    if usable and (gpte & paging.rsvd[gpte >> 7 & 1][1] or paging.bad_mt_xwr >> (gpte & 63) & 1):
        usable = 0
    if not usable:
        drop_spte(vcpu.kvm, sptep)
    return not usable


def prefetch_gpte(vcpu: Vcpu, sp: ShadowPage, sptep: int, gpte: int, *, no_dirty_log: bool) -> bool:
    """Map what `gpte` says at `sptep` without a fault; return whether the next may be tried too."""
    paging = vcpu.mmu.paging
    assert paging is not None
    if prefetch_invalid_gpte(vcpu, sptep, gpte, paging):
        return False
    gfn = gpte_to_gfn(gpte)
    access = protect_clean_gpte(paging, sp.access & gpte_access(paging, gpte), gpte)
    slot = gfn_to_memslot_dirty_bitmap(vcpu, gfn, no_dirty_log=no_dirty_log and bool(access & ACC_WRITE_MASK))
    # gfn_to_pfn_memslot_atomic asks for a writable page, which a read-only slot does not give.
    if slot is None or slot.readonly or vcpu.kvm.memory.is_special(slot.frame(gfn)):
        return False
    mmu_set_spte(vcpu, slot, sptep, access, gfn, slot.frame(gfn), None)
    if vcpu.kvm.sync.follows_leaves:
        vcpu.kvm.sync.leaf_set(vcpu, sp, spte_index(sptep), gpte)
    return True
