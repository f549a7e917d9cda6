"""What a role design costs and does, measured on runs: bits, pages, sharing, work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

from mmulab.events import Event, kvm_mmu_prepare_zap_page, kvm_mmu_sync_page
from mmulab.kvm.roles.design import RoleDesign

__all__ = ["Lookup", "Measures", "Observed", "TellingApart", "against", "measure", "telling_apart"]


class Lookup(NamedTuple):
    """One ``kvm_mmu_get_page``: the op in which it happened, what was looked up, and what came of it."""

    op: int
    gfn: int
    role: int
    created: bool


@dataclass(frozen=True, slots=True)
class Observed:
    """What is kept of a run to measure it.

    Attributes
    ----------
    lookups : tuple of Lookup
    page_faults : int
        Page faults that KVM took (its statistic ``pf_taken``).
    syncs, zaps : int
        Events ``kvm_mmu_sync_page`` and ``kvm_mmu_prepare_zap_page``.
    """

    lookups: tuple[Lookup, ...]
    page_faults: int
    syncs: int
    zaps: int

    @classmethod
    def of(cls, lookups: Iterable[Lookup], counts: Counter[type[Event]], stats: dict[str, int]) -> Observed:
        """Return what is kept of a run with these events by type, and these statistics at its end."""
        syncs, zaps = counts[kvm_mmu_sync_page], counts[kvm_mmu_prepare_zap_page]
        return cls(tuple(lookups), stats["pf_taken"], syncs, zaps)

    @property
    def created(self) -> int:
        """Shadow pages created."""
        return sum(found.created for found in self.lookups)


class TellingApart(NamedTuple):
    """Which fields of the word tell pages of one gfn apart.

    Attributes
    ----------
    pairs : int
        Pairs of words under which pages of one gfn were made.
    differ : dict of str to int
        By field: pairs that differ in it.
    alone : dict of str to int
        By field: pairs that differ in it and in nothing else, so that without
        it the two would have been one page.
    """

    pairs: int
    differ: dict[str, int]
    alone: dict[str, int]

    def __add__(self, other: object) -> TellingApart:
        """Return the counts of both."""
        if not isinstance(other, TellingApart):
            return NotImplemented
        return TellingApart(
            self.pairs + other.pairs,
            dict(Counter(self.differ) + Counter(other.differ)),
            dict(Counter(self.alone) + Counter(other.alone)),
        )


def telling_apart(design: RoleDesign, lookups: Iterable[Lookup]) -> TellingApart:
    """Compare the words of each gfn, pair by pair, field by field."""
    words: dict[int, dict[int, None]] = {}
    for found in lookups:
        if found.created:
            words.setdefault(found.gfn, {})[found.role] = None
    pairs, differ, alone = 0, Counter[str](), Counter[str]()
    for of_gfn in words.values():
        for one, other in combinations(map(design.layout.unpack, of_gfn), 2):
            names = [name for name, value in one.items() if other[name] != value]
            pairs += 1
            differ.update(names)
            if len(names) == 1:
                alone.update(names)
    return TellingApart(pairs, dict(differ), dict(alone))


@dataclass(frozen=True, slots=True)
class Measures:
    """What a design did on one piece of work.

    Attributes
    ----------
    shadow_pages, found : int
        Lookups that created a page, and lookups that found one.
    duplicated : int
        Pages created of a gfn beyond those that the coarsest correct design
        created of it: it found one there, or went on with one that hung below.
    sharing_lost : int
        Shadow pages more than the coarsest correct design created.
    coarsest : str
        Name of that design: of those that are correct on all works compared, the
        one that creates the fewest pages here. Empty if none is.
    page_faults, syncs, zaps : int
        As in :class:`Observed`.
    apart : TellingApart
    """

    shadow_pages: int
    found: int
    duplicated: int
    sharing_lost: int
    coarsest: str
    page_faults: int
    syncs: int
    zaps: int
    apart: TellingApart

    def record(self) -> dict[str, Any]:
        """Return the measures as JSON holds them."""
        return asdict(self) | {"apart": self.apart._asdict()}


def measure(design: RoleDesign, run: Observed, coarsest: str, base: Observed | None) -> Measures:
    """Measure a run against the coarsest correct one.

    Parameters
    ----------
    design : RoleDesign
    run : Observed
    coarsest : str
        Name of the coarsest correct design.
    base : Observed or None
        Its run; None if no design is correct: nothing is lost or duplicated then.
    """
    alone = Measures(
        shadow_pages=run.created,
        found=len(run.lookups) - run.created,
        duplicated=0,
        sharing_lost=0,
        coarsest="",
        page_faults=run.page_faults,
        syncs=run.syncs,
        zaps=run.zaps,
        apart=telling_apart(design, run.lookups),
    )
    return against(alone, run, coarsest, base)


def against(measures: Measures, run: Observed, coarsest: str, base: Observed | None) -> Measures:
    """Return the measures with what they say of sharing taken against another run; as :func:`measure`."""
    base = run if base is None else base
    return replace(
        measures,
        duplicated=_duplicated(run.lookups, base.lookups),
        sharing_lost=run.created - base.created,
        coarsest=coarsest,
    )


def _duplicated(lookups: Sequence[Lookup], base: Sequence[Lookup]) -> int:
    ours, theirs = (Counter(found.gfn for found in side if found.created) for side in (lookups, base))
    return (ours - theirs).total()
