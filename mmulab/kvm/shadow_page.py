"""Shadow pages: found by (gfn, role), created, linked.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_find_shadow_page``,
``kvm_mmu_alloc_shadow_page``, ``kvm_mmu_child_role``, ``__link_shadow_page``,
``shadow_walk_*``).
"""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.assertions import bug_on, kvm_bug_on, warn_on
from mmulab.kvm.expanded_role import expanded_role, is_expanded_level
from mmulab.kvm.flush import kvm_flush_remote_tlbs_sptep
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.page_track import account_shadowed
from mmulab.kvm.rmap import mmu_spte_set, pte_list_add
from mmulab.kvm.roles.design import role_facts, role_of_child, role_word
from mmulab.kvm.spte import (
    SPTE_MMU_PRESENT_MASK,
    is_large_pte,
    is_last_spte,
    is_shadow_present_pte,
    make_nonleaf_spte,
    make_pdpte,
    spte_to_pfn,
)
from mmulab.kvm.state import Kvm, Vcpu, is_obsolete_sp, spte_at, spte_index, sptep_to_sp
from mmulab.kvm.trace import trace_page
from mmulab.kvm.zap import (
    InvalidList,
    drop_parent_pte,
    kvm_mmu_commit_zap_page,
    kvm_mmu_remote_flush_or_zap,
    mmu_page_zap_pte,
)
from mmulab.x86.mode import PT_BASE_ADDR_MASK


def kvm_mmu_find_shadow_page(
    kvm: Kvm, vcpu: Vcpu | None, gfn: int, role: int, addr: int | None = None
) -> ShadowPage | None:
    """Look for a usable page of this gfn and role, to translate `addr` (None: a root).

    `vcpu` may be None for a direct role.
    """
    invalid: InvalidList = []
    found: ShadowPage | None = None
    upper = role_facts(kvm.config.kernel.design, role).level > 1
    for frame in list(kvm.page_hash.get(gfn, ())):
        sp = kvm.pages[frame]
        if is_obsolete_sp(kvm, sp):
            continue
        if sp.role != role:
            kvm.sync.meets_other(kvm, vcpu, sp, addr, invalid, upper=upper)
            continue
        if not sp.direct:
            if sp.unsync and kvm_bug_on(kvm, "mmu.c:kvm_mmu_find_shadow_page:vcpu", vcpu is None):
                break
            if vcpu is not None and not kvm.sync.meets(vcpu, sp, addr, invalid):
                break
            sp.write_flooding_count = 0
        found = sp
        break
    if found is None:
        kvm.stat["mmu_cache_miss"] += 1
    kvm_mmu_commit_zap_page(kvm, invalid)
    return found


def mmu_alloc_unlisted_page(kvm: Kvm, gfn: int, role: int) -> ShadowPage:
    """Create an empty page that is in no hash and on no list."""
    frame = kvm.memory.alloc_frame(kvm.fmt.nonpresent)
    sp = ShadowPage(frame, gfn, role, role_facts(kvm.config.kernel.design, role), kvm.mmu_valid_gen)
    kvm.pages[frame] = sp
    return sp


def kvm_mmu_alloc_shadow_page(
    kvm: Kvm, vcpu: Vcpu | None, gfn: int, role: int, addr: int | None
) -> ShadowPage:
    """Create an empty page and write-protect what it shadows."""
    sp = mmu_alloc_unlisted_page(kvm, gfn, role)
    frame = sp.frame
    kvm.active_mmu_pages[frame] = None
    kvm.n_used_mmu_pages += 1
    stat = kvm.sync_stat
    stat["most_pages"] = max(stat["most_pages"], kvm.n_used_mmu_pages)
    kvm.page_hash.setdefault(gfn, []).insert(0, frame)
    kvm.sync.created(kvm, vcpu, sp, addr)
    if sp.has_gptes:
        account_shadowed(kvm, sp)
    return sp


