"""The checks of what one op changed: entries and headers that are not as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from mmulab import events as ev
from mmulab.kvm.invariants import counts, tables
from mmulab.kvm.invariants.checks import Checker
from mmulab.kvm.invariants.flags import Invariant, Violation, Wrong
from mmulab.kvm.invariants.snapshot import Changed, Snapshot
from mmulab.kvm.invariants.survey import Link, Other, entry_of, flat
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import (
    get_mmio_spte_gfn,
    is_last_spte,
    is_mmio_spte,
    is_shadow_present_pte,
    spte_to_pfn,
)
from mmulab.kvm.state import Kvm, spte_at

Header = tuple[bool, bool, int, int, int]


_header: Callable[[ShadowPage], Header] = attrgetter(
    "unsync", "invalid", "mmu_valid_gen", "role", "unsync_child_bitmap"
)


def _headers(kvm: Kvm) -> list[Header]:
    return list(map(_header, kvm.pages.values()))


class Changes:
    """Follows the pages of one VM from op to op.

    Parameters
    ----------
    kvm : Kvm
        Not kept.
    """

    __slots__ = ("_by_frame", "_headers", "_snapshot", "_unsync")

    def __init__(self, kvm: Kvm) -> None:
        self._snapshot = Snapshot()
        self._snapshot.look(kvm)
        self._headers = _headers(kvm)
        self._by_frame = dict(zip(kvm.pages, self._headers, strict=True))
        self._unsync = {frame: sp for frame, sp in kvm.pages.items() if sp.unsync}

    def first_wrong(self, kvm: Kvm, checker: Checker, events: Iterable[ev.Event]) -> Violation | None:
        """Return the first thing that is wrong with what changed, or None."""
        changed = self._snapshot.look(kvm)
        headers = _headers(kvm)
        if not changed and headers == self._headers:  # these are the same pages: a new one has changed
            return None
        before, self._headers = self._by_frame, headers
        self._by_frame = dict(zip(kvm.pages, headers, strict=True))
        turned = [kvm.pages[frame] for frame, header in self._by_frame.items() if before.get(frame) != header]
        found = next(self._wrong(kvm, checker, changed, turned, before, events), None)
        self._unsync = {frame: sp for frame, sp in kvm.pages.items() if sp.unsync}
        return found

    def _wrong(
        self,
        kvm: Kvm,
        checker: Checker,
        changed: list[Changed],
        turned: list[ShadowPage],
        before: dict[int, Header],
        events: Iterable[ev.Event],
    ) -> Iterator[Violation]:
        empty = kvm.fmt.nonpresent
        for change in changed:
            if change.new is None:
                continue
            for index, old, new in change.words(empty):
                if new != empty:
                    entry = entry_of(kvm, change.sp, index)
                    if isinstance(entry, Other):
                        known = _is_refreshed(kvm, entry, old, events)
                        (checker.refreshed.add if known else checker.refreshed.discard)(entry.sptep)
                    yield from checker.entry(kvm, entry)
                    if isinstance(entry, Link) and not _links_to(change.sp, old, entry.child):
                        yield from self._linked_unsynced(kvm, entry, before, changed, events)
        for sp in turned:
            yield from checker.page(kvm, sp)
            for wrong in tables.protected(kvm, sp):
                yield Violation(Invariant.WRITE_PROTECTION, *wrong)
            yield from _known_above(kvm, sp)
        if turned:
            for wrong in counts.page_counts(kvm):
                yield Violation(Invariant.PAGE_COUNTS, *wrong)

    def _linked_unsynced(
        self,
        kvm: Kvm,
        link: Link,
        before: dict[int, Header],
        changed: list[Changed],
        events: Iterable[ev.Event],
    ) -> Iterator[Violation]:
        """Yield that a link was made to a table with something unsync below, which was not synced for it.

        A page that is itself unsync is only refreshed when it is linked, and stays unsync; so what is
        below by a link that was made after this one, in the same fault, may be.

        Source: Linux 6.1 ``paging_tmpl.h`` (``FNAME(fetch)``), ``mmu.c`` (``kvm_mmu_find_shadow_page``).
        """
        child = kvm.pages.get(link.child)
        if not self._unsync or child is None or not child.unsync_children or not kvm.sync.marks_parents:
            return
        made = {change.sp.frame: change.indexes for change in changed if change.new is not None}
        again = {event.gfn for event in events if isinstance(event, ev.kvm_mmu_unsync_page)}
        for sp in _below(kvm, child, before, made):
            if sp.unsync and self._unsync.get(sp.frame) is sp and sp.gfn not in again:
                wrong: Wrong = link.wrong(f"was made to {child!r}, below which {sp!r} was not synced")
                yield Violation(Invariant.LINK_SYNC, *wrong)


def _links_to(sp: ShadowPage, spte: int, child: int) -> bool:
    present = is_shadow_present_pte(spte) and not is_last_spte(spte, sp.level)
    return present and spte_to_pfn(spte) == child


def _is_refreshed(kvm: Kvm, entry: Other, old: int, events: Iterable[ev.Event]) -> bool:
    """Whether an MMIO entry is the one that was there, which a sync gave today's generation.

    Source: Linux 6.1 ``mmu.c`` (``sync_mmio_spte``); a fault asks for the slot first.
    """
    if not entry.mmio or not is_mmio_spte(kvm.fmt, old):
        return False
    if get_mmio_spte_gfn(kvm.fmt, old) != get_mmio_spte_gfn(kvm.fmt, entry.spte):
        return False
    syncs, last = False, False
    for event in events:
        if isinstance(event, ev.kvm_mmu_sync_page):
            syncs = True
        elif isinstance(event, (ev.kvm_mmu_spte_requested, ev.kvm_page_fault)):
            syncs = False
        elif isinstance(event, ev.mark_mmio_spte) and event.sptep == entry.sptep:
            last = syncs
    return last


def _known_above(kvm: Kvm, sp: ShadowPage) -> Iterator[Violation]:
    """Yield each parent that does not know of an unsync page."""
    if not (sp.unsync or sp.unsync_children):
        return
    for sptep in flat(sp.parent_ptes):
        parent = kvm.pages.get(sptep >> 12)
        if parent is not None:
            link = Link(parent, sptep, spte_at(kvm, sptep), sp.frame)
            for wrong in tables.unsync_below(kvm, link):
                yield Violation(Invariant.UNSYNC, *wrong)


def _below(
    kvm: Kvm, sp: ShadowPage, before: dict[int, Header], made: dict[int, list[int]]
) -> Iterator[ShadowPage]:
    """Yield the pages below `sp` to which its unsync bits lead, and led before, by entries not just made."""
    bits = sp.unsync_child_bitmap & (before[sp.frame][-1] if sp.frame in before else 0)
    while bits:
        index = (bits & -bits).bit_length() - 1
        bits &= bits - 1
        if index in made.get(sp.frame, ()):
            continue
        spte = kvm.memory.words[sp.frame * 512 + index]
        child = kvm.pages.get(spte_to_pfn(spte)) if is_shadow_present_pte(spte) else None
        if child is not None:
            yield child
            yield from _below(kvm, child, before, made)
