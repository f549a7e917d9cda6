"""What must hold of a single page and of a single link between two."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from mmulab.kvm.invariants.flags import Wrong
from mmulab.kvm.invariants.survey import Link, flat
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.roles.design import role_facts
from mmulab.kvm.spte import SPTE_ENT_PER_PAGE, is_last_spte, is_shadow_present_pte, spte_to_pfn
from mmulab.kvm.state import Kvm, is_obsolete_sp, spte_at, spte_index
from mmulab.x86.mode import PT_WRITABLE_MASK

_NAMES = ("level", "quadrant", "access", "direct", "passthrough", "invalid", "smm")
_FACTS = attrgetter(*_NAMES)

# Plain ones --------------------------------------------------------------------


def is_plain_link(kvm: Kvm, link: Link) -> bool:
    """Whether a look tells that no check of a link finds anything."""
    child = kvm.pages.get(link.child)
    if child is None or child.level != link.sp.level - 1:
        return False
    if (child.unsync or child.unsync_children) and not (
        link.sp.unsync_child_bitmap >> spte_index(link.sptep) & 1
    ):
        return False
    if child.has_4_byte_gpte or is_obsolete_sp(kvm, child):
        return False
    if child.tdp_mmu_page:
        return True
    times = 0
    for block in child.parent_ptes:
        times += block.count(link.sptep)
    return times == 1


def is_plain_page(kvm: Kvm, sp: ShadowPage) -> bool:
    """Whether a look tells that no check of a page finds anything."""
    if sp.unsync or sp.unsync_children or sp.unsync_child_bitmap or sp.quadrant or sp.passthrough:
        return False
    if _FACTS(sp) != _FACTS(role_facts(kvm.config.kernel.design, sp.role)):
        return False
    if kvm.page_hash.get(sp.gfn, [sp.frame]) != [sp.frame]:
        return False
    return not sp.parent_ptes or next(parents_of_page(kvm, sp), None) is None


# Links -------------------------------------------------------------------------


def parents_of_link(kvm: Kvm, link: Link) -> Iterator[Wrong]:
    """The table below has the entry as a parent, once."""
    child = kvm.pages.get(link.child)
    if child is None or child.tdp_mmu_page:
        return
    times = flat(child.parent_ptes).count(link.sptep)
    if times != 1:
        yield link.wrong(f"points to {child!r}, which has it {times} times as a parent")


def one_level_down(kvm: Kvm, link: Link) -> Iterator[Wrong]:
    """A link goes one level down."""
    child = kvm.pages.get(link.child)
    if child is not None and child.level != link.sp.level - 1:
        yield link.wrong(f"points to {child!r}, not one level down")


def freed(kvm: Kvm, link: Link) -> Iterator[Wrong]:
    """A link leads to a page that exists."""
    if link.child not in kvm.pages:
        yield link.wrong(f"points to frame {link.child:#x}, where there is no page")


def obsolete(kvm: Kvm, link: Link) -> Iterator[Wrong]:
    """A link leads to a page that is in use. A vCPU's own roots go together, with the one on top."""
    child = kvm.pages.get(link.child)
    if child is not None and is_obsolete_sp(kvm, child) and not child.one_off:
        yield link.wrong(f"points to {child!r}, which is out of use")


def unsync_below(kvm: Kvm, link: Link) -> Iterator[Wrong]:
    """The parent of an unsync page knows; a bit too many goes with the next walk that finds nothing."""
    child = kvm.pages.get(link.child)
    if not kvm.sync.marks_parents or child is None or not (child.unsync or child.unsync_children):
        return
    if not link.sp.unsync_child_bitmap >> spte_index(link.sptep) & 1:
        yield link.wrong(f"does not know that something below {child!r} is unsync")


def quadrant_of_link(kvm: Kvm, link: Link) -> Iterator[Wrong]:
    """Of the two tables that shadow a guest's table of 1,024 entries, the right one is below.

    Source: Linux 6.1 ``mmu.c`` (``kvm_mmu_child_role``).
    """
    child, sp, index = kvm.pages.get(link.child), link.sp, spte_index(link.sptep)
    if child is None or not child.has_4_byte_gpte or child.level != 1 or sp.level != 2:
        return
    if child.quadrant != index & 1:
        yield link.wrong(f"points to quadrant {child.quadrant}, not to quadrant {index & 1}")


# Pages -------------------------------------------------------------------------


