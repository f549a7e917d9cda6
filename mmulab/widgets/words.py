"""Role words, shadow entries and guest entries cut into the cells of a bit strip."""

from __future__ import annotations

from mmulab.kvm.roles.word import RoleLayout
from mmulab.kvm.spte import SpteFormat
from mmulab.kvm.spte_decode import decode_spte, spte_kind
from mmulab.kvm.spte_layout import MMU_PRESENT, SpteKind
from mmulab.widgets.bitfield import Cell
from mmulab.x86.ept import EPT_4LEVEL, EPT_5LEVEL
from mmulab.x86.mode import PT_BASE_ADDR_MASK
from mmulab.x86.pferr import ACC_STRINGS

GPTE_FLAGS = {0: "P", 1: "W", 2: "U", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 7: "PS", 8: "G", 63: "NX"}
"""Bits of a guest entry by their manuals' names (SDM 3, 4.3 to 4.5)."""
EPTE_FLAGS = {0: "R", 1: "W", 2: "X", 6: "IPAT", 7: "PS", 8: "A", 9: "D"}
"""Bits of an entry of L1's EPT (SDM 3, 29.3.2)."""
_SAY_NOTHING = (SpteKind.EMPTY, SpteKind.ZERO, SpteKind.UNKNOWN)
"""Kinds of entries that are cut as another one."""


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


def entry_flags(mode: str) -> dict[int, str]:
    """Return the bits' names of a paging mode's entries."""
    return EPTE_FLAGS if mode in (EPT_4LEVEL.name, EPT_5LEVEL.name) else GPTE_FLAGS


def gpte_cells(
    entry: int, entry_bytes: int, other: int | None = None, names: dict[int, str] = GPTE_FLAGS
) -> list[Cell]:
    """Cut a guest entry of 4 or 8 bytes into its bits and the gfn."""
    mask = 0xFFFFF000 if entry_bytes == 4 else PT_BASE_ADDR_MASK
    high = _flag_cells(entry, other, names, range(52, 64), tuple(range(52, 64)))
    low = _flag_cells(entry, other, names, range(12), (3, 4, 5, 9, 10, 11))
    return [*(high if entry_bytes == 8 else []), _address_cell(entry, other, mask, "gfn"), *low]


def spte_flags(fmt: SpteFormat, spte: int, level: int) -> str:
    """Name the bits of a shadow entry that are set; KVM's present bit follows from the rest.

    >>> from mmulab.kvm.spte import shadow_format
    >>> spte_flags(shadow_format(40), 0x8300e67, 1)
    'P W U A D host_writable mmu_writable'
    """
    return " ".join(name for name in decode_spte(fmt, spte, level).flags if name != MMU_PRESENT.label)


def spte_cells(fmt: SpteFormat, spte: int, other: int | None = None, level: int | None = None) -> list[Cell]:
    """Cut a shadow entry into its declared fields, the highest first.

    An entry that is empty, or of no kind, is cut as the one that it is compared
    with. Bits of no field are shown where one of the two has them.

    Parameters
    ----------
    fmt : SpteFormat
    spte : int
    other : int, optional
        What differs from it is marked.
    level : int, optional
        Of the table; if it is not known, an entry is taken for one that maps a page.
    """
    kinds = [spte_kind(fmt, word, level or 1) for word in (spte, spte if other is None else other)]
    kind = next((kind for kind in kinds if kind not in _SAY_NOTHING), SpteKind.LEAF)
    layout = fmt.entries[kind]
    fields = layout.fields if level is None else layout.at(level)
    known = sum(field.mask for field in fields)
    runs = [(*run, field.label or field.name) for field in fields for run in field.runs()]
    rest = (spte | (other or 0)) & ~known
    runs += [(bit, bit, "") for bit in range(64) if rest >> bit & 1]
    return [_run_cell(spte, other, *run) for run in sorted(runs, reverse=True)]


def _run_cell(word: int, other: int | None, high: int, low: int, name: str) -> Cell:
    width = high - low + 1
    value = word >> low & (1 << width) - 1
    before = value if other is None else other >> low & (1 << width) - 1
    return Cell(name, f"{value:x}", span(low, width), bool(value), None if before == value else f"{before:x}")
