"""Role words, shadow entries and guest entries cut into the cells of a bit strip."""

from __future__ import annotations

from mmulab.kvm.roles.word import RoleLayout
from mmulab.kvm.spte import SPTE_MMU_PRESENT_MASK, SpteFormat
from mmulab.widgets.bitfield import Cell
from mmulab.x86.mode import PT_BASE_ADDR_MASK
from mmulab.x86.pferr import ACC_STRINGS

GPTE_FLAGS = {0: "P", 1: "W", 2: "U", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 7: "PS", 8: "G", 63: "NX"}
"""Bits of a guest entry by their manuals' names (SDM 3, 4.3 to 4.5)."""


def span(shift: int, width: int) -> str:
    """Return the bits of a field as ``low`` or ``high-low``."""
    return str(shift) if width == 1 else f"{shift + width - 1}-{shift}"


def role_cells(layout: RoleLayout, role: int, other: int | None = None) -> list[Cell]:
    """Cut a role word into its fields; what differs from `other` is marked."""
    cells = []
    at = 0
    for name, width in layout.fields:
        value = role >> at & (1 << width) - 1
        was = None if other is None else other >> at & (1 << width) - 1
        differs = None if was is None or was == value else _role_text(name, was)
        cells.append(Cell(name, _role_text(name, value), span(at, width), bool(value), differs))
        at += width
    return cells[::-1]


def _role_text(name: str, value: int) -> str:
    return ACC_STRINGS[value] if name == "access" else f"{value:x}"


def _flag_cells(
    word: int, other: int | None, names: dict[int, str], bits: range, unused: tuple[int, ...] = ()
) -> list[Cell]:
    cells = []
    for bit in reversed(bits):
        value = word >> bit & 1
        was = None if other is None or other >> bit & 1 == value else str(other >> bit & 1)
        name = names.get(bit, "")
        if name or value or was or bit not in unused:
            cells.append(Cell(name, str(value), str(bit), bool(value), was))
    return cells


def _address_cell(word: int, other: int | None, mask: int, name: str) -> Cell:
    value = (word & mask) >> 12
    was = None if other is None or (other & mask) >> 12 == value else f"{(other & mask) >> 12:x}"
    return Cell(name, f"{value:x}", f"{mask.bit_length() - 1}-12", bool(value), was)


def gpte_cells(entry: int, entry_bytes: int, other: int | None = None) -> list[Cell]:
    """Cut a guest entry of 4 or 8 bytes into its bits and the gfn."""
    mask = 0xFFFFF000 if entry_bytes == 4 else PT_BASE_ADDR_MASK
    high = _flag_cells(entry, other, GPTE_FLAGS, range(52, 64), tuple(range(52, 63)))
    low = _flag_cells(entry, other, GPTE_FLAGS, range(12), (9, 10, 11))
    return [*(high if entry_bytes == 8 else []), _address_cell(entry, other, mask, "gfn"), *low]


def spte_names(fmt: SpteFormat) -> dict[int, str]:
    """Return the names of a shadow entry's bits in this format, under the kernel's names."""
    ept = fmt.x != 0
    named = (
        (fmt.nx, "NX"),
        (fmt.host_writable, "host_writable"),
        (fmt.mmu_writable, "mmu_writable"),
        (SPTE_MMU_PRESENT_MASK, "mmu_present"),
        (fmt.dirty, "D"),
        (fmt.accessed, "A"),
    )
    low = {0: "R", 1: "W", 2: "X", 6: "IPAT", 7: "PS"} if ept else {0: "P", 1: "W", 2: "U", 7: "PS"}
    return {**low, **{mask.bit_length() - 1: name for mask, name in named if mask}}


def spte_cells(fmt: SpteFormat, spte: int, other: int | None = None) -> list[Cell]:
    """Cut a shadow entry into its bits and the pfn."""
    names = spte_names(fmt)
    high = _flag_cells(spte, other, names, range(52, 64), tuple(range(52, 64)))
    low = _flag_cells(spte, other, names, range(12), (3, 4, 8, 9, 10))
    return [*high, _address_cell(spte, other, PT_BASE_ADDR_MASK, "pfn"), *low]
