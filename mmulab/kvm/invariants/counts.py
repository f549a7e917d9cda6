"""What must hold of the lists, counts and statistics of a whole VM, by a recount."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from mmulab.kvm.invariants.flags import Wrong
from mmulab.kvm.invariants.survey import Survey, accounted, flat, hashed, slots_of
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT
from mmulab.kvm.page_track import init_lpage_info
from mmulab.kvm.rmap import PTE_LIST_EXT
from mmulab.kvm.stat import PAGES_STAT
from mmulab.kvm.state import Kvm, is_obsolete_sp


def rmap_heads(s: Survey) -> Iterator[Wrong]:
    """Reverse maps have blocks as the kernel fills them, and nothing but leaves in them."""
    mapped = {
        (leaf.sp.smm, leaf.sp.level, leaf.gfn >> KVM_HPAGE_GFN_SHIFT[leaf.sp.level], leaf.sptep)
        for leaf in s.leaves
        if leaf.gfn is not None
    }
    for slot in slots_of(s.kvm):
        for level in (1, 2, 3):
            for key, head in slot.rmap[level].items():
                gfn = key << KVM_HPAGE_GFN_SHIFT[level]
                where = f"reverse map of gfn {gfn:#x} at level {level}"
                if any(not 0 < len(block) <= PTE_LIST_EXT for block in head) or not head:
                    yield Wrong(f"{where} has blocks of {list(map(len, head))}", gfn=gfn)
                for sptep in flat(head):
                    if (slot.as_id, level, key, sptep) not in mapped:
                        yield Wrong(f"{where} has {sptep:#x}, no such leaf", sptep=sptep, gfn=gfn)


def of_policy(s: Survey) -> Iterator[Wrong]:
    """What the sync policy says of its own books."""
    for said in s.kvm.sync.violations(s.kvm):
        yield Wrong(said)


def page_lists(s: Survey) -> Iterator[Wrong]:
    """Every page is on the lists, under its gfn."""
    kvm = s.kvm
    pages = hashed(kvm)
    active = [sp.frame for sp in pages if not sp.invalid]
    if sorted(kvm.active_mmu_pages) != sorted(active):
        odd = sorted(set(kvm.active_mmu_pages) ^ set(active))
        yield Wrong(f"active_mmu_pages and the valid pages differ in frames {[hex(f) for f in odd]}")
    listed = sorted((gfn, frame) for gfn, frames in kvm.page_hash.items() for frame in frames)
    if listed != sorted((sp.gfn, sp.frame) for sp in pages):
        said = f"page_hash has {len(listed)} pages, not the {len(pages)} that exist, or not under their gfns"
        yield Wrong(said)


def page_counts(kvm: Kvm) -> Iterator[Wrong]:
    """The counts of pages, and of those that shadow tables."""
    for name, count in (
        ("n_used_mmu_pages", len(hashed(kvm))),
        ("indirect_shadow_pages", len(accounted(kvm))),
    ):
        if getattr(kvm, name) != count:
            yield Wrong(f"{name} is {getattr(kvm, name)}, a recount gives {count}")


def write_tracking(s: Survey) -> Iterator[Wrong]:
    """``gfn_track`` counts the tracked pages that shadow each gfn."""
    kept = Counter((sp.smm, sp.gfn) for sp in accounted(s.kvm) if s.kvm.sync.tracks(s.kvm, sp))
    for slot in slots_of(s.kvm):
        tracked = {gfn: count for gfn, count in slot.gfn_track.items() if count}
        wanted = {gfn: count for (smm, gfn), count in kept.items() if smm == slot.as_id and gfn in slot}
        if tracked == wanted:
            continue
        for gfn in sorted(tracked.keys() | wanted.keys()):
            have, want = tracked.get(gfn, 0), wanted.get(gfn, 0)
            if have != want:
                said = f"slot {slot.id}: gfn_track of gfn {gfn:#x} is {have}, {want} tracked pages shadow it"
                yield Wrong(said, gfn=gfn)


@lru_cache(maxsize=256)
def _edges(base_gfn: int, npages: int, base_frame: int) -> list[dict[int, int]]:
    """Return the reasons against huge pages that a slot begins with, by level."""
    bare = KvmMemslot(0, base_gfn, npages, base_frame)
    init_lpage_info(bare)
    return bare.disallow_lpage


def disallow_lpage(s: Survey) -> Iterator[Wrong]:
    """``disallow_lpage`` counts the slot's edges and the shadowed tables."""
    tables = accounted(s.kvm)
    for slot in slots_of(s.kvm):
        gfns = [sp.gfn for sp in tables if sp.smm == slot.as_id and sp.gfn in slot]
        edges = _edges(slot.base_gfn, slot.npages, slot.base_frame)
        for level in (2, 3):
            wanted, found = edges[level].copy(), slot.disallow_lpage[level]
            for gfn in gfns:
                key = gfn >> KVM_HPAGE_GFN_SHIFT[level]
                wanted[key] = wanted.get(key, 0) + 1
            if wanted == found:
                continue
            for key in sorted(wanted.keys() | found.keys()):
                if wanted.get(key, 0) != found.get(key, 0):
                    gfn = key << KVM_HPAGE_GFN_SHIFT[level]
                    yield Wrong(
                        f"slot {slot.id}: disallow_lpage of gfn {gfn:#x} at level {level} "
                        f"is {found.get(key, 0)}, there are {wanted.get(key, 0)} reasons",
                        gfn=gfn,
                    )


def statistics(s: Survey) -> Iterator[Wrong]:
    """``pages_*``, ``mmu_unsync`` and ``nx_lpage_splits`` equal a recount."""
    kvm = s.kvm
    counts = Counter(PAGES_STAT[leaf.sp.level] for leaf in s.leaves)
    counts["mmu_unsync"] = sum(sp.unsync for sp in kvm.pages.values())
    counts["nx_lpage_splits"] = sum(frame in kvm.pages for frame in kvm.possible_nx_huge_pages)
    for name in (*PAGES_STAT[1:], "mmu_unsync", "nx_lpage_splits"):
        if kvm.stat[name] != counts[name]:
            yield Wrong(f"{name} is {kvm.stat[name]}, a recount gives {counts[name]}")


def root_count(s: Survey) -> Iterator[Wrong]:
    """A page is held once for each root that the vCPUs keep."""
    held = Counter(hpa >> 12 for _, hpa, _ in s.roots)
    for sp in s.kvm.pages.values():
        # A root of the TDP MMU is held once more until it is invalidated.
        standing = sp.frame in s.kvm.tdp_mmu_roots and not sp.invalid
        if sp.root_count != held[sp.frame] + standing:
            yield Wrong(f"{sp!r} is held {sp.root_count} times, the vCPUs keep it {held[sp.frame]} times", sp)


def freed_root(s: Survey) -> Iterator[Wrong]:
    """A root that is kept exists."""
    for name, hpa, _ in s.roots:
        if hpa >> 12 not in s.kvm.pages:
            yield Wrong(f"{name} is {hpa:#x}, where there is no page")


def obsolete_root(s: Survey) -> Iterator[Wrong]:
    """A root that is out of use is dropped before the guest is entered."""
    for name, hpa, checked in s.roots:
        root = s.kvm.pages.get(hpa >> 12)
        if root is not None and is_obsolete_sp(s.kvm, root) and not checked:
            yield Wrong(f"{name} is {root!r}, out of use, and no request is left to drop it", root)
