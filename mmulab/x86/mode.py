"""Paging modes as data.

SDM 3, 4.1.1 chooses the mode from CR0.PG, CR4.PAE, EFER.LMA and CR4.LA57; the
shape of each mode's tables is a :class:`PagingMode`. Levels are numbered as
KVM numbers them: 1 is the table that maps 4 KiB pages.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.x86.regs import (
    EFER_LMA,
    X86_CR0_PG,
    X86_CR4_LA57,
    X86_CR4_PAE,
)

PT_PRESENT_MASK = 1 << 0
PT_WRITABLE_MASK = 1 << 1
PT_USER_MASK = 1 << 2
PT_ACCESSED_MASK = 1 << 5
PT_DIRTY_MASK = 1 << 6
PT_PAGE_SIZE_MASK = 1 << 7
PT_GLOBAL_MASK = 1 << 8
PT64_NX_SHIFT = 63
PT64_NX_MASK = 1 << PT64_NX_SHIFT
PT_BASE_ADDR_MASK = ((1 << 52) - 1) & ~0xFFF

VMX_EPT_READABLE_MASK = 1 << 0
VMX_EPT_EXECUTABLE_MASK = 1 << 2
VMX_EPT_RWX_MASK = 7
VMX_EPT_ACCESS_BIT = 1 << 8
VMX_EPT_DIRTY_BIT = 1 << 9


@dataclass(frozen=True, slots=True)
class PagingMode:
    """The shape of one mode's tables.

    Attributes
    ----------
    name : str
        ``nonpaging``, ``32``, ``pae``, ``4level`` or ``5level``.
    root_level : int
        Level of the table that CR3 points to; 0 without paging.
    entry_bytes : int
        Width of an entry: 4 or 8.
    index_bits : int
        Bits of the virtual address that one table consumes: 10 or 9.
    va_bits : int
        Width of the linear address that the tables translate.
    root_index_bits : int
        Bits that the root table consumes (2 for PAE's page-directory-pointer
        table).
    root_mask : int
        Bits of CR3 that locate the root table (SDM 3, tables 4-3, 4-7, 4-12).
    has_pdptes : bool
        The root table is PAE's, of four entries that the processor keeps in
        registers (SDM 3, 4.4.1).
    """

    name: str
    root_level: int
    entry_bytes: int
    index_bits: int
    va_bits: int
    root_index_bits: int
    root_mask: int = PT_BASE_ADDR_MASK
    has_pdptes: bool = False

    def level_shift(self, level: int) -> int:
        """Return the number of address bits below the index of `level`."""
        return 12 + (level - 1) * self.index_bits

    def index(self, va: int, level: int) -> int:
        """Return the index into the table of `level` for `va`."""
        return (va >> self.level_shift(level)) & ((1 << self.index_bits) - 1)


NONPAGING = PagingMode("nonpaging", 0, 8, 9, 32, 0)
PAGING_32 = PagingMode("32", 2, 4, 10, 32, 10, root_mask=0xFFFFF000)
PAGING_PAE = PagingMode("pae", 3, 8, 9, 32, 2, root_mask=0xFFFFFFE0, has_pdptes=True)
PAGING_4LEVEL = PagingMode("4level", 4, 8, 9, 48, 9)
PAGING_5LEVEL = PagingMode("5level", 5, 8, 9, 57, 9)

MODES = {m.name: m for m in (NONPAGING, PAGING_32, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL)}


def paging_mode(cr0: int, cr4: int, efer: int) -> PagingMode:
    """Return the paging mode that these control registers select (SDM 3, 4.1.1)."""
    if not cr0 & X86_CR0_PG:
        return NONPAGING
    if efer & EFER_LMA:
        return PAGING_5LEVEL if cr4 & X86_CR4_LA57 else PAGING_4LEVEL
    return PAGING_PAE if cr4 & X86_CR4_PAE else PAGING_32


def is_canonical(va: int, mode: PagingMode) -> bool:
    """Tell whether `va` is canonical: the bits above ``va_bits - 1`` repeat it (SDM 1, 3.3.7.1).

    Outside 64-bit mode every 32-bit address is.
    """
    if mode.va_bits == 32:
        return va >> 32 == 0
    top = va >> (mode.va_bits - 1)
    return top == 0 or top == (1 << (65 - mode.va_bits)) - 1
