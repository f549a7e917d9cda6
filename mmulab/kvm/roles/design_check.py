"""What a role design must say of itself before it can run: its names, its layout.

The word is a ``u32`` (``union kvm_mmu_page_role``, Linux 6.1.192
``arch/x86/include/asm/kvm_host.h``).
"""

from __future__ import annotations

import re

from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.word import RoleLayout

__all__ = ["ATTRIBUTES", "WORD_BITS", "attribute_problem", "is_built_in"]

WORD_BITS = 32
"""``union kvm_mmu_page_role`` is one ``u32``."""
ATTRIBUTES = ("id", "name", "summary", "source", "layout", "sync_ignored")
"""What a design says of itself; ``sync_mask`` follows from it."""
_NAME = re.compile(r"[\w.+-]{1,40}")
_NEEDED = ("level", "invalid")
"""Fields that the MMU writes in any word."""


def attribute_problem(name: str, value: object) -> str | None:
    """Say what is wrong with the value of a design's attribute, and what to do; None: nothing.

    Parameters
    ----------
    name : str
        One of :data:`ATTRIBUTES`.
    value : object
    """
    match name:
        case "id" | "name":
            return _name_problem(name, value)
        case "summary" | "source":
            good = isinstance(value, str) and (value.isprintable() or not value)
            return None if good else f"{name} must be one line of text"
        case "layout":
            return _layout_problem(value)
        case _:
            good = isinstance(value, tuple | list | set | frozenset)
            return None if good else "sync_ignored must be a tuple of names of fields"


def _name_problem(attribute: str, value: object) -> str | None:
    if attribute == "id" and value == "":
        return None
    if not (isinstance(value, str) and _NAME.fullmatch(value)):
        return f"{attribute} must be 1 to 40 letters, digits or any of _ . + -"
    taken = next((d for d in DESIGNS.values() if value in (d.id, d.name)), None)
    return None if taken is None else f"{attribute} {value!r} is that of {taken.name}; give the class its own"


def _layout_problem(layout: object) -> str | None:
    if not isinstance(layout, RoleLayout):
        return "layout must be a RoleLayout"
    for name in _NEEDED:
        if name not in layout.mask:
            return f"layout has no field {name!r}; the MMU needs it in every word"
    if layout.width > WORD_BITS:
        return f"layout has {layout.width} bits; the word has {WORD_BITS}"
    return None


def is_built_in(owner: type) -> bool:
    """Whether a class is one of those that this package brings."""
    return owner is RoleDesign or any(type(design) is owner for design in DESIGNS.values())
