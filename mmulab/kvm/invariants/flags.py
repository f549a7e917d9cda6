"""The names of the invariants, and the record of one that does not hold."""

from __future__ import annotations

from enum import IntFlag, auto
from typing import NamedTuple

from mmulab.kvm.mmu_page import ShadowPage


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
    """An MMIO entry of the current generation is for a gfn in no slot, unless a sync made it current."""
    LINK_SYNC = auto()
    """No link is made to a table with something unsync below that was not synced for it."""
    LARGE_PAGE = auto()
    """A huge leaf lies whole in its slot and in a host page of its size, and no NX huge page is executed."""
    PASSTHROUGH = auto()
    """A passthrough page stands for a level that the guest's tables lack: its first entry alone is used."""
    QUADRANT = auto()
    """The pages that shadow parts of one guest table lie where their part of its range is."""
    FORMAT = auto()
    """Each entry has the bits that this kernel makes, and the processor takes it as KVM means it."""


class Wrong(NamedTuple):
    """What a check found, and where: a page, an entry, a gfn, as far as there is one."""

    said: str
    page: ShadowPage | None = None
    sptep: int | None = None
    gfn: int | None = None


class Violation(NamedTuple):
    """An invariant that does not hold.

    Attributes
    ----------
    flag : Invariant
    said : str
        One sentence.
    page : ShadowPage or None
    sptep, gfn : int or None
    """

    flag: Invariant
    said: str
    page: ShadowPage | None = None
    sptep: int | None = None
    gfn: int | None = None

    def __str__(self) -> str:
        return f"{self.flag.name}: {self.said}"

    def __repr__(self) -> str:
        return f"<{self}>"
