"""Words that show themselves: a role, a shadow entry, a guest entry.

In the engine they are plain integers. Wrapped, they draw their bits in a
notebook and read well in a terminal::

    RoleView(design, sp.role)
    SpteView(machine.kvm.fmt, spte)
"""

from __future__ import annotations

from collections.abc import Sequence

from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.spte import SpteFormat
from mmulab.widgets.bitfield import Cell
from mmulab.widgets.blocks import Strip
from mmulab.widgets.words import gpte_cells, role_cells, spte_cells

__all__ = ["GpteView", "RoleView", "SpteView", "WordView"]


class WordView:
    """A word in bit fields.

    Attributes
    ----------
    word : int
    """

    def __init__(self, word: int, name: str, cells: Sequence[Cell]) -> None:
        self.word = word
        self._strip = Strip(f"{name} {word:#x}", cells)

    def __repr__(self) -> str:
        return "\n".join(self._strip.lines())

    def _repr_svg_(self) -> str:
        return self._strip.html()


class RoleView(WordView):
    """A role word under a design; what differs from `other` is marked."""

    def __init__(self, design: RoleDesign, role: int, other: int | None = None) -> None:
        super().__init__(role, "role", role_cells(design.layout, role, other))


class SpteView(WordView):
    """A shadow entry in a host's format; what differs from `other` is marked."""

    def __init__(self, fmt: SpteFormat, spte: int, other: int | None = None) -> None:
        super().__init__(spte, "spte", spte_cells(fmt, spte, other))


class GpteView(WordView):
    """A guest entry of 4 or 8 bytes; what differs from `other` is marked."""

    def __init__(self, gpte: int, entry_bytes: int = 8, other: int | None = None) -> None:
        super().__init__(gpte, "gpte", gpte_cells(gpte, entry_bytes, other))