def kvm_mmu_get_shadow_page(
    kvm: Kvm, vcpu: Vcpu | None, gfn: int, role: int, addr: int | None = None
) -> ShadowPage:
    """Find or create the page of this gfn and role, to translate `addr` (None: a root)."""
    sp = kvm_mmu_find_shadow_page(kvm, vcpu, gfn, role, addr)
    created = sp is None
    if sp is None:
        sp = kvm_mmu_alloc_shadow_page(kvm, vcpu, gfn, role, addr)
    trace_page(kvm, ev.kvm_mmu_get_page, sp, created)
    return sp


def kvm_mmu_child_role(
    kvm: Kvm,
    sptep: int,
    *,
    direct: bool,
    access: int,
    vcpu: Vcpu | None = None,
    addr: int | None = None,
) -> int:
    """Return the role of the page below the entry at `sptep`.

    It is derived from the parent's; by the older derivation that starts from
    scratch, from the context of the vCPU that faulted at `addr`. Eager splitting
    has neither.
    """
    config, counts = kvm.config, kvm.assertion_counts is not None
    design = config.kernel.design
    parent = sptep_to_sp(kvm, sptep)
    if parent.invalid or counts:
        warn_on(kvm, "mmu.c:kvm_mmu_child_role:invalid", parent.invalid)
    if vcpu is not None and not direct and is_expanded_level(vcpu.mmu, parent.level):
        return expanded_role(vcpu, parent.level - 1, spte_index(sptep), access)
    facts = role_facts(design, parent.role)
    quadrant = config.kernel.derivation.quadrant(facts, spte_index(sptep), addr)
    if kvm.bugs.B17:
        quadrant = facts.quadrant
    from_parent = config.kernel.derivation.from_parent
    if from_parent:
        wrong = facts.has_4_byte_gpte and parent.level != 2
        if wrong or counts:
            warn_on(kvm, "mmu.c:kvm_mmu_child_role:level", wrong)
    if from_parent or vcpu is None or vcpu.mmu.root_facts is None:
        role = role_of_child(design, parent.role, direct=direct, access=access, quadrant=quadrant)
        return design.invalidated(role) if parent.invalid and kvm.bugs.B3 else role
    known = vcpu.mmu.root_facts._replace(
        level=parent.level - 1, direct=direct, access=access, quadrant=quadrant, passthrough=False
    )
    return role_word(design, known, vcpu.mmu.cpu_role)


def kvm_mmu_get_child_sp(
    vcpu: Vcpu, sptep: int, gfn: int, *, direct: bool, access: int, addr: int
) -> ShadowPage | None:
    """Return the page to link at `sptep`; None if the right one is linked already (``-EEXIST``).

    The page there is the right one only if gfn and role agree. `addr` faulted.
    """
    kvm = vcpu.kvm
    role = kvm_mmu_child_role(kvm, sptep, direct=direct, access=access, vcpu=vcpu, addr=addr)
    spte = spte_at(kvm, sptep)
    if is_shadow_present_pte(spte) and not is_large_pte(spte):
        child = kvm.pages.get(spte_to_pfn(spte))
        if child is not None and _is_right_child(kvm, child, gfn, role):
            return None
    return kvm_mmu_get_shadow_page(kvm, vcpu, gfn, role, addr)


def _is_right_child(kvm: Kvm, child: ShadowPage, gfn: int, role: int) -> bool:
    """Whether the page that is linked already is the one wanted.

    The guest's table can change behind KVM's back: whatever is present may be for another gfn or role.
    """
    differs = child.role ^ role
    if kvm.bugs.B13:  # its wrong access stayed because a child's role was not looked at
        differs &= ~kvm.config.kernel.design.layout.mask.get("access", 0)
    return (child.gfn == gfn or kvm.bugs.B1) and (not differs or kvm.bugs.B2)


