"""What must hold of the MMU's state whenever no op is under way.

:func:`status` tells which invariants are violated, :func:`violations` tells
where. Everything is recounted from the shadow tables themselves, from the
slots and from the vCPUs' roots; nothing is changed and no event is reported.

The minimum is what the kernel's own auditor checked until it was removed
(``arch/x86/kvm/mmu/mmu_audit.c``, Linux 5.16): entries agree with the reverse
map, and nothing may write a protected table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from enum import IntFlag, auto
from typing import NamedTuple

from mmulab.kvm.dirty import kvm_slot_dirty_track_enabled
from mmulab.kvm.memslot import KvmMemslot, PteList
from mmulab.kvm.mmu import INVALID_PAE_ROOT, INVALID_PAGE, Mmu
from mmulab.kvm.mmu_page import ShadowPage, kvm_mmu_page_get_gfn
from mmulab.kvm.page_track import init_lpage_info
from mmulab.kvm.rmap import PTE_LIST_EXT
from mmulab.kvm.spte import (
    SPTE_ENT_PER_PAGE,
    SPTE_TDP_AD_MASK,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_last_spte,
    is_mmio_spte,
    is_shadow_present_pte,
    is_writable_pte,
    spte_to_pfn,
)
from mmulab.kvm.stat import PAGES_STAT
from mmulab.kvm.state import Kvm, Request, is_obsolete_sp, spte_index


class Invariant(IntFlag):
    """What can be violated. A state that is right has none of these: ``VALID``."""

    VALID = 0
    RMAP = auto()
    """Leaf sptes and reverse maps agree both ways, under the gfn computed from the page."""
    FRAME = auto()
    """A leaf maps the frame that its slot shows at its gfn."""
    PARENTS = auto()
    """Links and parent pointers agree both ways."""
    ROLE = auto()
    """A page's header says what its role says, and a link goes one level down."""
    DUPLICATE = auto()
    """No two usable pages have the same gfn and role."""
    WRITE_PROTECTION = auto()
    """Nothing can write a table that a synced page shadows, nor any shadowed table by a huge page."""
    UNSYNC = auto()
    """Only pages that are not write-tracked are unsync; every parent knows of it, up to the roots."""
    PAGE_COUNTS = auto()
    """The lists and counts of pages are those of the pages that exist."""
    WRITE_TRACKING = auto()
    """``gfn_track`` counts the tracked pages that shadow each gfn: the upper-level ones, in Linux."""
    DISALLOW_LPAGE = auto()
    """``disallow_lpage`` counts the slot's edges and the shadowed tables."""
    STATISTICS = auto()
    """``pages_*``, ``mmu_unsync`` and ``nx_lpage_splits`` equal a recount."""
    ROOT_COUNT = auto()
    """A page is held once for each root that the vCPUs keep."""
    FREED = auto()
    """Every table that can be reached exists."""
    OBSOLETE = auto()
    """Nothing below a root that may be loaded is invalid or of the other generation."""
    DIRTY_LOG = auto()
    """Where writes are logged, a page that can be written counts as dirty."""
    MMIO = auto()
    """An MMIO entry of the current generation is for a gfn in no slot."""


class Leaf(NamedTuple):
    """A present entry that maps a page. `gfn` is None if its page cannot tell it."""

    sp: ShadowPage
    sptep: int
    spte: int
    gfn: int | None


class Link(NamedTuple):
    """A present entry that points to a table."""

    sp: ShadowPage
    sptep: int
    child: int


