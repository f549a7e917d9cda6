"""A role design by its name: one that is built in, or a user's own."""

from __future__ import annotations

from mmulab.errors import InputError, near
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.foreign import load_design


def find_design(name: str) -> RoleDesign:
    """Return a design by name or id, or one of the user's own as ``module:Class`` or ``file.py:Class``.

    Raises
    ------
    InputError
        No design has this name.
    """
    for design in DESIGNS.values():
        if name in (design.name, design.id):
            return design
    if ":" in name:
        return load_design(name)
    known = ", ".join(f"{d.id} {d.name}" for d in DESIGNS.values())
    hint = near(name, DESIGNS)
    raise InputError(f"role design {name!r}: unknown; {hint}the designs are {known}, or give module:Class")
