"""The page that a design shares and should not, and the bits that would have told it apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from mmulab.kvm.roles.design import RoleDesign
from mmulab.lab.designs.measures import Lookup

__all__ = ["Collision", "collision", "collisions"]


@dataclass(frozen=True, slots=True)
class Collision:
    """Two pages of a correct design under one word of another design.

    Attributes
    ----------
    op : int
        The op in which the shared page was found where the correct design makes one.
    gfn : int
    shared : int
        The other design's word for both.
    made, wanted : int
        The correct design's words: of the page that was there, and of the one that was wanted.
    made_op : int
        The op for which the page that was there was made.
    differ : tuple of str
        Fields in which the correct design's words differ: what the other one does not say. Where
        several pages were shared, those that the wrong access lacked (:mod:`mmulab.lab.designs.missing`).
    reference : RoleDesign
        The correct design.
    """

    op: int
    gfn: int
    shared: int
    made: int
    wanted: int
    made_op: int
    differ: tuple[str, ...]
    reference: RoleDesign

    def record(self) -> dict[str, object]:
        """Return the collision as JSON holds it."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"differ": list(self.differ), "reference": self.reference.name}

    def __str__(self) -> str:
        return (
            f"gfn {self.gfn:#x}: the page of op {self.made_op} is found again in op {self.op} under "
            f"{self.shared:#x}; the wanted page differs in {', '.join(self.differ)}"
        )


def collision(
    lookups: Sequence[Lookup], reference: RoleDesign, its_lookups: Sequence[Lookup], until: int
) -> Collision | None:
    """Find the first page that a design found where a correct one made another; see :func:`collisions`."""
    return next(collisions(lookups, reference, its_lookups, until), None)


def collisions(
    lookups: Sequence[Lookup], reference: RoleDesign, its_lookups: Sequence[Lookup], until: int
) -> Iterator[Collision]:
    """Yield the pages that a design found where a correct one made others.

    Lookups are set side by side by op, gfn and order, so that what the designs
    do besides does not matter. A page that is reached through entries that are
    still there is not looked up, so there need not be a collision.

    Parameters
    ----------
    lookups : sequence of Lookup
        Of the design's run.
    reference : RoleDesign
        A correct design.
    its_lookups : sequence of Lookup
        Of its run on the same work.
    until : int
        The op whose access went wrong; later lookups are not looked at.
    """
    theirs = dict(_numbered(its_lookups))
    first: dict[tuple[int, int], tuple[int, int]] = {}
    for key, ours in _numbered(lookups):
        if ours.op > until:
            return
        other = theirs.get(key)
        page = ours.gfn, ours.role
        if other is None:
            continue
        if ours.created:
            first[page] = ours.op, other.role
        elif other.created and page in first and first[page][1] != other.role:
            made_op, made = first[page]
            one, two = reference.layout.unpack(made), reference.layout.unpack(other.role)
            differ = tuple(name for name, value in one.items() if two[name] != value)
            yield Collision(ours.op, ours.gfn, ours.role, made, other.role, made_op, differ, reference)


def _numbered(lookups: Sequence[Lookup]) -> list[tuple[tuple[int, int, int], Lookup]]:
    """Return lookups by op, gfn, and how many there were of that gfn in that op before."""
    counters: dict[tuple[int, int], count[int]] = {}
    return [
        ((found.op, found.gfn, next(counters.setdefault((found.op, found.gfn), count()))), found)
        for found in lookups
    ]