def link_shadow_page(kvm: Kvm, sptep: int, sp: ShadowPage) -> None:
    """Let the entry at `sptep` point to `sp`, in place of whatever is there."""
    spte = spte_at(kvm, sptep)
    if is_shadow_present_pte(spte):
        invalid: InvalidList = []
        parent = sptep_to_sp(kvm, sptep)
        warn_on(kvm, "mmu.c:__link_shadow_page:level", parent.level == 1)
        mmu_page_zap_pte(kvm, parent, sptep, invalid)
        kvm_mmu_remote_flush_or_zap(kvm, invalid, True)
    if sptep_to_sp(kvm, sptep).pae_table:
        entry = make_pdpte(sp.frame)
    else:
        entry = make_nonleaf_spte(kvm.fmt, sp.frame, ad_disabled=sp.ad_disabled)
    mmu_spte_set(kvm, sptep, entry)
    pte_list_add(sp.parent_ptes, sptep, keeps_tail_full=kvm.behaviours.pte_list_keeps_tail_full)
    kvm.sync.linked(kvm, sptep, sp)


def validate_direct_spte(kvm: Kvm, sptep: int, direct_access: int) -> None:
    """Unlink a direct child made for other rights: the guest's huge page may have become dirty."""
    spte = spte_at(kvm, sptep)
    if is_shadow_present_pte(spte) and not is_large_pte(spte):
        child = kvm.pages[spte_to_pfn(spte)]
        if child.access != direct_access:
            drop_parent_pte(kvm, child, sptep)
            kvm_flush_remote_tlbs_sptep(kvm, sptep)


def is_dummy_root(kvm: Kvm, hpa: int) -> bool:
    """Whether a root is the page of zeros that stands for one outside all memslots (6.7)."""
    return hpa == kvm.dummy_root << 12 and kvm.dummy_root != 0


class ShadowWalk:
    """A way down the shadow tables of a vCPU (``struct kvm_shadow_walk_iterator``).

    Attributes
    ----------
    level : int
        Level of the entry at hand; 0 when the way ends.
    sptep : int
        Host-physical address of that entry.
    """

    __slots__ = ("_kvm", "_table", "addr", "level", "sptep")

    def __init__(self, vcpu: Vcpu, root_hpa: int, addr: int) -> None:
        mmu = vcpu.mmu
        self._kvm = vcpu.kvm
        self.addr = addr
        self._table = root_hpa
        self.level = mmu.root_level
        self.sptep = 0
        # A special root has no pages of its own above the page directories.
        special = self.level == 3 or (self.level > 3 and mmu.cpu_role.level < 4 and not mmu.direct)
        if special and not vcpu.kvm.config.kernel.root_strategy.shadow_pages:
            bug_on(vcpu.kvm, "mmu.c:shadow_walk_init_using_root:root", root_hpa != mmu.root_hpa)
        if root_hpa >> 12 in vcpu.kvm.pages:
            return
        if is_dummy_root(vcpu.kvm, root_hpa):
            self.level = 0
            return
        if special:
            pdpte = vcpu.kvm.memory.words[mmu.pae_root * 512 + (addr >> 30 & 3)]
            self._table = pdpte & PT_BASE_ADDR_MASK
            self.level = 2 if self._table else 0

    def okay(self) -> bool:
        """Stand on the next entry; False when there is none."""
        level = self.level
        if level < 1:
            return False
        self.sptep = self._table + ((self.addr >> 3 + 9 * level & 511) << 3)
        return True

    def next(self) -> None:
        """Go down through the entry at hand, or end there."""
        spte, level = spte_at(self._kvm, self.sptep), self.level
        if not spte & SPTE_MMU_PRESENT_MASK or is_last_spte(spte, level):
            self.level = 0
            return
        self._table = spte & PT_BASE_ADDR_MASK
        self.level = level - 1


def shadow_path(vcpu: Vcpu, addr: int, root_hpa: int | None = None) -> list[tuple[int, int, int]]:
    """Return the entries met on the way to `addr` as (level, sptep, spte), root first."""
    path = []
    it = ShadowWalk(vcpu, vcpu.mmu.root_hpa if root_hpa is None else root_hpa, addr)
    while it.okay():
        path.append((it.level, it.sptep, spte_at(vcpu.kvm, it.sptep)))
        it.next()
    return path
