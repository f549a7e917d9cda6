"""Roots: allocating them, keeping the last few, syncing and freeing them.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_load``,
``mmu_alloc_shadow_roots``, ``kvm_mmu_new_pgd``, ``kvm_mmu_free_roots``,
``kvm_mmu_sync_roots``).
"""

from __future__ import annotations

from errno import EFAULT, EIO

from mmulab import events as ev
from mmulab.kvm.assertions import warn_on
from mmulab.kvm.context import kvm_init_mmu
from mmulab.kvm.expanded_roots import free_one_off_page, mmu_alloc_expanded_root
from mmulab.kvm.flush import flush_tlb
from mmulab.kvm.free_roots_lock import MmuLockHeld
from mmulab.kvm.guest_walk import kvm_mmu_get_guest_pgd, kvm_mmu_get_pdptrs
from mmulab.kvm.mmio import vcpu_clear_mmio_info
from mmulab.kvm.mmu import (
    INVALID_PAE_ROOT,
    INVALID_PAGE,
    KVM_MMU_NUM_PREV_ROOTS,
    KVM_MMU_ROOT_CURRENT,
    KVM_MMU_ROOTS_ALL,
    KVM_MMU_ROOTS_ALL_4_BITS,
    PT32_ROOT_LEVEL,
    PT32E_ROOT_LEVEL,
    PT64_ROOT_4LEVEL,
    PT64_ROOT_5LEVEL,
    Mmu,
    RootInfo,
    root_previous,
)
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.roles.design import role_facts, role_word
from mmulab.kvm.shadow_page import is_dummy_root, kvm_mmu_get_shadow_page
from mmulab.kvm.state import (
    MMIO_GVA_ANY,
    Kvm,
    KvmRunError,
    Request,
    Vcpu,
    context_name,
    is_obsolete_sp,
    to_shadow_page,
    vcpu_memslots,
)
from mmulab.kvm.tdp_mmu import kvm_tdp_mmu_get_vcpu_root, kvm_tdp_mmu_put_root
from mmulab.kvm.trace import trace
from mmulab.kvm.zap import (
    InvalidList,
    kvm_mmu_commit_zap_page,
    kvm_mmu_prepare_zap_page,
    make_mmu_pages_available,
)
from mmulab.x86.mode import (
    PT_ACCESSED_MASK,
    PT_BASE_ADDR_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
)


def mmu_check_root(vcpu: Vcpu, root_gfn: int) -> bool:
    """Whether the guest's root lies in memory; if not, the guest gets a triple fault."""
    if _is_visible_gfn(vcpu, root_gfn):
        return True
    vcpu.requests |= Request.TRIPLE_FAULT
    return False


def _is_visible_gfn(vcpu: Vcpu, gfn: int) -> bool:
    slot = vcpu_memslots(vcpu).lookup(gfn)
    return slot is not None and not slot.invalid


def kvm_mmu_get_dummy_root(kvm: Kvm) -> int:
    """Return the host-physical address of the page of zeros."""
    if not kvm.dummy_root:
        kvm.dummy_root = kvm.memory.alloc_frame()
    return kvm.dummy_root << 12


def mmu_alloc_root(vcpu: Vcpu, gfn: int, quadrant: int, level: int) -> int:
    """Take a root page into use and return the host-physical address of its table."""
    mmu, kvm = vcpu.mmu, vcpu.kvm
    assert mmu.root_facts is not None
    facts = mmu.root_facts._replace(level=level, quadrant=quadrant)
    four = facts.has_4_byte_gpte
    warn_on(kvm, "mmu.c:mmu_alloc_root:quadrant", quadrant != 0 and not four)
    warn_on(kvm, "mmu.c:mmu_alloc_root:direct", facts.direct and four)
    role = role_word(kvm.config.kernel.design, facts, mmu.cpu_role)
    sp = kvm_mmu_get_shadow_page(kvm, vcpu, gfn, role)
    sp.root_count += 1
    return sp.frame << 12


def _set_pae_root(vcpu: Vcpu, index: int, entry: int) -> None:
    vcpu.kvm.memory.store64((vcpu.mmu.pae_root << 12) + 8 * index, entry)


