"""All entries of all shadow pages, and all roots that are kept, read from the tables themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mmulab.kvm.invariants.flags import Wrong
from mmulab.kvm.memslot import KvmMemslot, PteList
from mmulab.kvm.mmu import INVALID_PAE_ROOT, INVALID_PAGE, Mmu
from mmulab.kvm.mmu_page import ShadowPage, kvm_mmu_page_get_gfn
from mmulab.kvm.spte import (
    SPTE_ENT_PER_PAGE,
    is_last_spte,
    is_mmio_spte,
    is_shadow_present_pte,
    spte_to_pfn,
)
from mmulab.kvm.state import Kvm, Request, spte_index


class Leaf(NamedTuple):
    """A present entry that maps a page. `gfn` is None if its page cannot tell it."""

    sp: ShadowPage
    sptep: int
    spte: int
    gfn: int | None

    def wrong(self, what: str) -> Wrong:
        """Return that something is wrong with the entry."""
        return Wrong(f"{at(self.sp, self.sptep)} {what}", self.sp, self.sptep, self.gfn)


class Link(NamedTuple):
    """A present entry that points to the table in frame `child`."""

    sp: ShadowPage
    sptep: int
    spte: int
    child: int

    def wrong(self, what: str) -> Wrong:
        """Return that something is wrong with the entry."""
        return Wrong(f"{at(self.sp, self.sptep)} {what}", self.sp, self.sptep)


class Other(NamedTuple):
    """An entry that is not zero and not present: MMIO, empty, or not KVM's."""

    sp: ShadowPage
    sptep: int
    spte: int
    mmio: bool

    def wrong(self, what: str) -> Wrong:
        """Return that something is wrong with the entry."""
        return Wrong(f"{at(self.sp, self.sptep)} {what}", self.sp, self.sptep)


Entry = Leaf | Link | Other


class Survey:
    """All entries of all pages, and all roots that the vCPUs keep.

    Attributes
    ----------
    kvm : Kvm
    leaves : list of Leaf
    links : list of Link
    others : list of Other
        Empty entries excepted.
    roots : list of (str, int, bool)
        Where each root is kept, its host-physical address, and whether the
        vCPU will drop it before it enters the guest if it is out of use.
    """

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.leaves: list[Leaf] = []
        self.links: list[Link] = []
        self.others: list[Other] = []
        self.roots: list[tuple[str, int, bool]] = []
        frames, empty = kvm.memory.frames, kvm.fmt.nonpresent
        for sp in kvm.pages.values():
            table = frames[sp.frame]
            for index in (table.nonzero() if not empty else (table != empty).nonzero())[0].tolist():
                self.add(entry_of(kvm, sp, index))
        for vcpu in kvm.vcpus:
            checked = bool(vcpu.requests & Request.MMU_FREE_OBSOLETE_ROOTS)
            for name, mmu in (("root_mmu", vcpu.root_mmu), ("guest_mmu", vcpu.guest_mmu)):
                for kept, hpa in _kept_roots(kvm, mmu):
                    self.roots.append((f"vCPU {vcpu.id} {name}.{kept}", hpa, checked))

    def add(self, entry: Entry) -> None:
        """Put an entry in its list."""
        if isinstance(entry, Leaf):
            self.leaves.append(entry)
        elif isinstance(entry, Link):
            self.links.append(entry)
        else:
            self.others.append(entry)


def entry_of(kvm: Kvm, sp: ShadowPage, index: int) -> Entry:
    """Read entry `index` of a page."""
    at = sp.frame * SPTE_ENT_PER_PAGE + index
    spte = kvm.memory.words[at]
    sptep = at << 3
    if not is_shadow_present_pte(spte):
        return Other(sp, sptep, spte, is_mmio_spte(kvm.fmt, spte))
    if not is_last_spte(spte, sp.level):
        return Link(sp, sptep, spte, spte_to_pfn(spte))
    known = not sp.has_gptes or index in sp.shadowed_translation
    return Leaf(sp, sptep, spte, kvm_mmu_page_get_gfn(sp, index) if known else None)


def _kept_roots(kvm: Kvm, mmu: Mmu) -> Iterator[tuple[str, int]]:
    """Yield (name, host-physical address) of the pages that a context holds as roots."""
    for i, (_, hpa) in enumerate(mmu.prev_roots):
        if hpa != INVALID_PAGE:
            yield f"prev_roots[{i}]", hpa
    if mmu.root_hpa == INVALID_PAGE:
        return
    if mmu.root_hpa >> 12 not in (mmu.pae_root, mmu.pml4_root, mmu.pml5_root):
        yield "root_hpa", mmu.root_hpa
        return
    for i in range(4):
        entry = kvm.memory.words[mmu.pae_root * SPTE_ENT_PER_PAGE + i]
        if entry != INVALID_PAE_ROOT:
            yield f"pae_root[{i}]", spte_to_pfn(entry) << 12


def at(sp: ShadowPage, sptep: int) -> str:
    """Say where an entry is."""
    return f"spte {sptep:#x} (entry {spte_index(sptep):#x} of {sp!r})"


def flat(head: PteList) -> list[int]:
    """Return the sptes of a reverse map or of the parents of a page."""
    return [sptep for block in head for sptep in block]


def slots_of(kvm: Kvm) -> Iterator[KvmMemslot]:
    """Yield the slots of all address spaces."""
    for slots in kvm.slots:
        yield from slots.slots


def hashed(kvm: Kvm) -> list[ShadowPage]:
    """Return the pages that are found by gfn and role."""
    return [sp for sp in kvm.pages.values() if not sp.tdp_mmu_page and not sp.one_off]


def accounted(kvm: Kvm) -> list[ShadowPage]:
    """Return the pages that count as shadowing a guest table."""
    return [sp for sp in kvm.pages.values() if sp.has_gptes and not sp.invalid]


def tables_at(kvm: Kvm, gfn: int) -> Iterator[ShadowPage]:
    """Yield the accounted pages that shadow the guest table at `gfn`, as the hash has them."""
    for frame in kvm.page_hash.get(gfn, ()):
        sp = kvm.pages.get(frame)
        if sp is not None and sp.gfn == gfn and sp.has_gptes and not sp.invalid:
            yield sp
