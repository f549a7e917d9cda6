"""Each assertion that the model has can fire: by a state that somebody spoiled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from mmulab import events as ev
from mmulab.conform.recording import read_recording
from mmulab.kvm.assertions import HostDiedError, assertions
from mmulab.kvm.config import KvmConfig
from mmulab.kvm.context import (
    init_kvm_tdp_mmu,
    kvm_calc_cpu_role,
    kvm_init_shadow_ept_mmu,
    kvm_init_shadow_npt_mmu,
    shadow_mmu_init_context,
)
from mmulab.kvm.cpuid import kvm_set_cpuid
from mmulab.kvm.direct import direct_map, direct_page_fault
from mmulab.kvm.eager_split import kvm_mmu_slot_try_split_huge_pages
from mmulab.kvm.exits import kvm_handle_page_fault
from mmulab.kvm.gpte import kvm_get_level1_sp_gpa
from mmulab.kvm.guest_walk import walk_addr_generic
from mmulab.kvm.hugepage import kvm_mmu_hugepage_adjust
from mmulab.kvm.invlpg import invlpg
from mmulab.kvm.mmio import vcpu_make_mmio_spte
from mmulab.kvm.mmu import INVALID_PAGE, RootInfo
from mmulab.kvm.mmu_internal import PageFault, RetPf
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.page_fault import HANDLERS, handle_mmio_page_fault, kvm_mmu_page_fault
from mmulab.kvm.page_track import update_gfn_disallow_lpage_count, update_gfn_track
from mmulab.kvm.paging_tmpl import fetch, page_fault
from mmulab.kvm.prefetch import direct_pte_prefetch_group
from mmulab.kvm.rmap import (
    for_each_rmap_spte,
    kvm_mmu_page_set_translation,
    kvm_pte_list_remove,
    mmu_spte_set,
    mmu_spte_update,
)
from mmulab.kvm.roles.word import RoleFacts
from mmulab.kvm.roots import (
    is_unsync_root,
    kvm_mmu_free_guest_mode_roots,
    kvm_mmu_free_roots,
    mmu_alloc_direct_roots,
    mmu_alloc_root,
    mmu_alloc_shadow_roots,
    mmu_alloc_special_roots,
)
from mmulab.kvm.set_spte import make_spte
from mmulab.kvm.shadow_page import kvm_mmu_child_role, kvm_mmu_find_shadow_page, link_shadow_page
from mmulab.kvm.spte import (
    REMOVED_SPTE,
    SPTE_MMU_PRESENT_MASK,
    SPTE_TDP_AD_DISABLED_MASK,
    can_split_huge_spte,
    check_spte_writable_invariants,
    kvm_mark_spte_for_access_track,
)
from mmulab.kvm.state import Kvm, KvmRunError
from mmulab.kvm.sync.page import sync_page, sync_transiently
from mmulab.kvm.sync.unsync import kvm_unlink_unsync_page
from mmulab.kvm.sync.unsync_children import clear_unsync_child_bit, mmu_unsync_walk
from mmulab.kvm.tdp_iter import TdpEntry, for_each_tdp_pte
from mmulab.kvm.tdp_map import kvm_tdp_mmu_map
from mmulab.kvm.tdp_mmu import (
    handle_changed_spte,
    kvm_mmu_uninit_tdp_mmu,
    kvm_tdp_mmu_put_root,
    kvm_tdp_mmu_write_protect_gfn,
    kvm_tdp_mmu_wrprot_slot,
    kvm_tdp_mmu_zap_invalidated_roots,
    kvm_tdp_mmu_zap_sp,
    tdp_mmu_set_spte,
    tdp_mmu_set_spte_atomic,
    tdp_mmu_zap_root,
)
from mmulab.kvm.zap import (
    kvm_mmu_commit_zap_page,
    kvm_mmu_zap_all,
    kvm_mmu_zap_all_fast,
    kvm_recover_nx_huge_pages,
)
from mmulab.machine.config import HostConfig
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.runner import Runner
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.paging import Paging
from mmulab.x86.pferr import ACC_ALL
from mmulab.x86.walk import Walk
from tests.kvm.guest import DATA, GVA, PS, Guest

NO_TABLE = 0xFFFFF000
PRESENT = SPTE_MMU_PRESENT_MASK
NOP = Instruction(Mnemonic.NOP)


def unanswered(g: Guest) -> None:
    with patch.dict(HANDLERS, {g.vcpu.mmu.kind: lambda vcpu, fault: RetPf.INVALID}):
        kvm_mmu_page_fault(g.vcpu, GVA, 0, NOP)


def made(g: Guest, *, pfn: int = 0, level: int = 1) -> object:
    """Make an spte of the page that maps ``GVA`` at that level."""
    page, writable = g.page(GVA, level), {"can_unsync": True, "host_writable": True}
    return make_spte(g.vcpu, page, g.slot, ACC_ALL, 0, pfn, 0, prefetch=False, **writable)


FIRES: dict[str, Callable[[Guest], object]] = {
    "mmu.c:mmu_spte_set:present": lambda g: mmu_spte_set(g.kvm, g.sptep(GVA), PRESENT),
    "mmu.c:mmu_spte_update_no_track:present": lambda g: mmu_spte_update(g.kvm, g.sptep(GVA), 0),
    "mmu.c:mmu_spte_update_no_track:pfn": lambda g: mmu_spte_update(
        g.kvm, g.sptep(GVA), g.spte(GVA) ^ 1 << 12
    ),
    "mmu.c:kvm_mmu_page_set_translation:access": lambda g: kvm_mmu_page_set_translation(
        g.kvm, direct_page(g), 0, direct_page(g).gfn, 0
    ),
    "mmu.c:kvm_mmu_page_set_translation:gfn": lambda g: kvm_mmu_page_set_translation(
        g.kvm, direct_page(g), 0, direct_page(g).gfn + 1, ACC_ALL
    ),
    "mmu.c:update_gfn_disallow_lpage_count:negative": lambda g: update_gfn_disallow_lpage_count(
        g.kvm, g.slot, 0x400, -1
    ),
    "page_track.c:update_gfn_track:range": lambda g: update_gfn_track(g.kvm, g.slot, 0, -1),
    "mmu.c:pte_list_remove:empty": lambda g: kvm_pte_list_remove(g.kvm, [], 8),
    "mmu.c:pte_list_remove:one": lambda g: kvm_pte_list_remove(g.kvm, [[16]], 8),
    "mmu.c:pte_list_remove:many": lambda g: kvm_pte_list_remove(g.kvm, [[16, 24]], 8),
    "mmu.c:rmap_get_first:present": lambda g: list(for_each_rmap_spte(g.kvm, [[absent(g)]])),
    "mmu.c:rmap_get_next:present": lambda g: list(for_each_rmap_spte(g.kvm, [[g.sptep(GVA), absent(g)]])),
    "mmu.c:clear_unsync_child_bit:negative": lambda g: clear_unsync_child_bit(g.kvm, g.page(GVA), 0),
    "mmu.c:kvm_unlink_unsync_page:unsync": lambda g: kvm_unlink_unsync_page(g.kvm, g.page(GVA)),
    "mmu.c:mmu_pages_first:level": lambda g: (
        setattr(g.page(GVA), "unsync_children", 1),
        mmu_unsync_walk(g.kvm, g.page(GVA)),
    ),
    "mmu.c:kvm_mmu_find_shadow_page:vcpu": lambda g: (
        setattr(g.page(GVA), "unsync", True),
        kvm_mmu_find_shadow_page(g.kvm, None, g.page(GVA).gfn, g.page(GVA).role),
    ),
    "mmu.c:kvm_mmu_find_shadow_page:invalid_list": lambda g: sync_transiently(g.vcpu, g.page(GVA), [0]),
    "mmu.c:kvm_mmu_child_role:invalid": lambda g: (
        setattr(g.page(GVA, 2), "invalid", True),
        kvm_mmu_child_role(g.kvm, g.sptep(GVA, 2), direct=True, access=ACC_ALL),
    ),
    "mmu.c:__link_shadow_page:level": lambda g: link_shadow_page(g.kvm, g.sptep(GVA), g.page(GVA)),
    "mmu.c:kvm_mmu_commit_zap_page:invalid": lambda g: kvm_mmu_commit_zap_page(g.kvm, [g.page(GVA).frame]),
    "mmu.c:__direct_pte_prefetch:direct": lambda g: direct_pte_prefetch_group(
        g.vcpu, g.page(GVA), g.sptep(GVA)
    ),
    "mmu.c:kvm_mmu_hugepage_adjust:pfn": lambda g: kvm_mmu_hugepage_adjust(g.kvm, unlike_fault(g)),
    "mmu.c:mmu_free_root_page:sp": lambda g: (
        g.vcpu.mmu.prev_roots.__setitem__(0, RootInfo(0, NO_TABLE)),
        kvm_mmu_free_roots(g.kvm, g.vcpu.mmu, 2),
    ),
    "mmu.c:kvm_mmu_free_guest_mode_roots:role": lambda g: (
        setattr(g.vcpu.mmu, "root_facts", facts(g)._replace(guest_mode=True)),
        kvm_mmu_free_guest_mode_roots(g.kvm, g.vcpu.mmu),
    ),
    "mmu.c:mmu_alloc_root:quadrant": lambda g: mmu_alloc_root(g.vcpu, 0, 1, 2),
    "mmu.c:mmu_alloc_root:direct": lambda g: (
        setattr(g.vcpu.mmu, "root_facts", facts(g)._replace(direct=True, has_4_byte_gpte=True)),
        mmu_alloc_root(g.vcpu, 0, 0, 2),
    ),
    "mmu.c:mmu_alloc_direct_roots:level": lambda g: (
        setattr(g.vcpu.mmu, "root_level", 2),
        mmu_alloc_direct_roots(g.vcpu),
    ),
    "mmu.c:mmu_alloc_direct_roots:pae_root": lambda g: (
        setattr(g.vcpu.mmu, "root_level", 3),
        setattr(g.vcpu.mmu, "pae_root", -1),
        mmu_alloc_direct_roots(g.vcpu),
    ),
    "mmu.c:is_unsync_root:sp": lambda g: is_unsync_root(g.kvm, NO_TABLE),
    "mmu.c:kvm_mmu_page_fault:root": lambda g: (
        setattr(g.vcpu.mmu, "root_hpa", INVALID_PAGE),
        kvm_mmu_page_fault(g.vcpu, GVA, 0, NOP),
    ),
    "mmu.c:handle_mmio_page_fault:reserved": lambda g: (
        g.kvm.memory.store64(g.sptep(GVA), g.spte(GVA) | 1 << 51),
        handle_mmio_page_fault(g.vcpu, GVA, False),
    ),
    "mmu.c:boot_cpu_is_amd:tdp": lambda g: init_kvm_tdp_mmu(
        g.vcpu, kvm_calc_cpu_role(0, 0, 0, smm=0, guest_mode=False)
    ),
    "mmu.c:kvm_calc_shadow_ept_root_page_role:smm": lambda g: (
        setattr(g.vcpu, "smm", 1),
        kvm_init_shadow_ept_mmu(g.vcpu, level=4, accessed_dirty=False, execonly=False),
    ),
    "mmu.c:reset_shadow_zero_bits_mask:level": lambda g: shadow_mmu_init_context(
        g.vcpu,
        g.vcpu.mmu,
        kvm_calc_cpu_role(0, 0, 0, smm=0, guest_mode=False),
        facts(g)._replace(level=2),
        paging(g),
    ),
    "mmu.c:kvm_zap_obsolete_pages:invalid": lambda g: (
        setattr(g.page(GVA), "invalid", True),
        kvm_mmu_zap_all_fast(g.kvm),
    ),
    "mmu.c:kvm_mmu_zap_all:invalid": lambda g: (
        setattr(g.page(GVA), "invalid", True),
        kvm_mmu_zap_all(g.kvm),
    ),
    "mmu.c:kvm_recover_nx_lpages:before": lambda g: (
        g.kvm.possible_nx_huge_pages.__setitem__(g.page(GVA).frame, None),
        g.kvm.stat.__setitem__("nx_lpage_splits", 1),
        kvm_recover_nx_huge_pages(g.kvm, 1),
    ),
    "mmu.c:mmu_alloc_special_roots:some": lambda g: (
        setattr(g.vcpu.mmu, "cpu_role", g.vcpu.mmu.cpu_role._replace(level=2)),
        mmu_alloc_special_roots(g.vcpu),
    ),
    "paging_tmpl.h:page_fault:tdp": lambda g: page_fault(g.vcpu, fault_at(GVA)),
    "paging_tmpl.h:get_level1_sp_gpa:level": lambda g: kvm_get_level1_sp_gpa(g.kvm, g.page(GVA, 2), 8),
    "paging_tmpl.h:invlpg:root": lambda g: invlpg(g.vcpu, GVA, INVALID_PAGE),
    "paging_tmpl.h:sync_page:role": lambda g: (
        setattr(g.page(GVA), "direct", True),
        sync_page(g.vcpu, g.page(GVA)),
    ),
    "spte.c:make_mmio_spte:value": lambda g: (
        setattr(g.kvm, "fmt", HostConfig(phys_bits=52).spte_format(g.kvm.config.kernel)),
        vcpu_make_mmio_spte(g.vcpu, 0, 0),
    ),
    "spte.c:make_spte:reserved": lambda g: made(g, pfn=1 << 39),
    "spte.c:make_huge_page_split_spte:present": lambda g: can_split_huge_spte(g.kvm, 0),
    "spte.c:make_huge_page_split_spte:large": lambda g: can_split_huge_spte(g.kvm, PRESENT),
    "spte.c:mark_spte_for_access_track:saved": lambda g: kvm_mark_spte_for_access_track(
        of_ept(g), PRESENT | SPTE_TDP_AD_DISABLED_MASK | 1 << 54 | 1
    ),
    "spte.h:check_spte_writable_invariants:host_writable": lambda g: check_spte_writable_invariants(
        g.kvm, g.kvm.fmt.mmu_writable
    ),
    "spte.h:check_spte_writable_invariants:writable": lambda g: check_spte_writable_invariants(g.kvm, 2),
    "mmu.c:direct_map:level": lambda g: (
        setattr(g.vcpu.mmu, "root_level", 0),
        direct_map(g.vcpu, fault_at(GVA)),
    ),
    "mmu.c:kvm_handle_page_fault:address": lambda g: (
        setattr(g.kvm, "config", replace(g.kvm.config, x86_64=False)),
        kvm_handle_page_fault(g.vcpu, 1 << 32, 0, NOP, reinjection=False),
    ),
    "mmu.c:kvm_init_shadow_npt_mmu:role": lambda g: kvm_init_shadow_npt_mmu(g.vcpu, 0, 0),
    "mmu.c:kvm_mmu_after_set_cpuid:last_vmentry_cpu": lambda g: (
        setattr(g.kvm, "config", kernel_of(g, cpuid_after_run="bug")),
        kvm_set_cpuid(g.vcpu, replace(g.vcpu.cpu, maxphyaddr=39)),
    ),
    "mmu.c:kvm_mmu_child_role:level": lambda g: (
        setattr(g.page(GVA, 3), "role", word(g, level=3, has_4_byte_gpte=True)),
        kvm_mmu_child_role(g.kvm, g.sptep(GVA, 3), direct=False, access=ACC_ALL),
    ),
    "mmu.c:mmu_alloc_direct_roots:entry": lambda g: (
        full_pae_root(g),
        mmu_alloc_direct_roots(g.vcpu),
    ),
    "mmu.c:mmu_alloc_shadow_roots:entry": lambda g: (
        full_pae_root(g),
        mmu_alloc_shadow_roots(g.vcpu),
    ),
    "mmu.c:mmu_alloc_shadow_roots:pae_root": lambda g: roots_of(g, 3, pae_root=-1),
    "mmu.c:mmu_alloc_shadow_roots:pml4_root": lambda g: roots_of(g, 4, pml4_root=-1),
    "mmu.c:mmu_alloc_shadow_roots:pml5_root": lambda g: roots_of(
        g, 5, pml4_root=g.kvm.memory.alloc_frame(), pml5_root=-1
    ),
    "mmu.c:mmu_try_to_unsync_pages:level": lambda g: (
        g.slot.gfn_track.clear(),
        g.kvm.sync.try_to_unsync(g.kvm, g.slot, g.page(GVA, 2).gfn, can_unsync=True, prefetch=False),
    ),
    "mmu.c:shadow_mmu_try_split_huge_pages:guest_mode": lambda g: split(g, guest_mode=False),
    "mmu.c:shadow_mmu_try_split_huge_pages:large": lambda g: split(g, guest_mode=True),
    "mmu.c:shadow_mmu_try_split_huge_pages:unsync": lambda g: (
        g.kvm.memory.store64(g.sptep(GVA), g.spte(GVA) | PS),
        split(g, guest_mode=True, unsync=True),
    ),
    "paging_tmpl.h:fetch:gfn": lambda g: fetch(g.vcpu, fault_at(GVA), walked(g)),
    "paging_tmpl.h:fetch:root": lambda g: (
        setattr(g.vcpu.mmu, "root_hpa", INVALID_PAGE),
        fetch(g.vcpu, fault_at(GVA), walked(g)),
    ),
    "paging_tmpl.h:fetch:level": lambda g: (
        setattr(g.vcpu.mmu, "root_level", 0),
        fetch(g.vcpu, fault_at(GVA), walked(g)),
    ),
    "spte.c:make_spte:level": lambda g: (
        setattr(g.slot, "flags", KVM_MEM_LOG_DIRTY_PAGES),
        made(g, pfn=0, level=2),
    ),
    "mmu.c:kvm_mmu_page_fault:invalid": unanswered,
}
"""What spoils a guest of 4 levels that KVM shadows, with one page read."""


def changed(old: int, new: int, level: int = 1, gfn: int = 0) -> Callable[[Guest], object]:
    return lambda g: handle_changed_spte(g.kvm, 0, gfn, old, new, level)


FIRES_TDP: dict[str, Callable[[Guest], object]] = {
    "tdp_mmu.c:__handle_changed_spte:high": changed(REMOVED_SPTE, REMOVED_SPTE, level=6),
    "tdp_mmu.c:__handle_changed_spte:low": changed(REMOVED_SPTE, REMOVED_SPTE, level=0),
    "tdp_mmu.c:__handle_changed_spte:gfn": changed(REMOVED_SPTE, REMOVED_SPTE, level=2, gfn=1),
    "tdp_mmu.c:__handle_changed_spte:pfn": changed(PRESENT, PRESENT | 1 << 12),
    "tdp_mmu.c:__handle_changed_spte:nonpresent": changed(0, 4),
    "tdp_mmu.c:__handle_changed_spte:table": lambda g: handle_changed_spte(
        g.kvm, 0, 0, g.spte(DATA, 2), g.spte(DATA, 2) ^ 1 << 12, 2
    ),
    "tdp_mmu.c:__tdp_mmu_set_spte:removed": lambda g: tdp_mmu_set_spte(g.kvm, entry(g), REMOVED_SPTE),
    "tdp_mmu.c:tdp_mmu_set_spte_atomic:removed": lambda g: tdp_mmu_set_spte_atomic(
        g.kvm, entry(g, REMOVED_SPTE), 0
    ),
    "tdp_mmu.c:kvm_tdp_mmu_put_root:valid": lambda g: (
        setattr(root_of(g), "root_count", 1),
        kvm_tdp_mmu_put_root(g.kvm, root_of(g)),
    ),
    "tdp_mmu.c:tdp_mmu_zap_root:count": lambda g: (
        setattr(root_of(g), "root_count", 0),
        tdp_mmu_zap_root(g.kvm, root_of(g), shared=False),
    ),
    "tdp_mmu.c:kvm_tdp_mmu_zap_sp:root": lambda g: kvm_tdp_mmu_zap_sp(g.kvm, root_of(g)),
    "tdp_mmu.c:kvm_tdp_mmu_zap_sp:present": lambda g: (
        g.kvm.memory.store64(g.sptep(DATA, 2), 0),
        kvm_tdp_mmu_zap_sp(g.kvm, next(sp for sp in g.kvm.pages.values() if sp.level == 1)),
    ),
    "tdp_mmu.c:kvm_tdp_mmu_zap_invalidated_roots:valid": lambda g: (
        setattr(root_of(g), "tdp_mmu_scheduled_root_to_zap", True),
        kvm_tdp_mmu_zap_invalidated_roots(g.kvm),
    ),
    "tdp_mmu.c:kvm_mmu_uninit_tdp_mmu:roots": lambda g: kvm_mmu_uninit_tdp_mmu(g.kvm),
    "tdp_mmu.c:kvm_mmu_uninit_tdp_mmu:pages": lambda g: (
        setattr(root_of(g), "ptep", 8),
        kvm_mmu_uninit_tdp_mmu(g.kvm),
    ),
    "tdp_mmu.c:wrprot_gfn_range:level": lambda g: kvm_tdp_mmu_wrprot_slot(g.kvm, g.slot, 4),
    "tdp_mmu.c:write_protect_gfn:level": lambda g: kvm_tdp_mmu_write_protect_gfn(g.kvm, 0, 0, 4),
    "tdp_iter.c:tdp_iter_start:low": lambda g: (
        setattr(root_of(g), "level", 0),
        next(for_each_tdp_pte(g.kvm, root_of(g), 0, 1)),
    ),
    "tdp_iter.c:tdp_iter_start:high": lambda g: (
        setattr(root_of(g), "level", 6),
        next(for_each_tdp_pte(g.kvm, root_of(g), 0, 1)),
    ),
    "tdp_mmu.h:is_tdp_mmu:root": lambda g: (
        setattr(g.vcpu.mmu, "root_hpa", INVALID_PAGE),
        direct_page_fault(g.vcpu, fault_at(DATA)),
    ),
    "tdp_mmu.c:tdp_mmu_map_handle_target_level:level": lambda g: (
        setattr(g.page(DATA), "level", 2),
        kvm_tdp_mmu_map(g.vcpu, fault_at(DATA)),
    ),
}
"""What spoils a guest on the TDP MMU."""
RECORDED = {
    "spte.c:make_spte:reserved": ("conformance-more/6.1.192/nxrecover-tdp0/nx-recover-nested-32.jsonl.xz", 1),
    "spte.c:make_spte:access": ("conformance/6.1.192/nested-ept-host-noad/ept-fuzz64-noad-08.jsonl.xz", 96),
}
"""Recordings whose scenario makes an assertion fire, and the op."""
ELSEWHERE = {"mmu.c:shadow_walk_init_using_root:root"}
"""A sequence in tests/kvm/test_assertions.py does."""


def direct_page(g: Guest) -> ShadowPage:
    sp = g.page(GVA)
    sp.has_gptes, sp.direct, sp.access = False, True, ACC_ALL
    return sp


def kernel_of(g: Guest, **rules: str) -> KvmConfig:
    return replace(g.kvm.config, kernel=g.kvm.config.kernel.with_(**rules))


def word(g: Guest, **changes: int) -> int:
    return g.kvm.config.kernel.design.pack(facts(g)._replace(**changes), g.vcpu.mmu.cpu_role)


def full_pae_root(g: Guest) -> None:
    mmu = g.vcpu.mmu
    mmu.root_level, mmu.cpu_role = 3, mmu.cpu_role._replace(level=2)
    g.kvm.memory.store64(mmu.pae_root << 12, 1)


def roots_of(g: Guest, level: int, **roots: int) -> None:
    mmu = g.vcpu.mmu
    mmu.root_level, mmu.cpu_role = level, mmu.cpu_role._replace(level=2)
    for name, frame in roots.items():
        setattr(mmu, name, frame)
    mmu_alloc_shadow_roots(g.vcpu)


def split(g: Guest, **changes: bool) -> None:
    """Split huge pages of which a leaf of level 1 is said to be one."""
    g.kvm.config = replace(g.kvm.config, tdp=True, tdp_mmu=True)
    for name, value in changes.items():
        setattr(g.page(GVA), name, value)
    g.slot.rmap[2] = {0: [[g.sptep(GVA)]]}
    kvm_mmu_slot_try_split_huge_pages(g.kvm, g.slot)


def walked(g: Guest) -> Walk:
    return walk_addr_generic(g.vcpu, g.vcpu.mmu, GVA, 0).walk


def absent(g: Guest) -> int:
    return g.sptep(GVA) + 0x800 & ~7


def facts(g: Guest) -> RoleFacts:
    assert g.vcpu.mmu.root_facts is not None
    return g.vcpu.mmu.root_facts


def paging(g: Guest) -> Paging:
    assert g.vcpu.mmu.paging is not None
    return g.vcpu.mmu.paging


def fault_at(addr: int) -> PageFault:
    return PageFault(addr, 0, exec=False, write=False, present=False, rsvd=False, user=False, is_tdp=True)


def unlike_fault(g: Guest) -> PageFault:
    fault = fault_at(GVA)
    g.kvm.memory.page_level.update(dict.fromkeys(range(1 << 12), 2))
    fault.slot, fault.gfn, fault.pfn, fault.max_level = g.slot, 512, g.slot.frame(512) + 1, 2
    return fault


def of_ept(g: Guest) -> Kvm:
    g.kvm.fmt = HostConfig(vendor="intel", tdp=True, eptad=False).spte_format(g.kvm.config.kernel)
    return g.kvm


def root_of(g: Guest) -> ShadowPage:
    return g.kvm.pages[g.vcpu.mmu.root_hpa >> 12]


def entry(g: Guest, old: int = 0) -> TdpEntry:
    return TdpEntry(1, 0, g.sptep(DATA), old, 0)


def fire(guest: Guest, name: str, spoil: Callable[[Guest], object]) -> None:
    """Run it to the assertion; what comes of a spoiled state later does not matter."""
    before = dict(guest.kvm.fired)
    with suppress(HostDiedError, KvmRunError, KeyError, IndexError, ValueError):
        spoil(guest)
    assert before == {}
    assert name in guest.kvm.fired


@pytest.mark.parametrize("name", FIRES)
def test_a_spoiled_shadow_mmu_is_found_out(guest: Guest, name: str) -> None:
    guest.read(GVA)
    fire(guest, name, FIRES[name])


@pytest.mark.parametrize("name", FIRES_TDP)
def test_a_spoiled_tdp_mmu_is_found_out(name: str) -> None:
    guest = Guest("np", host=HostConfig(tdp=True, tdp_mmu=True))
    guest.read(DATA)
    fire(guest, name, FIRES_TDP[name])


def test_what_nothing_makes_fire_says_why() -> None:
    """Those of nested guests and of x86.c are in test_nested_assertions.py."""
    modelled = {a.name: a for a in assertions().values() if a.modelled and a.file.startswith("mmu")}
    untried = modelled.keys() - (FIRES.keys() | FIRES_TDP.keys() | RECORDED.keys() | ELSEWHERE)
    assert all(modelled[name].note for name in untried), untried
    assert untried == {name for name, row in modelled.items() if row.note}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_guest_meets_it(root: Path, name: str) -> None:
    """The real kernel was given the same; what it wrote to its log was not kept."""
    path, index = RECORDED[name]
    runner = Runner(read_recording(root / "data" / path).scenario)
    first = next(r for r in runner.results() if runner.machine.kvm.fired)
    assert set(runner.machine.kvm.fired) == {name}
    assert first.index == index
    assert [e.name for e in first.events if isinstance(e, ev.kvm_assertion)] == [name]
