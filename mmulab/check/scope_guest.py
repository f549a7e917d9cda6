"""The pieces of a scope's guest: its tables, and the addresses that all scopes share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Regs
from mmulab.x86.mode import (
    PAGING_PAE,
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    PagingMode,
    paging_mode,
)

MEMORY = 0x100000
ROOT, TABLES, PAGES = 0x10000, 0x20000, 0x80000
"""Guest-physical addresses of the first root, of further tables, of data pages."""
ROOT2, TABLES2 = 0x11000, 0xA0000
"""The same of the second root and its tables."""
OUTSIDE = 0x8000000
"""An address in no memslot."""
GVA, TABLE_VA = 0x40000000, 0x40080000
"""Where the data lies for the guest, and the tables that it writes itself."""
FULL = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK | PT_DIRTY_MASK
READ_ONLY, SUPERVISOR = FULL & ~PT_WRITABLE_MASK, FULL & ~PT_USER_MASK
PAGE = 4096


class Tables:
    """A tree of page tables in a builder's memory.

    Parameters
    ----------
    builder : ScenarioBuilder
    mode : PagingMode
    root : int
    free : iterator of int
        Where further tables lie.
    link : int, optional
        Low bits of an entry that leads to a table; None: every right.
    """

    def __init__(
        self,
        builder: ScenarioBuilder,
        mode: PagingMode,
        root: int,
        free: Iterator[int],
        link: int | None = None,
    ) -> None:
        self.builder, self.mode, self.root, self._free = builder, mode, root, free
        self._link = FULL if link is None else link
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
                flags = PT_PRESENT_MASK if mode is PAGING_PAE and level == 3 else self._link
                at = table + mode.index(address, level) * mode.entry_bytes
                self.builder.fill(below, PAGE, 0).value(mode.entry_bytes, at, below | flags)
            table = self._tables[key]
        return table + mode.index(address, leaf) * mode.entry_bytes

    def put(self, address: int, value: int, level: int = 1) -> int:
        """Write the entry of a level for an address, and return where it lies."""
        at = self.entry(address, level)
        self.builder.value(self.mode.entry_bytes, at, value)
        return at

    def identity(self, *addresses: int) -> None:
        """Map pages to themselves."""
        for address in addresses:
            self.put(address, address | FULL)

    def step(self, level: int) -> int:
        """Return how far the addresses of two entries of a level lie apart."""
        return 1 << self.mode.level_shift(level)


def guest(
    mode: str,
    *,
    vendor: str = "amd",
    vcpus: int = 1,
    mem: int = MEMORY,
    thp: int = 0,
    cpu: dict[str, int] | None = None,
    **host: int,
) -> tuple[ScenarioBuilder, Tables, Regs]:
    """Return a guest whose tables map only the pages of stubs, and three marked pages from PAGES on.

    Parameters
    ----------
    mode : str
        A key of :data:`~mmulab.scenario.scenario.MODES`, but for ``np``.
    vendor, vcpus, mem, thp, cpu
        As :class:`~mmulab.scenario.builder.ScenarioBuilder` has them.
    **host : int
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    """
    levels = {"virt_bits": 57 if mode == "57" else 48}
    builder = ScenarioBuilder(
        mode, vendor=vendor, mem=mem, vcpus=vcpus, thp=bool(thp), cpu=cpu, host={**levels, **host}
    )
    for page in range(PAGES, PAGES + 4 * PAGE, PAGE):
        builder.value(4, page, 0xC0DE0000 | page >> 8)
    regs = MODES[mode]._replace(cr3=ROOT)
    builder.sregs(*regs)
    tables = Tables(builder, paging_mode(regs.cr0, regs.cr4, regs.efer), ROOT, count(TABLES, PAGE))
    tables.put(HELPER_S, HELPER_S | SUPERVISOR)
    tables.identity(HELPER_U)
    return builder, tables, regs


def as_text(how: str, width: int, at: int, value: int) -> str:
    """Return the op that stores an entry: ``wr s`` to a virtual address, ``hw`` behind KVM's back."""
    return f"{how} {width} {at:x} {value:x}"
