"""Which check belongs to which invariant, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mmulab.kvm.invariants import counts, leaves, tables
from mmulab.kvm.invariants.flags import Invariant, Violation, Wrong
from mmulab.kvm.invariants.form import Form
from mmulab.kvm.invariants.survey import Entry, Leaf, Link, Survey
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm
from mmulab.x86.markup import table_html

LEAF: tuple[tuple[Invariant, Callable[[Kvm, Leaf], Iterator[Wrong]]], ...] = (
    (Invariant.RMAP, leaves.rmap),
    (Invariant.FRAME, leaves.frame),
    (Invariant.WRITE_PROTECTION, leaves.write_protection),
    (Invariant.DIRTY_LOG, leaves.dirty_log),
    (Invariant.LARGE_PAGE, leaves.large_page),
)
LINK: tuple[tuple[Invariant, Callable[[Kvm, Link], Iterator[Wrong]]], ...] = (
    (Invariant.PARENTS, tables.parents_of_link),
    (Invariant.ROLE, tables.one_level_down),
    (Invariant.FREED, tables.freed),
    (Invariant.OBSOLETE, tables.obsolete),
    (Invariant.UNSYNC, tables.unsync_below),
    (Invariant.QUADRANT, tables.quadrant_of_link),
)
PAGE: tuple[tuple[Invariant, Callable[[Kvm, ShadowPage], Iterator[Wrong]]], ...] = (
    (Invariant.PARENTS, tables.parents_of_page),
    (Invariant.ROLE, tables.role),
    (Invariant.DUPLICATE, tables.duplicate),
    (Invariant.UNSYNC, tables.unsync),
    (Invariant.PASSTHROUGH, tables.passthrough),
    (Invariant.QUADRANT, tables.quadrant),
)
WHOLE: tuple[tuple[Invariant, Callable[[Survey], Iterator[Wrong]]], ...] = (
    (Invariant.RMAP, counts.rmap_heads),
    (Invariant.UNSYNC, counts.of_policy),
    (Invariant.PAGE_COUNTS, counts.page_lists),
    (Invariant.PAGE_COUNTS, lambda survey: counts.page_counts(survey.kvm)),
    (Invariant.WRITE_TRACKING, counts.write_tracking),
    (Invariant.DISALLOW_LPAGE, counts.disallow_lpage),
    (Invariant.STATISTICS, counts.statistics),
    (Invariant.ROOT_COUNT, counts.root_count),
    (Invariant.FREED, counts.freed_root),
    (Invariant.OBSOLETE, counts.obsolete_root),
)


class Checker:
    """The checks of single entries and pages of one VM.

    Parameters
    ----------
    kvm : Kvm
        Not kept.

    Attributes
    ----------
    refreshed : set of int
        Sptes of MMIO entries that a sync made current, which looks for no slot: that they may be for
        a gfn in one is known of Linux (``mmio-refreshed``), and the oracle says what comes of it.
    """

    __slots__ = ("_form", "refreshed")

    def __init__(self, kvm: Kvm) -> None:
        self._form = Form(kvm.config)
        self.refreshed: set[int] = set()

    def entry(self, kvm: Kvm, entry: Entry) -> Iterable[Violation]:
        """Return what is wrong with one entry; of nearly every one a look says nothing."""
        if self._form.is_plain(entry):
            if isinstance(entry, Leaf):
                if leaves.is_plain(kvm, entry):
                    return ()
            elif isinstance(entry, Link) and tables.is_plain_link(kvm, entry):
                return ()
        return self._entry(kvm, entry)

    def _entry(self, kvm: Kvm, entry: Entry) -> Iterator[Violation]:
        if isinstance(entry, Leaf):
            for flag, check_leaf in LEAF:
                for wrong in check_leaf(kvm, entry):
                    yield Violation(flag, *wrong)
        elif isinstance(entry, Link):
            for flag, check_link in LINK:
                for wrong in check_link(kvm, entry):
                    yield Violation(flag, *wrong)
        elif entry.sptep not in self.refreshed:
            for wrong in leaves.mmio(kvm, entry):
                yield Violation(Invariant.MMIO, *wrong)
        for wrong in self._form.check(kvm, entry):
            yield Violation(Invariant.FORMAT, *wrong)

    def page(self, kvm: Kvm, sp: ShadowPage) -> Iterable[Violation]:
        """Return what is wrong with one page's header."""
        return () if tables.is_plain_page(kvm, sp) else self._page(kvm, sp)

    def _page(self, kvm: Kvm, sp: ShadowPage) -> Iterator[Violation]:
        for flag, check_page in PAGE:
            for wrong in check_page(kvm, sp):
                yield Violation(flag, *wrong)

    def everything(self, kvm: Kvm) -> Iterator[Violation]:
        """Yield what is wrong anywhere: entries, then pages, then the VM's books."""
        survey = Survey(kvm)
        for entries in (survey.leaves, survey.links, survey.others):
            for entry in entries:
                yield from self.entry(kvm, entry)
        for sp in kvm.pages.values():
            yield from self.page(kvm, sp)
        for flag, check_whole in WHOLE:
            for wrong in check_whole(survey):
                yield Violation(flag, *wrong)


def found(kvm: Kvm) -> list[Violation]:
    """Return everything that is wrong, in the order of the invariants."""
    return sorted(Checker(kvm).everything(kvm), key=lambda violation: violation.flag)


@dataclass(frozen=True, slots=True)
class Check:
    """What a check of the whole MMU found.

    Attributes
    ----------
    status : Invariant
        Every invariant that is violated; ``Invariant.VALID``, which is false, if none is.
    violations : tuple of Violation
    """

    status: Invariant
    violations: tuple[Violation, ...]

    def __bool__(self) -> bool:
        """Whether the state is right."""
        return not self.violations

    def __repr__(self) -> str:
        lines = [str(violation) for violation in self.violations]
        return "\n".join([f"<Check {self.status.name or 'VALID'}, {len(lines)} violations>", *lines])

    def _repr_html_(self) -> str:
        rows = [[violation.flag.name, violation.said] for violation in self.violations]
        return table_html(["invariant", "what is wrong"], rows, f"check: {self.status.name or 'VALID'}")


def check(kvm: Kvm) -> Check:
    """Check everything."""
    violations = found(kvm)
    status = Invariant.VALID
    for violation in violations:
        status |= violation.flag
    return Check(status, tuple(violations))
