"""What must hold of a single entry that maps a page, or that says there is none.

Each check looks at one entry, so that it can be asked for those alone that changed.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.kvm.dirty import kvm_slot_dirty_track_enabled
from mmulab.kvm.invariants.flags import Wrong
from mmulab.kvm.invariants.survey import Leaf, Other, flat, tables_at
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT, KVM_PAGES_PER_HPAGE
from mmulab.kvm.nx_huge_page import is_nx_huge_page_enabled
from mmulab.kvm.spte import (
    SPTE_TDP_AD_MASK,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    is_executable_pte,
    is_shadow_present_pte,
    is_writable_pte,
    spte_to_pfn,
)
from mmulab.kvm.state import Kvm, is_obsolete_sp


def slot_of(kvm: Kvm, leaf: Leaf) -> KvmMemslot | None:
    """Return the slot that shows the leaf's gfn, in the address space of its page."""
    return None if leaf.gfn is None else kvm.slots[leaf.sp.smm].lookup(leaf.gfn)


def is_plain(kvm: Kvm, leaf: Leaf) -> bool:
    """Whether a look tells that no check of this file finds anything: so for nearly every 4 KiB page."""
    sp, gfn, spte = leaf.sp, leaf.gfn, leaf.spte
    if sp.level != 1 or gfn is None:
        return False
    slot = kvm.slots[sp.smm].lookup(gfn)
    if slot is None or spte_to_pfn(spte) != slot.frame(gfn):
        return False
    if not sp.tdp_mmu_page:
        at, times = leaf.sptep, 0
        for block in slot.rmap[1].get(gfn, ()):
            times += block.count(at)
        if times != 1:
            return False
    if not (is_writable_pte(spte) or spte & kvm.fmt.mmu_writable):
        return True
    return gfn not in kvm.page_hash and not kvm_slot_dirty_track_enabled(slot)


def rmap(kvm: Kvm, leaf: Leaf) -> Iterator[Wrong]:
    """The leaf is in the reverse map of its gfn, once."""
    sp, gfn = leaf.sp, leaf.gfn
    if sp.tdp_mmu_page:
        return
    if gfn is None:
        yield leaf.wrong("maps a page, but no gfn is recorded for it")
        return
    slot = slot_of(kvm, leaf)
    if slot is None:
        yield leaf.wrong(f"maps gfn {gfn:#x}, which is in no slot")
        return
    times = flat(slot.rmap[sp.level].get(gfn >> KVM_HPAGE_GFN_SHIFT[sp.level], [])).count(leaf.sptep)
    if times != 1:
        yield leaf.wrong(f"is {times} times in the reverse map of gfn {gfn:#x}")


def frame(kvm: Kvm, leaf: Leaf) -> Iterator[Wrong]:
    """The leaf maps the frame that its slot shows."""
    slot, gfn = slot_of(kvm, leaf), leaf.gfn
    if slot is None or gfn is None:
        return  # the reverse map's violation
    first = gfn & ~(KVM_PAGES_PER_HPAGE[leaf.sp.level] - 1)
    if first != gfn or spte_to_pfn(leaf.spte) != slot.frame(gfn):
        yield leaf.wrong(f"is {leaf.spte:#x}, but gfn {gfn:#x} is frame {slot.frame(gfn):#x}")


def write_protection(kvm: Kvm, leaf: Leaf) -> Iterator[Wrong]:
    """The leaf lets no table in sync be written, and a huge one no shadowed table.

    Only tables of the page's own address space count: KVM protects no others when it makes a page.
    """
    sp, gfn, spte = leaf.sp, leaf.gfn, leaf.spte
    if gfn is None or not (is_writable_pte(spte) or spte & kvm.fmt.mmu_writable):
        return
    if sp.level == 1:
        if any(table.smm == sp.smm and not table.unsync for table in tables_at(kvm, gfn)):
            yield leaf.wrong(f"is {spte:#x} and lets gfn {gfn:#x} be written, a table in sync")
        return
    pages = KVM_PAGES_PER_HPAGE[sp.level]
    for at in [at for at in kvm.page_hash if 0 <= at - gfn < pages]:
        for table in tables_at(kvm, at):
            if table.smm == sp.smm:
                yield leaf.wrong(f"is {spte:#x}, a huge page over the table that {table!r} shadows")


def dirty_log(kvm: Kvm, leaf: Leaf) -> Iterator[Wrong]:
    """The leaf lets no page be written that is logged and counts as clean."""
    slot, gfn, spte = slot_of(kvm, leaf), leaf.gfn, leaf.spte
    if slot is None or gfn is None or not kvm_slot_dirty_track_enabled(slot) or not is_writable_pte(spte):
        return
    # With page-modification logging the processor logs when it sets D.
    if kvm.config.pml and not spte & SPTE_TDP_AD_MASK and not spte & kvm.fmt.dirty:
        return
    clean = clean_pages(kvm, slot, gfn, KVM_PAGES_PER_HPAGE[leaf.sp.level])
    if clean:
        yield leaf.wrong(f"lets gfn {gfn:#x} be written, and {clean} of its pages count as clean")


def clean_pages(kvm: Kvm, slot: KvmMemslot, gfn: int, pages: int) -> int:
    """Return how many pages of a logged slot from `gfn` on count as clean."""
    first = gfn - slot.base_gfn
    if slot.dirty_bitmap is not None:
        return slot.dirty_bitmap[first : first + pages].count(0)
    rings = [vcpu.dirty_ring for vcpu in kvm.vcpus if vcpu.dirty_ring is not None]
    in_rings = {entry[:2] for ring in rings for entry in ring.gfns.values()}
    return sum((slot.as_id << 16 | slot.id, page) not in in_rings for page in range(first, first + pages))


def large_page(kvm: Kvm, leaf: Leaf) -> Iterator[Wrong]:
    """A huge leaf lies whole in its slot and in one page of the host; as an NX huge page it has no X.

    A shadowed table below forbids it to be written, no more (:func:`write_protection`):
    KVM protects a huge page where one is made, and splits none.
    """
    slot, gfn, level = slot_of(kvm, leaf), leaf.gfn, leaf.sp.level
    if level == 1 or slot is None or gfn is None or is_obsolete_sp(kvm, leaf.sp):
        return
    last = gfn + KVM_PAGES_PER_HPAGE[level] - 1
    if gfn not in slot or last not in slot:
        yield leaf.wrong(f"is a page of level {level}, of which slot {slot.id} has only a part")
    elif kvm.memory.mapping_level(slot.frame(gfn), slot.host_level) < level:
        yield leaf.wrong(f"is a page of level {level}, and the host has smaller ones at gfn {gfn:#x}")
    if is_nx_huge_page_enabled(kvm) and is_executable_pte(kvm.fmt, leaf.spte):
        yield leaf.wrong(f"is {leaf.spte:#x} and lets a page of level {level} be executed")


def mmio(kvm: Kvm, entry: Other) -> Iterator[Wrong]:
    """An MMIO entry of today's generation is for a gfn in no slot."""
    if not entry.mmio or is_shadow_present_pte(entry.spte):
        return
    slots, gfn = kvm.slots[entry.sp.smm], get_mmio_spte_gfn(kvm.fmt, entry.spte)
    if get_mmio_spte_generation(entry.spte) == slots.generation and slots.lookup(gfn) is not None:
        yield entry.wrong(f"says that gfn {gfn:#x} is in no slot")