def parents_of_page(kvm: Kvm, child: ShadowPage) -> Iterator[Wrong]:
    """Each parent that a page knows points to it."""
    for sptep in flat(child.parent_ptes):
        parent, spte = kvm.pages.get(sptep >> 12), spte_at(kvm, sptep)
        linked = (
            parent is not None
            and is_shadow_present_pte(spte)
            and not is_last_spte(spte, parent.level)
            and spte_to_pfn(spte) == child.frame
        )
        if not linked:
            yield Wrong(f"{child!r} has the parent {sptep:#x}, which does not point to it", child, sptep)


def role(kvm: Kvm, sp: ShadowPage) -> Iterator[Wrong]:
    """A page's header says what its role says."""
    facts = role_facts(kvm.config.kernel.design, sp.role)
    if _FACTS(sp) == _FACTS(facts):
        return
    for name in _NAMES:
        if getattr(sp, name) != getattr(facts, name):
            said = f"{sp!r} has {name} {getattr(sp, name)}, but its role says {getattr(facts, name)}"
            yield Wrong(said, sp)


def unsync(kvm: Kvm, sp: ShadowPage) -> Iterator[Wrong]:
    """Only what may be unsync is, and the count of such children is that of their bits."""
    if sp.unsync and (kvm.sync.tracks(kvm, sp) or not sp.has_gptes or sp.invalid):
        yield Wrong(f"{sp!r} is unsync", sp)
    bits = sp.unsync_child_bitmap.bit_count()
    if sp.unsync_children != bits:
        yield Wrong(f"{sp!r} counts {sp.unsync_children} unsync children, its bitmap {bits}", sp)


def duplicate(kvm: Kvm, sp: ShadowPage) -> Iterator[Wrong]:
    """No other usable page has the page's gfn and role; told of the younger ones."""
    if sp.tdp_mmu_page or sp.one_off or is_obsolete_sp(kvm, sp):
        return
    older = kvm.page_hash.get(sp.gfn, [])
    for other in [kvm.pages[at] for at in older if at in kvm.pages and at != sp.frame]:
        same = (other.gfn, other.role) == (sp.gfn, sp.role) and not is_obsolete_sp(kvm, other)
        if same and other.frame < sp.frame:
            yield Wrong(f"2 usable pages have gfn {sp.gfn:#x} and role {sp.role:#x}", sp, gfn=sp.gfn)


def passthrough(kvm: Kvm, sp: ShadowPage) -> Iterator[Wrong]:
    """A passthrough page shadows no table, and uses its first entry alone, for the table at its own gfn.

    Source: Linux 6.1 ``mmu.c`` (``kvm_mmu_get_page``, ``kvm_mmu_page_get_gfn``, ``sp_has_gptes``).
    """
    if not sp.passthrough or kvm.config.kernel.root_strategy.shadow_pages:
        return  # a strategy that makes roots of its own has PDPTEs in such a page
    if sp.has_gptes or sp.direct or sp.unsync:
        yield Wrong(f"{sp!r} is passthrough and shadows a table", sp, gfn=sp.gfn)
    base = sp.frame * SPTE_ENT_PER_PAGE
    used = [i for i, spte in enumerate(kvm.memory.words[base : base + 512]) if is_shadow_present_pte(spte)]
    if used not in ([], [0]):
        yield Wrong(f"{sp!r} is passthrough and has entries {[hex(i) for i in used]}", sp, gfn=sp.gfn)
        return
    child = kvm.pages.get(spte_to_pfn(kvm.memory.words[base])) if used else None
    if child is not None and child.gfn != sp.gfn:
        yield Wrong(f"{sp!r} is passthrough and points to {child!r}, another table", sp, gfn=sp.gfn)


def quadrant(kvm: Kvm, sp: ShadowPage) -> Iterator[Wrong]:
    """A quadrant is one that a table of 1,024 entries has: two of level 1, four of level 2."""
    most = {1: 2, 2: 4}.get(sp.level, 1) if sp.has_4_byte_gpte else 1
    if not 0 <= sp.quadrant < most:
        yield Wrong(f"{sp!r} is one of {most} quadrants", sp, gfn=sp.gfn)


def protected(kvm: Kvm, sp: ShadowPage) -> Iterator[Wrong]:
    """Nothing in the reverse map of a table in sync lets it be written."""
    if not sp.has_gptes or sp.invalid or sp.unsync:
        return
    slot, writable = kvm.slots[sp.smm].lookup(sp.gfn), PT_WRITABLE_MASK | kvm.fmt.mmu_writable
    if slot is None:
        return
    for level in (1, 2, 3):
        for sptep in flat(slot.rmap[level].get(sp.gfn >> KVM_HPAGE_GFN_SHIFT[level], [])):
            if spte_at(kvm, sptep) & writable:
                said = f"spte {sptep:#x} lets gfn {sp.gfn:#x} be written, a table in sync"
                yield Wrong(said, sp, sptep, sp.gfn)