def pae_root_entry(kvm: Kvm, mmu: Mmu, index: int) -> int:
    """Return entry `index` of the PAE root (0: invalid)."""
    return kvm.memory.words[mmu.pae_root * 512 + index]


def mmu_alloc_direct_roots(vcpu: Vcpu) -> None:
    """Allocate the roots of a direct map: one page, or four for a PAE host table."""
    mmu = vcpu.mmu
    make_mmu_pages_available(vcpu)
    if vcpu.kvm.config.uses_tdp_mmu:
        mmu.root_hpa = kvm_tdp_mmu_get_vcpu_root(vcpu.kvm, mmu.root_role)
    elif mmu.root_level >= PT64_ROOT_4LEVEL:
        mmu.root_hpa = mmu_alloc_root(vcpu, 0, 0, mmu.root_level)
    elif vcpu.kvm.config.kernel.root_strategy.shadow_pages:
        mmu.root_hpa = mmu_alloc_expanded_root(vcpu, 0, [])
    else:
        _alloc_direct_directories(vcpu)
    mmu.root_pgd = 0


def _alloc_direct_directories(vcpu: Vcpu) -> None:
    kvm, mmu = vcpu.kvm, vcpu.mmu
    if warn_on(kvm, "mmu.c:mmu_alloc_direct_roots:level", mmu.root_level != PT32E_ROOT_LEVEL):
        raise KvmRunError(EIO)
    if warn_on(kvm, "mmu.c:mmu_alloc_direct_roots:pae_root", mmu.pae_root < 0):
        raise KvmRunError(EIO)
    # With B34b each turn of the loop checks the gfn that the turn before left.
    checked = kvm.bugs.B34b and kvm.config.tdp and mmu.cpu_role.level == PT32_ROOT_LEVEL
    for i in range(4):
        used = pae_root_entry(kvm, mmu, i) != INVALID_PAE_ROOT
        warn_on(kvm, "mmu.c:mmu_alloc_direct_roots:entry", used)
        if checked and i and not mmu_check_root(vcpu, i - 1 << 18):
            return
        _set_pae_root(vcpu, i, mmu_alloc_root(vcpu, i << 18, 0, 2) | PT_PRESENT_MASK)
    mmu.root_hpa = mmu.pae_root << 12


def mmu_alloc_shadow_roots(vcpu: Vcpu) -> bool:
    """Allocate the roots that shadow the guest's: one page, or four under special roots.

    False if one of the guest's lies in no memory: the guest gets a triple fault.
    """
    kvm, mmu = vcpu.kvm, vcpu.mmu
    pgd = kvm_mmu_get_guest_pgd(vcpu, mmu)
    guest_level = mmu.cpu_role.level
    dummy = kvm.behaviours.dummy_root
    if dummy and not _is_visible_gfn(vcpu, _gfn(pgd)):
        mmu.root_hpa = kvm_mmu_get_dummy_root(kvm)
        return True
    if not dummy and not mmu_check_root(vcpu, _gfn(pgd)):
        return False
    pdptrs = kvm_mmu_get_pdptrs(vcpu, mmu) if guest_level == PT32E_ROOT_LEVEL else []
    if dummy:
        pdptrs = [p if p & PT_PRESENT_MASK and _is_visible_gfn(vcpu, _gfn(p)) else 0 for p in pdptrs]
    elif not all(mmu_check_root(vcpu, _gfn(p)) for p in pdptrs if p & PT_PRESENT_MASK):
        return False
    kvm.shadow_root_allocated = True
    make_mmu_pages_available(vcpu)
    if guest_level >= PT64_ROOT_4LEVEL:
        mmu.root_hpa = mmu_alloc_root(vcpu, _gfn(pgd), 0, mmu.root_level)
    elif kvm.config.kernel.root_strategy.shadow_pages:
        mmu.root_hpa = mmu_alloc_expanded_root(vcpu, _gfn(pgd), pdptrs)
    else:
        _alloc_quadrant_roots(vcpu, _gfn(pgd), pdptrs)
    mmu.root_pgd = pgd
    return True


def _gfn(entry: int) -> int:
    return (entry & PT_BASE_ADDR_MASK) >> 12


