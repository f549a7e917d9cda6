"""Out-of-sync pages as the patches of September 2008 had them.

The rules come from the reply to the core patch, whose hunks it quotes ("Re: [patch]",
Avi Kivity to Marcelo Tosatti, kvm list, September 2008; the patch is msg03535 of
that list's mail-archive). The archived copy has no Message-Id, so a rule is cited
by its sentence:

- "Allow global and single-root, single-role-per-gfn leaf shadowed pagetables to be
  unsynced": :meth:`Oos2008.why_in_sync`.
- "Global unsync pages are saved into a per-vm array, synced on cr4/cr0 writes", and
  ``oos_global_pages[7]``: :meth:`Oos2008.control_written`.
- "Non-global unsync pages are linked off their root shadow page, synced on
  cr3/cr4/cr0 writes": :meth:`Oos2008.sync_roots`.
- "If a pagetable becomes referenced by more than one root, or has multiple roles,
  unsync it and disable oos. For higher level pgtables the entire tree has to be
  synced": :meth:`Oos2008._share`. Roles matter of leaves only: the hunk passes a page
  of another role by.
- "Some of this logic is simplistic and could be smarter (page_multimapped ...)":
  a page is refused if it or a table above it has two parents.
- The hunk of ``kvm_mmu_lookup_page_root`` finds a root by gfn and level and asks for
  no role: :meth:`Oos2008._lookup_page_root`.
- The hunk of ``kvm_mmu_get_page`` returns a page of the same root and role as it is,
  out of sync or not: :meth:`Oos2008.meets`.

What the reply does not quote is ours: a full array gives up the page at its index,
which then goes round, and a page that belongs to another context cannot be given
up; the flag ``global`` begins set and is lost with the first translation that is
not global; with a root its list is zapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from mmulab.errors import InputError, quoted
from mmulab.kvm.flush import kvm_flush_remote_tlbs
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.rmap import pte_list_iter
from mmulab.kvm.roles.root_strategy import top_table_level
from mmulab.kvm.shadow_page import ShadowWalk
from mmulab.kvm.spte import SPTE_ENT_PER_PAGE, is_last_spte, is_shadow_present_pte, spte_to_pfn
from mmulab.kvm.state import Kvm, Vcpu, sptep_to_sp
from mmulab.kvm.sync.links import sync_links
from mmulab.kvm.sync.oos_state import FREE, IN_ARRAY, SEVERAL_ROLES, SEVERAL_ROOTS, OosState
from mmulab.kvm.sync.page import kvm_sync_page, kvm_vcpu_write_protect_gfn
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.unsync import gfn_sps_with_gptes, kvm_unlink_unsync_page, kvm_unsync_page, unsync_pages
from mmulab.kvm.sync.variations import VARIATIONS
from mmulab.kvm.zap import InvalidList, kvm_mmu_commit_zap_page, kvm_mmu_prepare_zap_page
from mmulab.x86.mode import PT_GLOBAL_MASK
from mmulab.x86.regs import X86_CR4_PGE

OOS_GLOBAL_PAGES = 7


@dataclass(frozen=True)
class Oos2008(SyncPolicy):
    """Global pages in an array of the VM, the others on a list of their root.

    Parameters
    ----------
    globals, index, global_by, on_change, roots, parent_zap, inuse : str
        See :data:`~mmulab.kvm.sync.variations.VARIATIONS`. The text of a policy names
        those that are not the design's own: ``oos_2008+index=lru``.

    Raises
    ------
    InputError
        A field has another value.
    """

    globals: str = "array"
    index: str = "round_robin"
    global_by: str = "flag"
    on_change: str = "stay"
    roots: str = "in_sync"
    parent_zap: str = "zap"
    inuse: str = "held"

    name: ClassVar[str] = "oos_2008"
    summary: ClassVar[str] = "leaves of one root and role; global ones in an array of seven, others by root"
    source: ClassVar[str] = "kvm list, September 2008, msg03535 (RFC) and the reply to it"
    follows_leaves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, variation in VARIATIONS.items():
            value = getattr(self, name)
            if value not in variation.values:
                known = " or ".join(variation.values)
                raise InputError(f"sync policy {self.name}: {name}={quoted(value)}, expected {known}")

    def __str__(self) -> str:
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        return "".join([self.name, *(f"+{name}={getattr(self, name)}" for name in changed)])

    @property
    def page_bytes(self) -> int:  # type: ignore[override]
        """Two list heads, ``root_gfn``, ``unsync``, and ``global`` or two counters of 16 bits."""
        return 2 * 16 + 8 + 1 + (1 if self.global_by == "flag" else 4)

    @property
    def vm_bytes(self) -> int:  # type: ignore[override]
        """The array and its index, or a list's head."""
        return OOS_GLOBAL_PAGES * 8 + 4 if self.globals == "array" else 16

    def new_state(self) -> OosState:
        places = OOS_GLOBAL_PAGES if self.globals == "array" else 0
        return OosState(global_pages=[FREE] * places)

    @staticmethod
    def state(kvm: Kvm) -> OosState:
        """Return what is remembered of a VM."""
        assert isinstance(kvm.sync_state, OosState)
        return kvm.sync_state

    def tracks(self, kvm: Kvm, sp: ShadowPage) -> bool:
        if self.roots == "unsync" and sp.frame in self.state(kvm).roots:
            return False
        return sp.level > 1

    # Pages ------------------------------------------------------------------------

    def created(self, kvm: Kvm, vcpu: Vcpu | None, sp: ShadowPage, addr: int | None) -> None:
        if vcpu is None or not sp.has_gptes:
            return
        state = self.state(kvm)
        root = self._root_gfn(vcpu, sp, addr)
        if addr is None:
            state.roots[sp.frame] = 1
        others = [other for other in gfn_sps_with_gptes(kvm, sp.gfn) if other is not sp]
        if any(state.root_of.get(other.frame) != root for other in others):
            state.root_of[sp.frame] = SEVERAL_ROOTS
        elif others and sp.level == 1:
            state.root_of[sp.frame] = SEVERAL_ROLES
        else:
            state.root_of[sp.frame] = root

    def meets(self, vcpu: Vcpu, sp: ShadowPage, addr: int | None, invalid: InvalidList) -> bool:
        """Share a page that another root has made; what this one has made is taken as it is."""
        if sp.has_gptes and self._of_other_root(vcpu, sp, addr):
            self._share(vcpu, sp, invalid, SEVERAL_ROOTS)
        return sp.frame not in invalid

    def meets_other(
        self,
        kvm: Kvm,
        vcpu: Vcpu | None,
        sp: ShadowPage,
        addr: int | None,
        invalid: InvalidList,
        *,
        upper: bool,
    ) -> None:
        if vcpu is None or not sp.has_gptes:
            return
        if self._of_other_root(vcpu, sp, addr):
            self._share(vcpu, sp, invalid, SEVERAL_ROOTS)
        elif sp.level == 1:
            self._share(vcpu, sp, invalid, SEVERAL_ROLES)

    def _of_other_root(self, vcpu: Vcpu, sp: ShadowPage, addr: int | None) -> bool:
        return self.state(vcpu.kvm).root_of.get(sp.frame) != self._root_gfn(vcpu, sp, addr)

    def _share(self, vcpu: Vcpu, sp: ShadowPage, invalid: InvalidList, why: int) -> None:
        """Bring a page, or the whole tree below it, into sync for good (``set_shared_mmu_page``)."""
        state = self.state(vcpu.kvm)
        if state.root_of.get(sp.frame, why) < 0:
            return
        tree = list(_tree(vcpu.kvm, sp))
        for page in tree:
            state.root_of[page.frame] = why if page is sp else SEVERAL_ROOTS
        zapped = invalid if self.inuse == "held" else []
        self.resync(vcpu, [page for page in tree if page.unsync], zapped)
        if self.inuse == "freed":
            kvm_mmu_commit_zap_page(vcpu.kvm, zapped)
            # The hunk goes on to read the page's role.
            assert sp.frame in vcpu.kvm.pages, f"{sp!r} was freed by its own resync"

    def may_zap(self, kvm: Kvm, sp: ShadowPage) -> bool:
        return self.parent_zap != "refuse" or len(list(_tree(kvm, sp))) == 1

    def zap_below(self, kvm: Kvm, sp: ShadowPage, invalid: InvalidList) -> int:
        """Zap what is on the list of a root that goes, or lose it."""
        state = self.state(kvm)
        frames = list(state.lists.get(sp.frame, ()))
        if self.parent_zap == "orphan":
            for frame in frames:
                state.take_off(frame)
            return 0
        for frame in frames:
            kvm_mmu_prepare_zap_page(kvm, kvm.pages[frame], invalid)
        return len(frames)

    def zapped(self, kvm: Kvm, sp: ShadowPage) -> None:
        self.state(kvm).forget(sp.frame)

    def _root_gfn(self, vcpu: Vcpu, sp: ShadowPage, addr: int | None) -> int:
        """Return the gfn of the root by which the vCPU translates `addr`; `sp` itself is one without."""
        if addr is None:
            return sp.gfn
        it = ShadowWalk(vcpu, vcpu.mmu.root_hpa, addr)
        return sptep_to_sp(vcpu.kvm, it.sptep).gfn if it.okay() else SEVERAL_ROOTS

    def _lookup_page_root(self, kvm: Kvm, gfn: int) -> ShadowPage | None:
        """Return the first page of a root's gfn and of the vCPU's root level, whatever its role."""
        level = top_table_level(kvm.vcpus[kvm.running_vcpu].mmu.cpu_role)
        return next((sp for sp in gfn_sps_with_gptes(kvm, gfn) if sp.level == level), None)

    # Leaving sync -----------------------------------------------------------------

    def try_to_unsync(
        self, kvm: Kvm, slot: KvmMemslot, gfn: int, *, can_unsync: bool, prefetch: bool
    ) -> bool:
        return unsync_pages(self, kvm, slot, gfn, self._leave, can_unsync=can_unsync, prefetch=prefetch)

    def _leave(self, kvm: Kvm, sp: ShadowPage) -> str:
        reason = self.why_in_sync(kvm, sp) or self._find_place(kvm, sp)
        if not reason:
            kvm_unsync_page(kvm, sp)
        return reason

    def why_in_sync(self, kvm: Kvm, sp: ShadowPage) -> str:
        """Return in a word why `sp` must stay in sync; empty: it may go out."""
        key = self.state(kvm).root_of.get(sp.frame, SEVERAL_ROOTS)
        if any(other.role != sp.role for other in gfn_sps_with_gptes(kvm, sp.gfn)) or key == SEVERAL_ROLES:
            return "several_roles"
        if key == SEVERAL_ROOTS:
            return "several_roots"
        if self._page_multimapped(kvm, sp):
            return "several_parents"
        return ""

    def _page_multimapped(self, kvm: Kvm, sp: ShadowPage) -> bool:
        """Whether the page, or a table above it, is linked twice or shared."""
        parents = list(pte_list_iter(sp.parent_ptes))
        if len(parents) > 1:
            return True
        if not parents:
            return False
        above = sptep_to_sp(kvm, parents[0])
        shared = self.state(kvm).root_of.get(above.frame) == SEVERAL_ROOTS
        return shared or self._page_multimapped(kvm, above)

    def _find_place(self, kvm: Kvm, sp: ShadowPage) -> str:
        """Put a page in the array or on its root's list; return in a word why there is no place."""
        state = self.state(kvm)
        if self.is_global(kvm, sp):
            return self._into_array(kvm, sp)
        root = self._lookup_page_root(kvm, state.root_of[sp.frame])
        if root is None:
            return "no_root"
        state.link(sp.frame, root.frame)
        return ""

    def _into_array(self, kvm: Kvm, sp: ShadowPage) -> str:
        state = self.state(kvm)
        if self.globals == "list":
            state.global_pages = [*state.in_array(), FREE]
            state.index = len(state.global_pages) - 1
        elif self.index == "lru":
            # Free places first, then the pages by use, the least recent one at the index.
            used = state.in_array()
            state.global_pages = [FREE] * (OOS_GLOBAL_PAGES - len(used)) + used
            state.index = 0
        at = state.index
        if state.global_pages[at] != FREE:
            vcpu = kvm.vcpus[kvm.running_vcpu]
            victim = kvm.pages[state.global_pages[at]]
            if (victim.role ^ vcpu.mmu.root_role) & kvm.config.kernel.design.sync_mask:
                return "array_full"
            invalid: InvalidList = []
            kvm.sync_stat["evicted"] += 1
            self.resync(vcpu, [victim], invalid)
            kvm_mmu_commit_zap_page(kvm, invalid)
        state.global_pages[at] = sp.frame
        state.place[sp.frame] = IN_ARRAY
        if self.index == "lru":
            state.use(sp.frame)
        state.index = (at + 1) % len(state.global_pages)
        return ""

    def counts_floods(self, kvm: Kvm, sp: ShadowPage) -> bool:
        """Count a leaf too if it is out of the running for good."""
        return sp.level > 1 or self.state(kvm).root_of.get(sp.frame, SEVERAL_ROOTS) < 0

    # Global pages -----------------------------------------------------------------

    def is_global(self, kvm: Kvm, sp: ShadowPage) -> bool:
        """Whether all that the page translates is global."""
        if sp.level > 1:
            return False
        state = self.state(kvm)
        if self.global_by == "flag":
            return sp.frame not in state.not_global
        base, empty = sp.frame * SPTE_ENT_PER_PAGE, kvm.fmt.nonpresent
        leaves = state.global_leaves.get(sp.frame, {})
        present = kvm.memory.words[base : base + SPTE_ENT_PER_PAGE].tolist()
        return all(index in leaves for index, spte in enumerate(present) if spte != empty)

    def leaf_set(self, vcpu: Vcpu, sp: ShadowPage, index: int, gpte: int) -> None:
        """Note whether a leaf is global: not without CR4.PGE, nor where L1's tables for L2 are shadowed."""
        kvm, state = vcpu.kvm, self.state(vcpu.kvm)
        own = vcpu.mmu is vcpu.walk_mmu and not vcpu.guest_mode
        if self.global_by == "counters":
            state.global_leaves.setdefault(sp.frame, {}).pop(index, None)
        enabled = vcpu.cr4 & X86_CR4_PGE or kvm.bugs.B29
        if not (own and gpte & PT_GLOBAL_MASK and enabled):
            state.not_global[sp.frame] = 1
        elif self.global_by == "counters":
            state.global_leaves[sp.frame][index] = 1
        if not sp.unsync:
            return
        if self.index == "lru" and state.place.get(sp.frame) == IN_ARRAY:
            state.use(sp.frame)
        if self.on_change == "move":
            self._move(kvm, sp)

    def _move(self, kvm: Kvm, sp: ShadowPage) -> None:
        """Take an unsync page to where it belongs now; without a place there it stays where it is."""
        state = self.state(kvm)
        place = state.place.get(sp.frame)
        if place is None or (place == IN_ARRAY) == self.is_global(kvm, sp):
            return
        if place != IN_ARRAY:
            # Not for one that would push another out: this may be in the middle of a resync.
            if FREE in state.global_pages or self.globals == "list":
                state.take_off(sp.frame)
                state.index = state.global_pages.index(FREE) if self.globals == "array" else state.index
                self._into_array(kvm, sp)
            return
        root = self._lookup_page_root(kvm, state.root_of[sp.frame])
        if root is not None:
            state.take_off(sp.frame)
            state.link(sp.frame, root.frame)

    # Coming back ------------------------------------------------------------------

    def resync(self, vcpu: Vcpu, pages: Sequence[ShadowPage], invalid: InvalidList) -> None:
        """Bring pages back into sync: protect all, flush, compare each; zap what cannot be."""
        kvm, state = vcpu.kvm, self.state(vcpu.kvm)
        protected = False
        for sp in pages:
            protected |= kvm_vcpu_write_protect_gfn(vcpu, sp.gfn)
        if protected:
            kvm_flush_remote_tlbs(kvm)
        flush = False
        for sp in pages:
            if not sp.unsync:  # zapped with one before it
                continue
            state.take_off(sp.frame)
            kvm_unlink_unsync_page(kvm, sp)
            if sp.level > 1:
                flush |= sync_links(vcpu, sp)
            else:
                flush |= kvm_sync_page(vcpu, sp, invalid) > 0
        if flush:
            kvm_flush_remote_tlbs(kvm)

    def sync_roots(self, vcpu: Vcpu, roots: Sequence[ShadowPage], *, everything: bool) -> None:
        kvm, state = vcpu.kvm, self.state(vcpu.kvm)
        frames = [frame for root in roots for frame in state.lists.get(root.frame, ())]
        if everything:
            frames += state.in_array()
        invalid: InvalidList = []
        self.resync(vcpu, [kvm.pages[frame] for frame in frames], invalid)
        kvm_mmu_commit_zap_page(kvm, invalid)

    def control_written(self, vcpu: Vcpu, roots: Sequence[ShadowPage]) -> None:
        self.sync_roots(vcpu, roots, everything=True)

    def invalidating(self, vcpu: Vcpu, gva: int, root_hpa: int) -> None:
        """Bring an unsync root into sync, whose entry on the way INVLPG must forget too."""
        it = ShadowWalk(vcpu, root_hpa, gva)
        if it.okay() and self.roots == "unsync":
            root = sptep_to_sp(vcpu.kvm, it.sptep)
            invalid: InvalidList = []
            self.resync(vcpu, [root] if root.unsync else [], invalid)
            kvm_mmu_commit_zap_page(vcpu.kvm, invalid)

    def is_unsync_root(self, kvm: Kvm, sp: ShadowPage) -> bool:
        return sp.frame in self.state(kvm).lists

    def may_hide_below(self, sp: ShadowPage) -> bool:
        return True

    def violations(self, kvm: Kvm) -> Iterator[str]:
        state = self.state(kvm)
        listed = [frame for frames in state.lists.values() for frame in frames] + state.in_array()
        unsync = [frame for frame, sp in kvm.pages.items() if sp.unsync]
        if self.parent_zap == "orphan":
            unsync = [frame for frame in unsync if frame in state.place]
        if sorted(listed) != sorted(unsync) or sorted(state.place) != sorted(unsync):
            yield f"frames {sorted(unsync)} are unsync, and {sorted(listed)} are on lists or in the array"


def _tree(kvm: Kvm, sp: ShadowPage) -> Iterator[ShadowPage]:
    """Yield a page and every page below it that shadows a guest table."""
    yield sp
    if sp.level == 1:
        return
    base = sp.frame * SPTE_ENT_PER_PAGE
    for spte in kvm.memory.words[base : base + SPTE_ENT_PER_PAGE].tolist():
        if is_shadow_present_pte(spte) and not is_last_spte(spte, sp.level):
            child = kvm.pages[spte_to_pfn(spte)]
            if child.has_gptes:
                yield from _tree(kvm, child)


oos_2008 = Oos2008()
