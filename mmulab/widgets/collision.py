"""Two pages under one role word: what the word says, and what it cannot say.

A design that tells two pages apart has a word for each; the design that forgot
a field has one word for both.
"""

from __future__ import annotations

from mmulab.kvm.roles.design import RoleDesign
from mmulab.widgets.bitfield import Lane, lanes
from mmulab.widgets.scene_svg import Svg
from mmulab.widgets.words import role_cells

__all__ = ["collision_picture", "fields_that_differ"]


def fields_that_differ(design: RoleDesign, one: int, other: int) -> list[str]:
    """Return the fields of `design` in which two of its words differ, lowest bit first."""
    ours, theirs = design.layout.unpack(one), design.layout.unpack(other)
    return [name for name, value in ours.items() if theirs[name] != value]


def collision_picture(
    design: RoleDesign, shared: int, apart: RoleDesign, words: tuple[int, int], *, title: str
) -> Svg:
    """Draw the word under which two pages collide above the words that tell them apart.

    Parameters
    ----------
    design : RoleDesign
        Which does not tell the pages apart.
    shared : int
        Its word for both.
    apart : RoleDesign
        Which does.
    words : tuple of (int, int)
        Its words: of the page that was there, and of the one that was wanted.
    title : str
    """
    made, wanted = words
    missing = [name for name in fields_that_differ(apart, *words) if name not in design.layout.mask]
    name = f"{design.id} {design.name}".strip()
    other = f"{apart.id} {apart.name}".strip()
    return lanes(
        [
            Lane(f"{name}, both pages {shared:#x}", role_cells(design.layout, shared), missing),
            Lane(f"{other}, the page found {made:#x}", role_cells(apart.layout, made, wanted)),
            Lane(f"{other}, the page wanted {wanted:#x}", role_cells(apart.layout, wanted, made)),
        ],
        title=title,
    )
