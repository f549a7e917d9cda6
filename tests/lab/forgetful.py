"""Role designs that forget one field of 6.1's word, each on purpose."""

from __future__ import annotations

from typing import Any

from mmulab.kvm.roles.design import LAYOUT_6_1, Passthrough, RoleDesign
from mmulab.kvm.roles.word import BitField, CpuRole, RoleFacts, RoleLayout

_WHOLE = Passthrough()
_BLIND = {"access": 7}
"""What is taken for granted of a field that the word does not hold; 0 of all others."""


class Forgetful(RoleDesign):
    """6.1's word with a gap where one field was: not in the key, and so not known of a page either."""

    forgotten = ""

    def pack(self, facts: RoleFacts, cpu: CpuRole) -> int:
        """Return the word without the field."""
        return _WHOLE.pack(facts, cpu) & ~LAYOUT_6_1.mask[self.forgotten]

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the child's word without the field."""
        word = _WHOLE.child(parent, direct=direct, access=access, quadrant=quadrant)
        return word & ~LAYOUT_6_1.mask[self.forgotten]

    def facts(self, role: int) -> RoleFacts:
        """Return what the rest of the word says."""
        blind: Any = type(getattr(_WHOLE.facts(0), self.forgotten))(_BLIND.get(self.forgotten, 0))
        return _WHOLE.facts(role)._replace(**{self.forgotten: blind})


def forgetting(name: str) -> RoleDesign:
    """Return the design that forgets the field `name`."""
    fields = tuple(BitField("" if f.name == name else f.name, f.width) for f in LAYOUT_6_1.fields)
    members = {"id": "X", "name": f"no_{name}", "forgotten": name, "layout": RoleLayout(fields)}
    made: RoleDesign = type(f"No_{name}", (Forgetful,), members)()
    return made