class Survey:
    """All present entries of all pages, and all roots that the vCPUs keep.

    Attributes
    ----------
    kvm : Kvm
    leaves : list of Leaf
    links : list of Link
    mmio : list of (ShadowPage, int, int)
        Page, host-physical address and value of each MMIO entry.
    roots : list of (str, int, bool)
        Where each root is kept, its host-physical address, and whether the
        vCPU will drop it before it enters the guest if it is out of use.
    """

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.leaves: list[Leaf] = []
        self.links: list[Link] = []
        self.mmio: list[tuple[ShadowPage, int, int]] = []
        self.roots: list[tuple[str, int, bool]] = []
        frames = kvm.memory.frames
        for sp in kvm.pages.values():
            for index in frames[sp.frame].nonzero()[0].tolist():
                self._entry(sp, index)
        for vcpu in kvm.vcpus:
            checked = bool(vcpu.requests & Request.MMU_FREE_OBSOLETE_ROOTS)
            for name, mmu in (("root_mmu", vcpu.root_mmu), ("guest_mmu", vcpu.guest_mmu)):
                for kept, hpa in _kept_roots(kvm, mmu):
                    self.roots.append((f"vCPU {vcpu.id} {name}.{kept}", hpa, checked))

    def _entry(self, sp: ShadowPage, index: int) -> None:
        at = sp.frame * SPTE_ENT_PER_PAGE + index
        spte = self.kvm.memory.words[at]
        sptep = at << 3
        if not is_shadow_present_pte(spte):
            if is_mmio_spte(self.kvm.fmt, spte):
                self.mmio.append((sp, sptep, spte))
        elif is_last_spte(spte, sp.level):
            known = not sp.has_gptes or index in sp.shadowed_translation
            self.leaves.append(Leaf(sp, sptep, spte, kvm_mmu_page_get_gfn(sp, index) if known else None))
        else:
            self.links.append(Link(sp, sptep, spte_to_pfn(spte)))


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


def _at(sp: ShadowPage, sptep: int) -> str:
    return f"spte {sptep:#x} (entry {spte_index(sptep):#x} of {sp!r})"


def _flat(head: PteList) -> list[int]:
    return [sptep for block in head for sptep in block]


def _rmap(s: Survey) -> Iterator[str]:
    kvm = s.kvm
    mapped: set[tuple[int, int, int, int]] = set()
    for sp, sptep, _, gfn in s.leaves:
        if sp.tdp_mmu_page:
            continue
        if gfn is None:
            yield f"{_at(sp, sptep)} maps a page, but no gfn is recorded for it"
            continue
        slot = kvm.slots[sp.smm].lookup(gfn)
        if slot is None:
            yield f"{_at(sp, sptep)} maps gfn {gfn:#x}, which is in no slot"
            continue
        key = gfn >> 9 * (sp.level - 1)
        mapped.add((sp.smm, sp.level, key, sptep))
        times = _flat(slot.rmap[sp.level].get(key, [])).count(sptep)
        if times != 1:
            yield f"{_at(sp, sptep)} is {times} times in the reverse map of gfn {gfn:#x}"
    for slot in _slots(kvm):
        for level in (1, 2, 3):
            for key, head in slot.rmap[level].items():
                gfn = key << 9 * (level - 1)
                if any(not 0 < len(block) <= PTE_LIST_EXT for block in head) or not head:
                    yield f"reverse map of gfn {gfn:#x} at level {level} has blocks of {list(map(len, head))}"
                for sptep in _flat(head):
                    if (slot.as_id, level, key, sptep) not in mapped:
                        yield f"reverse map of gfn {gfn:#x} at level {level} has {sptep:#x}, no such leaf"


def _slots(kvm: Kvm) -> Iterator[KvmMemslot]:
    for slots in kvm.slots:
        yield from slots.slots


def _frame(s: Survey) -> Iterator[str]:
    for sp, sptep, spte, gfn in s.leaves:
        slot = None if gfn is None else s.kvm.slots[sp.smm].lookup(gfn)
        if slot is None or gfn is None:
            continue  # the reverse map's violation
        first = gfn & ~((1 << 9 * (sp.level - 1)) - 1)
        if first != gfn or spte_to_pfn(spte) != slot.frame(gfn):
            yield f"{_at(sp, sptep)} is {spte:#x}, but gfn {gfn:#x} is frame {slot.frame(gfn):#x}"


