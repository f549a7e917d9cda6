"""Page faults and prefetch where KVM shadows guest tables.

Source: Linux 6.1 ``arch/x86/kvm/mmu/paging_tmpl.h`` (``FNAME(page_fault)``,
``FNAME(fetch)``, ``FNAME(pte_prefetch)``).
"""

from __future__ import annotations

import errno

from mmulab.kvm.assertions import warn_on
from mmulab.kvm.fault import (
    handle_abnormal_pfn,
    is_stale_after_reclaim,
    kvm_faultin_pfn,
    page_fault_handle_page_track,
    shadow_page_table_clear_flood,
)
from mmulab.kvm.gpte import PTE_PREFETCH_NUM, prefetch_gpte
from mmulab.kvm.guest_walk import kvm_read_guest, walk_addr_generic
from mmulab.kvm.hugepage import (
    disallowed_hugepage_adjust,
    kvm_mmu_hugepage_adjust,
    trace_spte_requested,
)
from mmulab.kvm.inject import kvm_inject_emulated_page_fault
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.kvm.mmu_internal import KVM_PAGES_PER_HPAGE, PageFault, RetPf, gfn_round_for_level
from mmulab.kvm.nx_huge_page import account_nx_huge_page
from mmulab.kvm.prefetch import direct_pte_prefetch_group
from mmulab.kvm.roles.root_strategy import top_table_level
from mmulab.kvm.set_spte import mmu_set_spte
from mmulab.kvm.shadow_page import (
    ShadowWalk,
    is_dummy_root,
    kvm_mmu_get_child_sp,
    link_shadow_page,
    validate_direct_spte,
)
from mmulab.kvm.spte import is_shadow_present_pte
from mmulab.kvm.state import KvmRunError, Request, Vcpu, spte_at, spte_index, sptep_to_sp, vcpu_memslots
from mmulab.x86.pferr import ACC_ALL, ACC_EXEC_MASK, ACC_USER_MASK, ACC_WRITE_MASK, PFERR_RSVD_MASK
from mmulab.x86.walk import Walk


def page_fault(vcpu: Vcpu, fault: PageFault) -> RetPf:
    """Handle a fault on shadow tables: walk the guest's, then map what they say.

    A fault of the guest's own goes back to the guest.
    """
    warn_on(vcpu.kvm, "paging_tmpl.h:page_fault:tdp", fault.is_tdp)
    access = fault.error_code & 0xFFFFFFFF & ~PFERR_RSVD_MASK
    found = walk_addr_generic(vcpu, vcpu.mmu, fault.addr, access)
    if found.fault is not None:
        if not fault.prefetch:
            kvm_inject_emulated_page_fault(vcpu, found.fault)
        return RetPf.RETRY
    gw = found.walk
    fault.gfn = gw.pa >> 12
    fault.slot = vcpu_memslots(vcpu).lookup(fault.gfn)
    if page_fault_handle_page_track(vcpu, fault):
        shadow_page_table_clear_flood(vcpu, fault.addr)
        return RetPf.WRITE_PROTECTED
    fault.max_level = gw.level
    if vcpu.kvm.behaviours.is_self_change_mapping and _is_self_change_mapping(vcpu, gw, fault):
        fault.max_level = 1
    ret = kvm_faultin_pfn(vcpu, fault)
    if ret != RetPf.CONTINUE:
        return ret
    ret = handle_abnormal_pfn(vcpu, fault, gw.pte_access)
    if ret != RetPf.CONTINUE:
        return ret
    if not vcpu.kvm.bugs.B15:
        _allow_supervisor_write(vcpu, gw, fault)
    if is_stale_after_reclaim(vcpu):
        return RetPf.RETRY
    return fetch(vcpu, fault, gw)


def _allow_supervisor_write(vcpu: Vcpu, gw: Walk, fault: PageFault) -> None:
    """With CR0.WP=0 turn a read-only user page into a supervisor page that may be written.

    With SMEP it must not be executable then.
    """
    role = vcpu.mmu.cpu_role
    if (
        fault.write
        and not gw.pte_access & ACC_WRITE_MASK
        and not role.cr0_wp
        and not fault.user
        and fault.slot is not None
    ):
        gw.pte_access = (gw.pte_access | ACC_WRITE_MASK) & ~ACC_USER_MASK
        if role.cr4_smep:
            gw.pte_access &= ~ACC_EXEC_MASK


def _is_self_change_mapping(vcpu: Vcpu, gw: Walk, fault: PageFault) -> bool:
    """Whether the guest may write, through this mapping, a table used to translate it."""
    if not gw.pte_access & ACC_WRITE_MASK and (vcpu.mmu.cpu_role.cr0_wp or fault.user):
        return False
    gfn = gw.pa >> 12
    mask = -KVM_PAGES_PER_HPAGE[gw.level]
    changed = False
    for level in range(gw.level, gw.max_level + 1):
        difference = gfn ^ (gw.entry_addr[level] >> 12)
        changed |= not difference & mask
        fault.write_fault_to_shadow_pgtable |= difference == 0
    return changed


def _gpte_changed(vcpu: Vcpu, gw: Walk, level: int) -> bool:
    """Whether the guest entry of `level` is no longer what the walk read."""
    paging = vcpu.mmu.paging
    assert paging is not None
    entry = kvm_read_guest(vcpu, gw.entry_addr[level], paging.mode.entry_bytes)
    return entry != gw.ptes[level]


