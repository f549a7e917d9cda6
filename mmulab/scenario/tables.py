"""Page tables in a scenario's memory, made as addresses ask for them."""

from __future__ import annotations

from collections.abc import Iterator

from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.scenario import Regs
from mmulab.x86.mode import (
    PAGING_PAE,
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    VMX_EPT_RWX_MASK,
    PagingMode,
    paging_mode,
)

PAGE = 4096
TABLE_FLAGS = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK | PT_DIRTY_MASK
"""Low bits of an entry that grants everything."""
WRITE_BACK = 6
"""The memory type of an EPT pointer, and in bits 3 to 5 of a leaf."""


class Tables:
    """A tree of page tables in a builder's memory, of any mode.

    Parameters
    ----------
    builder : ScenarioBuilder
    mode : PagingMode
    root : int
        Guest-physical address of the root, which is cleared.
    free : iterator of int
        Gives the addresses of further tables.

    Attributes
    ----------
    table_flags, leaf_flags : int
        Low bits of an entry that leads to a table, and of one that grants everything.
    """

    table_flags = leaf_flags = TABLE_FLAGS

    def __init__(self, builder: ScenarioBuilder, mode: PagingMode, root: int, free: Iterator[int]) -> None:
        self.builder, self.mode, self.root, self._free = builder, mode, root, free
        self._tables = {(mode.root_level, 0): root}
        builder.fill(root, PAGE, 0)

    @property
    def pages(self) -> list[int]:
        """Addresses of all tables so far."""
        return list(self._tables.values())

    def entry(self, address: int, leaf: int = 1) -> int:
        """Return where the entry of level `leaf` for `address` lies, making the tables above it."""
        mode = self.mode
        table = self.root
        for level in range(mode.root_level, leaf, -1):
            key = level - 1, address >> mode.level_shift(level)
            if key not in self._tables:
                below = self._tables[key] = next(self._free)
                # A PDPTE of PAE paging has no rights: its bits 1 and 2 are reserved (SDM 3, 4.4.1).
                flags = PT_PRESENT_MASK if mode is PAGING_PAE and level == 3 else self.table_flags
                at = table + mode.index(address, level) * mode.entry_bytes
                self.builder.fill(below, PAGE, 0).value(mode.entry_bytes, at, below | flags)
            table = self._tables[key]
        return table + mode.index(address, leaf) * mode.entry_bytes

    def put(self, address: int, value: int, level: int = 1) -> int:
        """Write the entry of a level for an address, and return where it lies."""
        at = self.entry(address, level)
        self.builder.value(self.mode.entry_bytes, at, value)
        return at

    def map(self, address: int, target: int, level: int = 1, *, flags: int | None = None) -> None:
        """Map the page at `address` to `target`, with every right or `flags`; large from level 2 up."""
        flags = self.leaf_flags if flags is None else flags
        self.put(address, target | flags | (PT_PAGE_SIZE_MASK if level > 1 else 0), level)

    def identity(self, *addresses: int) -> None:
        """Map pages to themselves."""
        for address in addresses:
            self.map(address, address)

    def step(self, level: int) -> int:
        """Return how far the addresses of two entries of a level lie apart."""
        return 1 << self.mode.level_shift(level)


class EptTables(Tables):
    """A tree of EPT tables; its leaves are write-back memory."""

    table_flags = VMX_EPT_RWX_MASK
    leaf_flags = VMX_EPT_RWX_MASK | WRITE_BACK << 3


def mode_of(regs: Regs) -> PagingMode:
    """Return the paging mode of these registers."""
    return paging_mode(regs.cr0, regs.cr4, regs.efer)