def _parents(s: Survey) -> Iterator[str]:
    linked: set[tuple[int, int]] = set()
    for sp, sptep, frame in s.links:
        linked.add((sptep, frame))
        child = s.kvm.pages.get(frame)
        if child is None or child.tdp_mmu_page:
            continue
        times = _flat(child.parent_ptes).count(sptep)
        if times != 1:
            yield f"{_at(sp, sptep)} points to {child!r}, which has it {times} times as a parent"
    for child in s.kvm.pages.values():
        for sptep in _flat(child.parent_ptes):
            if (sptep, child.frame) not in linked:
                yield f"{child!r} has the parent {sptep:#x}, which does not point to it"


def _role(s: Survey) -> Iterator[str]:
    facts_of = s.kvm.config.kernel.design.facts
    for sp in s.kvm.pages.values():
        facts = facts_of(sp.role)
        for name in ("level", "quadrant", "access", "direct", "passthrough", "invalid", "smm"):
            if getattr(sp, name) != getattr(facts, name):
                yield f"{sp!r} has {name} {getattr(sp, name)}, but its role says {getattr(facts, name)}"
    for sp, sptep, frame in s.links:
        child = s.kvm.pages.get(frame)
        if child is not None and child.level != sp.level - 1:
            yield f"{_at(sp, sptep)} points to {child!r}, not one level down"


def _hashed(kvm: Kvm) -> list[ShadowPage]:
    """Return the pages that are found by gfn and role."""
    return [sp for sp in kvm.pages.values() if not sp.tdp_mmu_page and not sp.one_off]


def _duplicate(s: Survey) -> Iterator[str]:
    usable = [sp for sp in _hashed(s.kvm) if not is_obsolete_sp(s.kvm, sp)]
    counts = Counter((sp.gfn, sp.role) for sp in usable)
    for (gfn, role), count in counts.items():
        if count > 1:
            yield f"{count} usable pages have gfn {gfn:#x} and role {role:#x}"


def _accounted(kvm: Kvm) -> list[ShadowPage]:
    """Return the pages that count as shadowing a guest table."""
    return [sp for sp in kvm.pages.values() if sp.has_gptes and not sp.invalid]


def _write_protection(s: Survey) -> Iterator[str]:
    """Only sptes of the page's own address space: KVM protects no others when it makes a page."""
    fmt = s.kvm.fmt
    tables = _accounted(s.kvm)
    synced = {(sp.smm, sp.gfn) for sp in tables if not sp.unsync}
    for sp, sptep, spte, gfn in s.leaves:
        if gfn is None or not (is_writable_pte(spte) or spte & fmt.mmu_writable):
            continue
        if sp.level == 1:
            if (sp.smm, gfn) in synced:
                yield f"{_at(sp, sptep)} is {spte:#x} and lets gfn {gfn:#x} be written, a table in sync"
            continue
        pages = 1 << 9 * (sp.level - 1)
        for table in tables:
            if table.smm == sp.smm and 0 <= table.gfn - gfn < pages:
                yield f"{_at(sp, sptep)} is {spte:#x}, a huge page over the table that {table!r} shadows"


def _unsync(s: Survey) -> Iterator[str]:
    for sp in s.kvm.pages.values():
        if sp.unsync and (s.kvm.sync.tracks(s.kvm, sp) or not sp.has_gptes or sp.invalid):
            yield f"{sp!r} is unsync"
        if sp.unsync_children != sp.unsync_child_bitmap.bit_count():
            bits = sp.unsync_child_bitmap.bit_count()
            yield f"{sp!r} counts {sp.unsync_children} unsync children, its bitmap {bits}"
    yield from s.kvm.sync.violations(s.kvm)
    for sp, sptep, frame in s.links if s.kvm.sync.marks_parents else ():
        child = s.kvm.pages.get(frame)
        if child is None or not (child.unsync or child.unsync_children):
            continue  # a bit too many is cleared by the next walk that finds nothing there
        if not sp.unsync_child_bitmap >> spte_index(sptep) & 1:
            yield f"{_at(sp, sptep)} does not know that something below {child!r} is unsync"