def _alloc_quadrant_roots(vcpu: Vcpu, root_gfn: int, pdptrs: list[int]) -> None:
    """Fill the PAE root: four quadrants of a 32-bit directory, or PAE's present directories."""
    kvm, mmu = vcpu.kvm, vcpu.mmu
    if warn_on(kvm, "mmu.c:mmu_alloc_shadow_roots:pae_root", mmu.pae_root < 0):
        raise KvmRunError(EIO)
    flags = PT_PRESENT_MASK
    top = mmu.pae_root
    if mmu.root_level >= PT64_ROOT_4LEVEL:
        flags |= PT_ACCESSED_MASK | PT_WRITABLE_MASK | PT_USER_MASK
        if warn_on(kvm, "mmu.c:mmu_alloc_shadow_roots:pml4_root", mmu.pml4_root < 0):
            raise KvmRunError(EIO)
        kvm.memory.store64(mmu.pml4_root << 12, mmu.pae_root << 12 | flags)
        top = mmu.pml4_root
        if mmu.root_level == PT64_ROOT_5LEVEL:
            if warn_on(kvm, "mmu.c:mmu_alloc_shadow_roots:pml5_root", mmu.pml5_root < 0):
                raise KvmRunError(EIO)
            kvm.memory.store64(mmu.pml5_root << 12, mmu.pml4_root << 12 | flags)
            top = mmu.pml5_root
    for i in range(4):
        used = pae_root_entry(kvm, mmu, i) != INVALID_PAE_ROOT
        warn_on(kvm, "mmu.c:mmu_alloc_shadow_roots:entry", used)
        gfn, quadrant = root_gfn, i
        if pdptrs:
            if not pdptrs[i] & PT_PRESENT_MASK:
                _set_pae_root(vcpu, i, INVALID_PAE_ROOT)
                continue
            gfn, quadrant = _gfn(pdptrs[i]), 0
        _set_pae_root(vcpu, i, mmu_alloc_root(vcpu, gfn, quadrant, 2) | flags)
    mmu.root_hpa = top << 12


def mmu_alloc_special_roots(vcpu: Vcpu) -> None:
    """Allocate the tables above the page directories where 4- or 5-level tables shadow smaller ones.

    Only nested paging does that: NPT12 in a 32-bit L1's format.
    """
    mmu = vcpu.mmu
    if vcpu.kvm.config.kernel.root_strategy.shadow_pages:
        return
    if mmu.direct or mmu.cpu_role.level >= PT64_ROOT_4LEVEL or mmu.root_level < PT64_ROOT_4LEVEL:
        return
    has_pml5 = mmu.root_level < PT64_ROOT_5LEVEL or mmu.pml5_root >= 0
    if mmu.pae_root >= 0 and mmu.pml4_root >= 0 and has_pml5:
        return
    some = mmu.pae_root >= 0 or mmu.pml4_root >= 0 or mmu.pml5_root >= 0
    if warn_on(vcpu.kvm, "mmu.c:mmu_alloc_special_roots:some", not vcpu.kvm.config.tdp or some):
        raise KvmRunError(EIO)
    if mmu.pae_root < 0:
        mmu.pae_root, mmu.pml4_root = vcpu.kvm.memory.alloc_frame(), vcpu.kvm.memory.alloc_frame()
    if mmu.root_level == PT64_ROOT_5LEVEL and mmu.pml5_root < 0:
        mmu.pml5_root = vcpu.kvm.memory.alloc_frame()


def kvm_mmu_load(vcpu: Vcpu) -> None:
    """Set up a root for the context in use, or ask for a triple fault if the guest has none.

    Raises
    ------
    KvmRunError
        There can be no root; ``KVM_RUN`` ends with the error.
    """
    trace(vcpu.kvm, ev.kvm_mmu_load)
    if not vcpu.mmu.root_level:
        raise KvmRunError(_errno_without_level(vcpu))
    mmu_alloc_special_roots(vcpu)
    if vcpu.mmu.direct:
        mmu_alloc_direct_roots(vcpu)
    elif not mmu_alloc_shadow_roots(vcpu):
        return
    kvm_mmu_sync_roots(vcpu)
    flush_tlb(vcpu, Request.TLB_FLUSH_CURRENT)


