"""Roots of shadow pages where a guest has fewer levels than KVM's tables, instead of special roots.

Never merged; see :mod:`mmulab.kvm.roles.root_strategy` for the series.
"""

from __future__ import annotations

from mmulab.kvm.expanded_role import expanded_role
from mmulab.kvm.mmu import PT32E_ROOT_LEVEL
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.shadow_page import kvm_mmu_get_shadow_page, link_shadow_page, mmu_alloc_unlisted_page
from mmulab.kvm.spte import is_shadow_present_pte, spte_to_pfn
from mmulab.kvm.state import Kvm, Vcpu, is_obsolete_sp, to_shadow_page
from mmulab.kvm.zap import InvalidList, drop_parent_pte, kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page
from mmulab.x86.mode import PT_BASE_ADDR_MASK, PT_PRESENT_MASK
from mmulab.x86.pferr import ACC_ALL


def mmu_alloc_expanded_root(vcpu: Vcpu, gfn: int, pdptrs: list[int]) -> int:
    """Take a shadow page as root where a guest has fewer levels, instead of special roots.

    Its entries are linked by the faults that need them. A PAE guest's directories
    are named by registers, not by the table at `gfn`, and two of its tables may lie
    in one page: what was linked for other PDPTEs is zapped.
    """
    mmu, kvm = vcpu.mmu, vcpu.kvm
    strategy = kvm.config.kernel.root_strategy
    if strategy.one_off:
        return _one_off_roots(vcpu, gfn)
    if pdptrs:
        _zap_other_directories(vcpu, gfn, pdptrs)
    sp = kvm_mmu_get_shadow_page(kvm, vcpu, gfn, _expanded_root_role(vcpu, mmu.root_level))
    _mark_expanded_root(vcpu, sp)
    return sp.frame << 12


def _expanded_root_role(vcpu: Vcpu, level: int) -> int:
    mmu = vcpu.mmu
    if mmu.direct:
        assert mmu.root_facts is not None
        return vcpu.kvm.config.kernel.design.pack(mmu.root_facts._replace(level=level), mmu.cpu_role)
    return expanded_role(vcpu, level, 0, ACC_ALL)


def _mark_expanded_root(vcpu: Vcpu, sp: ShadowPage) -> None:
    sp.root_count += 1
    sp.pae_table = vcpu.mmu.root_level == PT32E_ROOT_LEVEL
    sp.pdptes |= vcpu.mmu.cpu_role.level == PT32E_ROOT_LEVEL


def _one_off_roots(vcpu: Vcpu, gfn: int) -> int:
    """Build the levels that the guest does not have, down to the four entries for page directories."""
    kvm, mmu = vcpu.kvm, vcpu.mmu
    pages: list[ShadowPage] = []
    for level in range(mmu.root_level, PT32E_ROOT_LEVEL - 1, -1):
        sp = mmu_alloc_unlisted_page(kvm, gfn, _expanded_root_role(vcpu, level))
        sp.one_off = True
        if pages:
            link_shadow_page(kvm, pages[-1].frame << 12, sp)
        pages.append(sp)
    _mark_expanded_root(vcpu, pages[0])
    return pages[0].frame << 12


def _zap_other_directories(vcpu: Vcpu, gfn: int, pdptrs: list[int]) -> None:
    """Zap the page that holds directories for `gfn` if one of them is not what `pdptrs` say."""
    kvm = vcpu.kvm
    role = expanded_role(vcpu, PT32E_ROOT_LEVEL, 0, ACC_ALL)
    invalid: InvalidList = []
    for frame in list(kvm.page_hash.get(gfn, ())):
        sp = kvm.pages[frame]
        if sp.role == role and not is_obsolete_sp(kvm, sp) and _names_others(kvm, sp, pdptrs):
            kvm_mmu_prepare_zap_page(kvm, sp, invalid)
    kvm_mmu_commit_zap_page(kvm, invalid)


def _names_others(kvm: Kvm, sp: ShadowPage, pdptrs: list[int]) -> bool:
    for entry, pdpte in zip(kvm.memory.words[sp.frame * 512 :][:4], pdptrs, strict=True):
        child = to_shadow_page(kvm, entry) if is_shadow_present_pte(entry) else None
        named = (pdpte & PT_BASE_ADDR_MASK) >> 12 if pdpte & PT_PRESENT_MASK else None
        if child is not None and child.gfn != named:
            return True
    return False


def free_one_off_page(kvm: Kvm, sp: ShadowPage) -> None:
    """Unlink what is below, free it too if it is one of this kind."""
    for at in range(sp.frame * 512, (sp.frame + 1) * 512):
        spte = kvm.memory.words[at]
        if not is_shadow_present_pte(spte):
            continue
        child = kvm.pages[spte_to_pfn(spte)]
        drop_parent_pte(kvm, child, at << 3)
        if child.one_off:
            free_one_off_page(kvm, child)
    del kvm.pages[sp.frame]
    kvm.memory.free_frame(sp.frame)