def _page_counts(s: Survey) -> Iterator[str]:
    kvm = s.kvm
    pages = _hashed(kvm)
    active = [sp.frame for sp in pages if not sp.invalid]
    if sorted(kvm.active_mmu_pages) != sorted(active):
        odd = sorted(set(kvm.active_mmu_pages) ^ set(active))
        yield f"active_mmu_pages and the valid pages differ in frames {[hex(f) for f in odd]}"
    hashed = sorted((gfn, frame) for gfn, frames in kvm.page_hash.items() for frame in frames)
    if hashed != sorted((sp.gfn, sp.frame) for sp in pages):
        yield f"page_hash has {len(hashed)} pages, not the {len(pages)} that exist, or not under their gfns"
    for name, count in (
        ("n_used_mmu_pages", len(pages)),
        ("indirect_shadow_pages", len(_accounted(kvm))),
    ):
        if getattr(kvm, name) != count:
            yield f"{name} is {getattr(kvm, name)}, a recount gives {count}"


def _write_tracking(s: Survey) -> Iterator[str]:
    kept = Counter((sp.smm, sp.gfn) for sp in _accounted(s.kvm) if s.kvm.sync.tracks(s.kvm, sp))
    for slot in _slots(s.kvm):
        tracked = {gfn: count for gfn, count in slot.gfn_track.items() if count}
        wanted = {gfn: count for (smm, gfn), count in kept.items() if smm == slot.as_id and gfn in slot}
        for gfn in sorted(tracked.keys() | wanted.keys()):
            if tracked.get(gfn, 0) != wanted.get(gfn, 0):
                yield (
                    f"slot {slot.id}: gfn_track of gfn {gfn:#x} is {tracked.get(gfn, 0)}, "
                    f"{wanted.get(gfn, 0)} tracked pages shadow it"
                )


def _disallow_lpage(s: Survey) -> Iterator[str]:
    tables = _accounted(s.kvm)
    for slot in _slots(s.kvm):
        bare = KvmMemslot(slot.id, slot.base_gfn, slot.npages, slot.base_frame, as_id=slot.as_id)
        init_lpage_info(bare)
        for level in (2, 3):
            wanted = Counter(bare.disallow_lpage[level])
            wanted.update(
                sp.gfn >> 9 * (level - 1) for sp in tables if sp.smm == slot.as_id and sp.gfn in slot
            )
            found = slot.disallow_lpage[level]
            for key in sorted(wanted.keys() | found.keys()):
                if wanted[key] != found.get(key, 0):
                    yield (
                        f"slot {slot.id}: disallow_lpage of gfn {key << 9 * (level - 1):#x} at level {level} "
                        f"is {found.get(key, 0)}, there are {wanted[key]} reasons"
                    )


def _statistics(s: Survey) -> Iterator[str]:
    kvm = s.kvm
    counts = Counter(PAGES_STAT[leaf.sp.level] for leaf in s.leaves)
    counts["mmu_unsync"] = sum(sp.unsync for sp in kvm.pages.values())
    counts["nx_lpage_splits"] = sum(frame in kvm.pages for frame in kvm.possible_nx_huge_pages)
    for name in (*PAGES_STAT[1:], "mmu_unsync", "nx_lpage_splits"):
        if kvm.stat[name] != counts[name]:
            yield f"{name} is {kvm.stat[name]}, a recount gives {counts[name]}"


def _root_count(s: Survey) -> Iterator[str]:
    held = Counter(hpa >> 12 for _, hpa, _ in s.roots)
    for sp in s.kvm.pages.values():
        # A root of the TDP MMU is held once more until it is invalidated.
        standing = sp.frame in s.kvm.tdp_mmu_roots and not sp.invalid
        if sp.root_count != held[sp.frame] + standing:
            yield f"{sp!r} is held {sp.root_count} times, the vCPUs keep it {held[sp.frame]} times"