def _errno_without_level(vcpu: Vcpu) -> int:
    """Return how ``KVM_RUN`` fails if the context in use has a root role of level 0.

    The root is a page without a level, on which the first fault finds no entry for
    its address (a WARN of ``FNAME(fetch)``); if the CPU role has no level either,
    a PAE root is wanted, and there is none (a WARN of ``mmu_alloc_shadow_roots``).
    """
    if vcpu.mmu.cpu_role.level >= PT64_ROOT_4LEVEL:
        warn_on(vcpu.kvm, "paging_tmpl.h:fetch:level", True)
        return EFAULT
    warn_on(vcpu.kvm, "mmu.c:mmu_alloc_shadow_roots:pae_root", True)
    return EIO


def kvm_mmu_sync_roots(vcpu: Vcpu, *, everything: bool = False) -> None:
    """Sync every unsync page below the current root; `everything`: global ones need not be spared."""
    kvm, mmu = vcpu.kvm, vcpu.mmu
    trace(kvm, ev.kvm_mmu_sync_roots)
    if mmu.direct or mmu.root_hpa == INVALID_PAGE:
        return
    vcpu_clear_mmio_info(vcpu, MMIO_GVA_ANY)
    stat = kvm.sync_stat
    before = stat["syncs"]
    kvm.sync.sync_roots(vcpu, root_pages(kvm, mmu), everything=everything)
    if vcpu.cr3_written:
        vcpu.cr3_written = False
        stat["cr3_writes"] += 1
        stat["idle_cr3_writes"] += stat["syncs"] == before


def root_pages(kvm: Kvm, mmu: Mmu) -> list[ShadowPage]:
    """Return the pages of the current root: itself, or those that a special root points to."""
    root = to_shadow_page(kvm, mmu.root_hpa)
    if root is not None:
        return [root]
    if is_dummy_root(kvm, mmu.root_hpa):
        return []
    entries = [pae_root_entry(kvm, mmu, i) for i in range(4)]
    found = [to_shadow_page(kvm, entry) for entry in entries if entry != INVALID_PAE_ROOT]
    return [sp for sp in found if sp is not None]


def is_unsync_root(kvm: Kvm, root_hpa: int) -> bool:
    """Whether something below the root is out of sync."""
    if root_hpa == INVALID_PAGE:
        return False
    sp = to_shadow_page(kvm, root_hpa)
    if sp is None:
        warn_on(kvm, "mmu.c:is_unsync_root:sp", not is_dummy_root(kvm, root_hpa))
        return False
    return kvm.sync.is_unsync_root(kvm, sp)


def kvm_mmu_sync_prev_roots(vcpu: Vcpu) -> None:
    """Free the previous roots that have something unsync below."""
    trace(vcpu.kvm, ev.kvm_mmu_sync_prev_roots)
    roots = 0
    for i, (_, hpa) in enumerate(vcpu.mmu.prev_roots):
        if is_unsync_root(vcpu.kvm, hpa):
            roots |= root_previous(i)
    kvm_mmu_free_roots(vcpu.kvm, vcpu.mmu, roots)


def _free_root_page(kvm: Kvm, root_hpa: int, invalid: InvalidList) -> None:
    sp = to_shadow_page(kvm, root_hpa)
    if sp is None:
        warn_on(kvm, "mmu.c:mmu_free_root_page:sp", True)
        return
    if sp.tdp_mmu_page:
        kvm_tdp_mmu_put_root(kvm, sp)
        return
    sp.root_count -= 1
    if sp.one_off:
        free_one_off_page(kvm, sp)
        return
    if not sp.root_count and sp.invalid:
        kvm_mmu_prepare_zap_page(kvm, sp, invalid)


def kvm_mmu_roots_all(kvm: Kvm) -> int:
    """Return the mask that stands for all roots of a context."""
    return KVM_MMU_ROOTS_ALL_4_BITS if kvm.behaviours.roots_all_is_four_bits else KVM_MMU_ROOTS_ALL


