"""A shadow entry read as its format declares it: its kind, its fields by name, what is left over.

The stepper and ``mmulab spte decode`` read entries with this. The engine has
predicates for what it asks (:mod:`mmulab.kvm.spte`); a kind follows from them.

Source: Linux 6.1.192 and 6.12.117 ``arch/x86/kvm/mmu/spte.h``.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.kvm.spte import (
    REMOVED_SPTE,
    SpteFormat,
    is_access_track_spte,
    is_last_spte,
    is_mmio_spte,
    is_shadow_present_pte,
)
from mmulab.kvm.spte_layout import EntryLayout, SpteField, SpteKind
from mmulab.x86.markup import table_html
from mmulab.x86.mode import PT_PRESENT_MASK

MAX_LEVEL = 5
NO_FIELDS = EntryLayout(())
ROOT_LEVELS = {SpteKind.PDPTE: (3,), SpteKind.SPECIAL_ROOT: (3, 4, 5)}
"""Levels of tables that are no shadow pages (``pae_root``, ``pml4_root``, ``pml5_root``)."""


class FieldValue(NamedTuple):
    """A field of an entry, and its value there."""

    field: SpteField
    value: int

    @property
    def meaning(self) -> str:
        """What the value means."""
        return self.field.meaning(self.value)


class DecodedSpte(NamedTuple):
    """A shadow entry in words.

    Attributes
    ----------
    spte, level : int
    kind : SpteKind
    fields : tuple of FieldValue
        The highest bits first.
    unknown : int
        Bits set that belong to no field: this kernel does not make such an entry.
    """

    spte: int
    level: int
    kind: SpteKind
    fields: tuple[FieldValue, ...]
    unknown: int

    @property
    def flags(self) -> tuple[str, ...]:
        """The short names of the single bits that are set, the lowest first."""
        return tuple(
            field.label for field, value in self.fields[::-1] if value and field.label and field.is_flag
        )

    @property
    def numbers(self) -> dict[str, int]:
        """The fields of several bits by their short names: ``pfn``, ``gfn``, ``generation``.."""
        return {field.label: value for field, value in self.fields if field.label and not field.is_flag}

    def __str__(self) -> str:
        numbers = [f"{name} {value:#x}" for name, value in self.numbers.items() if value]
        parts = [f"{self.kind.value}, level {self.level}", *numbers, " ".join(self.flags)]
        if self.unknown:
            parts.append(f"unknown bits {self.unknown:#x}")
        return f"{self.spte:#x}: " + ", ".join(filter(None, parts))

    def _repr_html_(self) -> str:
        rows = [(field.bits, field.name, f"{value:#x}", field.meaning(value)) for field, value in self.fields]
        return table_html(("bits", "name", "value", "meaning"), rows, str(self))


def spte_kind(fmt: SpteFormat, spte: int, level: int) -> SpteKind:
    """Return what an entry of a table of `level` is."""
    if spte == fmt.nonpresent:
        return SpteKind.EMPTY
    if spte == 0:
        return SpteKind.ZERO
    if spte == REMOVED_SPTE | fmt.nonpresent:
        return SpteKind.FROZEN
    if not is_shadow_present_pte(spte) and is_mmio_spte(fmt, spte):
        return SpteKind.MMIO
    if spte & PT_PRESENT_MASK:
        for kind, levels in ROOT_LEVELS.items():
            if level in levels and kind in fmt.entries and not fmt.entries[kind].unknown(spte, level):
                return kind
    if not is_shadow_present_pte(spte):
        return SpteKind.UNKNOWN
    if not is_last_spte(spte, level):
        return SpteKind.NONLEAF
    tracked = SpteKind.ACC_TRACK in fmt.entries and is_access_track_spte(fmt, spte)
    return SpteKind.ACC_TRACK if tracked else SpteKind.LEAF


def decode_spte(fmt: SpteFormat, spte: int, level: int = 1) -> DecodedSpte:
    """Read an entry of a table of `level` as a host does.

    >>> from mmulab.kvm.spte import shadow_format
    >>> str(decode_spte(shadow_format(40), 0x8300e67))
    '0x8300e67: leaf, level 1, pfn 0x8300, P W U A D host_writable mmu_writable mmu_present'
    """
    kind = spte_kind(fmt, spte, level)
    layout = fmt.entries.get(kind, NO_FIELDS)
    fields = tuple(FieldValue(field, field.get(spte)) for field in layout.at(level))
    return DecodedSpte(spte, level, kind, fields, layout.unknown(spte, level))