def _freed(s: Survey) -> Iterator[str]:
    for name, hpa, _ in s.roots:
        if hpa >> 12 not in s.kvm.pages:
            yield f"{name} is {hpa:#x}, where there is no page"
    for sp, sptep, frame in s.links:
        if frame not in s.kvm.pages:
            yield f"{_at(sp, sptep)} points to frame {frame:#x}, where there is no page"


def _obsolete(s: Survey) -> Iterator[str]:
    pages = s.kvm.pages
    for name, hpa, checked in s.roots:
        root = pages.get(hpa >> 12)
        if root is not None and is_obsolete_sp(s.kvm, root) and not checked:
            yield f"{name} is {root!r}, out of use, and no request is left to drop it"
    for sp, sptep, frame in s.links:
        child = pages.get(frame)
        # A vCPU's own roots go together, when it drops the one on top.
        if child is not None and is_obsolete_sp(s.kvm, child) and not child.one_off:
            yield f"{_at(sp, sptep)} points to {child!r}, which is out of use"


def _dirty_log(s: Survey) -> Iterator[str]:
    kvm = s.kvm
    rings = [vcpu.dirty_ring for vcpu in kvm.vcpus if vcpu.dirty_ring is not None]
    in_rings = {entry[:2] for ring in rings for entry in ring.gfns.values()}
    for sp, sptep, spte, gfn in s.leaves:
        slot = None if gfn is None else kvm.slots[sp.smm].lookup(gfn)
        if slot is None or gfn is None or not kvm_slot_dirty_track_enabled(slot) or not is_writable_pte(spte):
            continue
        # With page-modification logging the processor logs when it sets D.
        if kvm.config.pml and not spte & SPTE_TDP_AD_MASK and not spte & kvm.fmt.dirty:
            continue
        first = gfn - slot.base_gfn
        pages = range(first, first + (1 << 9 * (sp.level - 1)))
        if slot.dirty_bitmap is not None:
            clean = slot.dirty_bitmap[pages.start : pages.stop].count(0)
        else:
            clean = sum((slot.as_id << 16 | slot.id, page) not in in_rings for page in pages)
        if clean:
            yield f"{_at(sp, sptep)} lets gfn {gfn:#x} be written, and {clean} of its pages count as clean"


def _mmio(s: Survey) -> Iterator[str]:
    fmt = s.kvm.fmt
    for sp, sptep, spte in s.mmio:
        slots, gfn = s.kvm.slots[sp.smm], get_mmio_spte_gfn(fmt, spte)
        if get_mmio_spte_generation(spte) == slots.generation and slots.lookup(gfn) is not None:
            yield f"{_at(sp, sptep)} says that gfn {gfn:#x} is in no slot"


_CHECKS: dict[Invariant, Callable[[Survey], Iterator[str]]] = {
    Invariant.RMAP: _rmap,
    Invariant.FRAME: _frame,
    Invariant.PARENTS: _parents,
    Invariant.ROLE: _role,
    Invariant.DUPLICATE: _duplicate,
    Invariant.WRITE_PROTECTION: _write_protection,
    Invariant.UNSYNC: _unsync,
    Invariant.PAGE_COUNTS: _page_counts,
    Invariant.WRITE_TRACKING: _write_tracking,
    Invariant.DISALLOW_LPAGE: _disallow_lpage,
    Invariant.STATISTICS: _statistics,
    Invariant.ROOT_COUNT: _root_count,
    Invariant.FREED: _freed,
    Invariant.OBSOLETE: _obsolete,
    Invariant.DIRTY_LOG: _dirty_log,
    Invariant.MMIO: _mmio,
}


def status(kvm: Kvm) -> Invariant:
    """Return every invariant that is violated; ``Invariant.VALID``, which is false, if none is."""
    survey = Survey(kvm)
    found = Invariant.VALID
    for invariant, check in _CHECKS.items():
        if next(check(survey), None) is not None:
            found |= invariant
    return found


def violations(kvm: Kvm) -> list[str]:
    """Return one line for each violation: the invariant's name, and what is wrong where."""
    survey = Survey(kvm)
    return [f"{invariant.name}: {line}" for invariant, check in _CHECKS.items() for line in check(survey)]
