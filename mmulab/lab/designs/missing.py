"""The bit that a failing access lacked: of what shared pages do not say, that which would have mended it.

A design may share many pages before an access goes wrong, most of them without harm. So
each fact in which the shared pages differ is given to the design as a further bit, alone,
and the work is run again: what the access lacked is what makes it right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mmulab.check.access import WrongAccess
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.word import BitField, CpuRole, RoleFacts, RoleLayout
from mmulab.lab.designs.collision import Collision

__all__ = ["WithField", "blamed"]

_ADDED = "added"


class WithField(RoleDesign):
    """A design's word with one field of another's above it.

    Parameters
    ----------
    base, other : RoleDesign
    field : str
        A fact of the MMU's that `other` has in its word.
    """

    def __init__(self, base: RoleDesign, other: RoleDesign, field: str) -> None:
        self.id, self.name = "", f"{base.name}+{field}"
        self.layout = RoleLayout((*base.layout.fields, BitField(_ADDED, other.layout.width_of(field))))
        ignored = field in other.sync_ignored
        self.sync_ignored = (*base.sync_ignored, *([_ADDED] if ignored else []))
        self._base, self._other, self._field = base, other, field
        super().__init__()

    def _word(self, word: int, value: int) -> int:
        return self.layout.set(word, _ADDED, value)

    def _own(self, role: int) -> int:
        return role & ~self.layout.mask[_ADDED]

    def pack(self, facts: RoleFacts, cpu: CpuRole) -> int:
        """Return the base's word with the field as the other design has it."""
        value = self._other.layout.get(self._other.pack(facts, cpu), self._field)
        return self._word(self._base.pack(facts, cpu), value)

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the word one level below; a page below a portal is none."""
        said = {"direct": int(direct), "access": access, "quadrant": quadrant, "passthrough": 0}
        value = said.get(self._field, self.layout.get(parent, _ADDED))
        word = self._base.child(self._own(parent), direct=direct, access=access, quadrant=quadrant)
        return self._word(word, value)

    def facts(self, role: int) -> RoleFacts:
        """Return what the base's word says, and the field."""
        facts = self._base.facts(self._own(role))
        value = self.layout.get(role, _ADDED)
        kind = type(getattr(facts, self._field))
        return facts._replace(**{self._field: kind(value)})


def blamed(
    design: RoleDesign,
    until: int,
    found: Sequence[Collision],
    run: Callable[[RoleDesign], WrongAccess | None],
) -> Collision | None:
    """Return the shared page behind a wrong access, with the fields that it lacked.

    Parameters
    ----------
    design : RoleDesign
    until : int
        The op of the wrong access.
    found : sequence of Collision
        Pages shared up to the access, in order.
    run : callable
        Runs the same work under another design, and returns the first wrong access.

    Returns
    -------
    Collision or None
        Where no field mends the access alone, the first page shared, with all in which it differs.
    """
    fields = list(dict.fromkeys(name for shared in found for name in shared.differ))
    if len(fields) < 2:
        return found[0] if found else None
    other = found[0].reference
    mending = []
    for name in fields:
        if name in RoleFacts._fields and name in other.layout.mask:
            mended = run(WithField(design, other, name))
            if mended is None or mended.op > until:
                mending.append(name)
    for shared in found:
        lacked = tuple(name for name in shared.differ if name in mending)
        if lacked:
            return replace(shared, differ=lacked)
    return found[0]