def fetch(vcpu: Vcpu, fault: PageFault, gw: Walk) -> RetPf:
    """Build the shadow path for a walk that succeeded, and set its leaf.

    First the levels that shadow guest tables, then, where the guest's page is
    larger than the host's, direct levels.

    Raises
    ------
    KvmRunError
        The tables do not go so far down.
    """
    kvm = vcpu.kvm
    warn_on(kvm, "paging_tmpl.h:fetch:gfn", gw.pa >> 12 != fault.gfn)
    if _gpte_changed(vcpu, gw, top_table_level(vcpu.mmu.cpu_role)):
        return RetPf.RETRY
    if is_dummy_root(kvm, vcpu.mmu.root_hpa):  # a memslot came since: take a real root
        vcpu.requests |= Request.MMU_FREE_OBSOLETE_ROOTS
        return RetPf.RETRY
    if warn_on(kvm, "paging_tmpl.h:fetch:root", vcpu.mmu.root_hpa == INVALID_PAGE):
        return RetPf.RETRY
    pt_access = gw.pt_access
    checks_here = not kvm.behaviours.is_self_change_mapping
    it = ShadowWalk(vcpu, vcpu.mmu.root_hpa, fault.addr)
    while it.okay():
        if it.level == gw.level and not checks_here:
            break
        sptep_to_sp(kvm, it.sptep).write_flooding_count = 0
        if it.level == gw.level:
            break
        child_level = it.level - 1
        # Above the guest's highest table the page below is still its portal.
        above = child_level > gw.max_level
        gfn = sptep_to_sp(kvm, it.sptep).gfn if above else gw.entry_addr[child_level] >> 12
        access = ACC_ALL if above else pt_access[gw.level if kvm.bugs.B13 else child_level]
        sp = kvm_mmu_get_child_sp(vcpu, it.sptep, gfn, direct=False, access=access, addr=fault.addr)
        if sp is not None and not kvm.bugs.B24:
            kvm.sync.linking(vcpu, sp)
        if not above and _gpte_changed(vcpu, gw, child_level):
            return RetPf.RETRY
        if sp is not None:
            link_shadow_page(kvm, it.sptep, sp)
        if checks_here and fault.write and gfn == fault.gfn:
            fault.write_fault_to_shadow_pgtable = True
        it.next()
    kvm_mmu_hugepage_adjust(kvm, fault)
    trace_spte_requested(kvm, fault)
    direct_access = pt_access[gw.level] if kvm.bugs.B14 else gw.pte_access
    while it.okay():
        if not checks_here:
            sptep_to_sp(kvm, it.sptep).write_flooding_count = 0
        if fault.nx_huge_page_workaround_enabled:
            disallowed_hugepage_adjust(kvm, fault, spte_at(kvm, it.sptep), it.level)
        if it.level == fault.goal_level:
            break
        validate_direct_spte(kvm, it.sptep, direct_access)
        base_gfn = gfn_round_for_level(fault.gfn, it.level)
        sp = kvm_mmu_get_child_sp(
            vcpu, it.sptep, base_gfn, direct=True, access=direct_access, addr=fault.addr
        )
        if sp is not None:
            link_shadow_page(kvm, it.sptep, sp)
            if fault.huge_page_disallowed:
                account_nx_huge_page(kvm, sp, possible=fault.req_level >= it.level)
        it.next()
    if warn_on(kvm, "paging_tmpl.h:fetch:level", it.level != fault.goal_level):
        raise KvmRunError(errno.EFAULT)
    if kvm.bugs.B15:
        _allow_supervisor_write(vcpu, gw, fault)
    base_gfn = gfn_round_for_level(fault.gfn, it.level)
    ret = mmu_set_spte(vcpu, fault.slot, it.sptep, gw.pte_access, base_gfn, fault.pfn, fault)
    if kvm.sync.follows_leaves and it.level == gw.level == 1:
        kvm.sync.leaf_set(vcpu, sptep_to_sp(kvm, it.sptep), spte_index(it.sptep), gw.ptes[1])
    if ret != RetPf.SPURIOUS:
        pte_prefetch(vcpu, gw, it.sptep)
    return ret


def pte_prefetch(vcpu: Vcpu, gw: Walk, sptep: int) -> None:
    """Map the neighbours of an entry that was just set: its group of eight, as far as usable."""
    kvm = vcpu.kvm
    sp = sptep_to_sp(kvm, sptep)
    if sp.level > 1 or kvm.mmu_invalidate_in_progress:
        return
    if sp.direct:
        direct_pte_prefetch_group(vcpu, sp, sptep)
        return
    paging = vcpu.mmu.paging
    assert paging is not None
    width = paging.mode.entry_bytes
    group = gw.entry_addr[1] & ~(PTE_PREFETCH_NUM * width - 1)
    first = sptep & ~(PTE_PREFETCH_NUM * 8 - 1)
    for i in range(PTE_PREFETCH_NUM):
        neighbour = first + 8 * i
        if neighbour == sptep or is_shadow_present_pte(spte_at(kvm, neighbour)):
            continue
        gpte = kvm_read_guest(vcpu, group + i * width, width)
        assert gpte is not None
        if not prefetch_gpte(vcpu, sp, neighbour, gpte, no_dirty_log=True):
            break
