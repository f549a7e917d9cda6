"""Scopes of a guest without a guest of its own, each aimed at one thing.

Two tables reached by two ways, a register toggled between two accesses, an entry that
changes while KVM does not look: the alphabets hold little else, so that all sequences of
a handful of steps can be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from mmulab.check.scope import Scope, steps
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Regs
from mmulab.x86.mode import (
    PAGING_PAE,
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    PagingMode,
    paging_mode,
)
from mmulab.x86.regs import X86_CR0_WP, X86_CR4_SMAP, X86_CR4_SMEP

MEMORY = 0x100000
ROOT, TABLES, PAGES = 0x10000, 0x20000, 0x80000
"""Guest-physical addresses of the first root, of further tables, of data pages."""
GVA = 0x40000000
FULL = PT_PRESENT_MASK | PT_WRITABLE_MASK | PT_USER_MASK | PT_ACCESSED_MASK | PT_DIRTY_MASK
READ_ONLY, SUPERVISOR = FULL & ~PT_WRITABLE_MASK, FULL & ~PT_USER_MASK
_PAGE = 4096


class Tables:
    """A tree of page tables in a builder's memory.

    Parameters
    ----------
    builder : ScenarioBuilder
    mode : PagingMode
    root : int
    free : iterator of int
        Where further tables lie.
    """

    def __init__(self, builder: ScenarioBuilder, mode: PagingMode, root: int, free: Iterator[int]) -> None:
        self.builder, self.mode, self.root, self._free = builder, mode, root, free
        self._tables = {(mode.root_level, 0): root}
        builder.fill(root, _PAGE, 0)

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
                flags = PT_PRESENT_MASK if mode is PAGING_PAE and level == 3 else FULL
                at = table + mode.index(address, level) * mode.entry_bytes
                self.builder.fill(below, _PAGE, 0).value(mode.entry_bytes, at, below | flags)
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
    mode: str, *, vendor: str = "amd", vcpus: int = 1, cpu: dict[str, int] | None = None, **host: int
) -> tuple[ScenarioBuilder, Tables, Regs]:
    """Return a guest whose tables map only the pages of stubs, and three marked pages from PAGES on.

    Parameters
    ----------
    mode : str
        A key of :data:`~mmulab.scenario.scenario.MODES`, but for ``np``.
    vendor, vcpus, cpu
        As :class:`~mmulab.scenario.builder.ScenarioBuilder` has them.
    **host : int
        Changes to :data:`~mmulab.scenario.scenario.HOST_DEFAULTS`.
    """
    levels = {} if mode == "57" else {"virt_bits": 48}
    builder = ScenarioBuilder(
        mode, vendor=vendor, mem=MEMORY, vcpus=vcpus, cpu=cpu, host={**levels, **host}
    )
    for page in range(PAGES, PAGES + 4 * _PAGE, _PAGE):
        builder.value(4, page, 0xC0DE0000 | page >> 8)
    regs = MODES[mode]._replace(cr3=ROOT)
    builder.sregs(*regs)
    tables = Tables(builder, paging_mode(regs.cr0, regs.cr4, regs.efer), ROOT, count(TABLES, _PAGE))
    tables.put(HELPER_S, HELPER_S | SUPERVISOR)
    tables.identity(HELPER_U)
    return builder, tables, regs


def _write(at: int, value: int, width: int) -> str:
    return f"wr s {width} {at:x} {value:x}"


def _paths(mode: str, depth: int) -> Scope:
    """Two directory entries of other rights lead to one table with two pages."""
    builder, tables, _ = guest(mode)
    tables.put(GVA, PAGES | FULL)
    below = tables.entry(GVA) & -_PAGE
    second = GVA + tables.step(2)
    tables.put(second, below | READ_ONLY, 2)
    third = GVA + 2 * tables.step(2)
    tables.put(third, below | SUPERVISOR, 2)
    ops = [
        f"{kind} {who} 4 {gva:x}{value}"
        for gva in (GVA, second, third)
        for who in "su"
        for kind, value in (("rd", ""), ("wr", " 7700"))
    ]
    return Scope(f"paths-{mode}", "three entries of other rights to one table", builder.build(), steps(*ops), depth)


MAKERS: dict[str, Callable[[], Scope]] = {}
"""Scopes by name."""
for _mode in ("32", "pae", "64", "57"):
    MAKERS[f"paths-{_mode}"] = lambda mode=_mode: _paths(mode, 4)