def kvm_mmu_free_roots(kvm: Kvm, mmu: Mmu, roots_to_free: int) -> None:
    """Drop the context's hold on the roots of the mask; invalid ones nobody holds are freed."""
    trace(kvm, ev.kvm_mmu_free_roots, roots_to_free)
    if kvm.watch is not None:
        _watch_mmu_lock(kvm, mmu, roots_to_free)
    invalid: InvalidList = []
    for i in range(KVM_MMU_NUM_PREV_ROOTS):
        root = mmu.prev_roots[i]
        if roots_to_free & root_previous(i) and root.hpa != INVALID_PAGE:
            _free_root_page(kvm, root.hpa, invalid)
            mmu.prev_roots[i] = RootInfo(root.pgd)
    if roots_to_free & KVM_MMU_ROOT_CURRENT and mmu.root_hpa != INVALID_PAGE:
        if to_shadow_page(kvm, mmu.root_hpa) is not None:
            _free_root_page(kvm, mmu.root_hpa, invalid)
        elif not is_dummy_root(kvm, mmu.root_hpa):
            for i in range(4):
                entry = pae_root_entry(kvm, mmu, i)
                if entry != INVALID_PAE_ROOT:
                    _free_root_page(kvm, entry, invalid)
                    kvm.memory.store64((mmu.pae_root << 12) + 8 * i, INVALID_PAE_ROOT)
        mmu.root_hpa = INVALID_PAGE
        mmu.root_pgd = 0
    kvm_mmu_commit_zap_page(kvm, invalid)


def _watch_mmu_lock(kvm: Kvm, mmu: Mmu, roots_to_free: int) -> None:
    """Tell how the MMU lock is held for these roots; without any it is not taken."""
    hpas = [hpa for i, (_, hpa) in enumerate(mmu.prev_roots) if roots_to_free & root_previous(i)]
    hpas += [mmu.root_hpa] if roots_to_free & KVM_MMU_ROOT_CURRENT else []
    pages = [to_shadow_page(kvm, hpa) for hpa in hpas if hpa != INVALID_PAGE]
    if kvm.watch is None or not pages:
        return
    tdp = sum(sp is not None and sp.tdp_mmu_page for sp in pages)
    rule = "by_root_role" if kvm.bugs.B23 else kvm.config.kernel.free_roots_lock
    shared = rule == "by_root_role" and kvm.config.uses_tdp_mmu
    shared = shared and role_facts(kvm.config.kernel.design, mmu.root_role).direct
    vcpu = next(v for v in kvm.vcpus if mmu is v.root_mmu or mmu is v.guest_mmu)
    kvm.watch(MmuLockHeld(rule, context_name(vcpu, mmu), mmu.root_role, shared, tdp, len(pages) - tdp))


def kvm_mmu_unload(vcpu: Vcpu) -> None:
    """Free all roots of the vCPU."""
    kvm, roots = vcpu.kvm, kvm_mmu_roots_all(vcpu.kvm)
    kvm_mmu_free_roots(kvm, vcpu.root_mmu, roots)
    warn_on(kvm, "mmu.c:kvm_mmu_unload:root_mmu", vcpu.root_mmu.root_hpa != INVALID_PAGE)
    kvm_mmu_free_roots(kvm, vcpu.guest_mmu, roots)
    warn_on(kvm, "mmu.c:kvm_mmu_unload:guest_mmu", vcpu.guest_mmu.root_hpa != INVALID_PAGE)
    vcpu_clear_mmio_info(vcpu, MMIO_GVA_ANY)


def kvm_mmu_free_guest_mode_roots(kvm: Kvm, mmu: Mmu) -> None:
    """Free the previous roots that are L2's."""
    of_l2 = mmu.root_facts is not None and mmu.root_facts.guest_mode
    warn_on(kvm, "mmu.c:kvm_mmu_free_guest_mode_roots:role", of_l2)
    roots = 0
    for i, (_, hpa) in enumerate(mmu.prev_roots):
        if hpa != INVALID_PAGE:
            sp = to_shadow_page(kvm, hpa)
            roots |= root_previous(i) if sp is None or sp.guest_mode else 0
    kvm_mmu_free_roots(kvm, mmu, roots)


def kvm_mmu_reset_context(vcpu: Vcpu) -> None:
    """Free all roots and configure the context again, because the guest's paging changed."""
    trace(vcpu.kvm, ev.kvm_mmu_reset_context)
    kvm_mmu_unload(vcpu)
    kvm_init_mmu(vcpu)


def kvm_mmu_free_obsolete_roots(vcpu: Vcpu) -> None:
    """Free the roots that are invalid or of the other generation; a special root always counts."""
    kvm = vcpu.kvm
    for mmu in (vcpu.root_mmu, vcpu.guest_mmu):
        roots = KVM_MMU_ROOT_CURRENT if _is_obsolete_root(kvm, mmu.root_hpa) else 0
        for i, (_, hpa) in enumerate(mmu.prev_roots):
            if _is_obsolete_root(kvm, hpa):
                roots |= root_previous(i)
        if roots:
            kvm_mmu_free_roots(kvm, mmu, roots)


def _is_obsolete_root(kvm: Kvm, root_hpa: int) -> bool:
    if root_hpa == INVALID_PAGE:
        return False
    sp = to_shadow_page(kvm, root_hpa)
    return sp is None or is_obsolete_sp(kvm, sp)


def _is_root_usable(kvm: Kvm, mmu: Mmu, hpa: int, pgd: int, new_pgd: int) -> bool:
    sp = to_shadow_page(kvm, hpa) if hpa != INVALID_PAGE else None
    return sp is not None and (mmu.direct or pgd == new_pgd) and sp.role == mmu.root_role


def _may_be_kept(kvm: Kvm, root_hpa: int) -> bool:
    sp = to_shadow_page(kvm, root_hpa)
    return sp is not None and not sp.pdptes and not sp.one_off


def fast_pgd_switch(kvm: Kvm, mmu: Mmu, new_pgd: int) -> bool:
    """Make a root that was kept for `new_pgd` the current one; False if there is none.

    Special roots are not kept: a PAE guest's directories may change at each load.
    """
    if mmu.root_hpa != INVALID_PAGE and not _may_be_kept(kvm, mmu.root_hpa):
        kvm_mmu_free_roots(kvm, mmu, KVM_MMU_ROOT_CURRENT)
    if mmu.root_hpa == INVALID_PAGE:
        return _find_without_current(kvm, mmu, new_pgd)
    if _is_root_usable(kvm, mmu, mmu.root_hpa, mmu.root_pgd, new_pgd):
        return True
    for i, previous in enumerate(mmu.prev_roots):
        # Each swap moves the root that was current one place down, so the least recent ends up in hand.
        mmu.prev_roots[i] = RootInfo(mmu.root_pgd, mmu.root_hpa)
        mmu.root_pgd, mmu.root_hpa = previous
        if _is_root_usable(kvm, mmu, mmu.root_hpa, mmu.root_pgd, new_pgd):
            return True
    kvm_mmu_free_roots(kvm, mmu, KVM_MMU_ROOT_CURRENT)
    return False


def _find_without_current(kvm: Kvm, mmu: Mmu, new_pgd: int) -> bool:
    """Take a kept root; those behind it move up, and the last place is free but keeps its guest root."""
    for i, (pgd, hpa) in enumerate(mmu.prev_roots):
        if _is_root_usable(kvm, mmu, hpa, pgd, new_pgd):
            mmu.prev_roots[i] = RootInfo(mmu.root_pgd, mmu.root_hpa)
            mmu.root_pgd, mmu.root_hpa = pgd, hpa
            last = mmu.prev_roots[-1]
            del mmu.prev_roots[i]
            mmu.prev_roots.append(RootInfo(last.pgd))
            return True
    return False


def kvm_mmu_new_pgd(vcpu: Vcpu, new_pgd: int) -> None:
    """Turn to another guest root: the guest loads CR3, or enters L2."""
    kvm, mmu = vcpu.kvm, vcpu.mmu
    trace(kvm, ev.kvm_mmu_new_pgd, new_pgd)
    if not fast_pgd_switch(kvm, mmu, new_pgd):
        return
    vcpu.requests |= Request.LOAD_MMU_PGD
    if kvm.config.flush_on_reuse:
        vcpu.requests |= Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT
    vcpu_clear_mmio_info(vcpu, MMIO_GVA_ANY)
    if not mmu.direct:
        kvm.pages[mmu.root_hpa >> 12].write_flooding_count = 0
