"""Streams made by hand: a guest with a few pages, record by record, in any paging mode."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from mmulab.workload.stream import COLUMNS, Registers, Stream
from mmulab.x86.mode import MODES, PagingMode
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    X86_CR0_ET,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_LA57,
    X86_CR4_PAE,
)

P, W, U, A, D = 1, 2, 4, 1 << 5, 1 << 6
TABLE = P | W | U | A
PAGE = P | W | A | D
"""A page of the supervisor's."""
USER = PAGE | U
PAGING_NAMES = ("32", "pae", "4level", "5level")
CR0 = X86_CR0_PG | X86_CR0_WP | X86_CR0_ET | X86_CR0_PE
LONG = EFER_LME | EFER_LMA | EFER_NX
CR4_EFER = {
    "32": (0, 0),
    "pae": (X86_CR4_PAE, EFER_NX),
    "4level": (X86_CR4_PAE, LONG),
    "5level": (X86_CR4_PAE | X86_CR4_LA57, LONG),
}


class Records:
    """Records, one after the other; each method returns the index of the one that it adds."""

    def __init__(self, registers: Registers) -> None:
        self.registers = registers
        self.rows: list[tuple[int, int, int, int, int, int]] = []
        for number, value in zip((0, 3, 4, 8), registers, strict=True):
            self.control(0x100 + number, value)

    def add(self, kind: str, cpl: int = 0, aux: int = 0, gva: int = 0, gpa: int = 0, val: int = 0) -> int:
        self.rows.append((ord(kind), cpl, aux, gva, gpa, val))
        return len(self.rows) - 1

    def read(self, gva: int, gpa: int, cpl: int = 0, size: int = 4, device: bool = False) -> int:
        return self.add("r", cpl, size << 1 | device, gva, gpa)

    def write(self, gva: int, gpa: int, cpl: int = 0, size: int = 4, device: bool = False) -> int:
        return self.add("w", cpl, size << 1 | device, gva, gpa)

    def fetch(self, gva: int, gpa: int, cpl: int = 0) -> int:
        return self.add("x", cpl, 0, gva, gpa)

    def control(self, register: int, value: int) -> int:
        return self.add("C", 0, register, val=value)

    def invlpg(self, gva: int) -> int:
        return self.add("I", gva=gva)

    def page_fault(self, gva: int) -> int:
        return self.add("F", gva=gva)

    def new_table(self, gpa: int, level: int) -> int:
        return self.add("N", 0, level, gpa=gpa)

    def entry(self, gpa: int, level: int, value: int) -> int:
        return self.add("e", 0, level, gpa=gpa, val=value)

    def table_end(self, gpa: int, level: int) -> int:
        return self.add("U", 0, level, gpa=gpa)

    def store(self, gva: int, gpa: int, level: int, value: int, size: int, narrow: bool = False) -> int:
        return self.add("P", 0, size << 9 | narrow << 8 | 1 << level, gva, gpa, value)

    def columns(self) -> dict[str, np.ndarray]:
        rows = zip(*self.rows, strict=True)
        return {name: np.array(row, COLUMNS[name].dtype) for name, row in zip(COLUMNS, rows, strict=True)}

    def stream(self) -> Stream:
        return Stream("small", **self.columns(), registers=self.registers)

    def save(self, folder: Path, **changed: np.ndarray | None) -> Path:
        """Write the two files; a column given as None is left out."""
        columns = {**self.columns(), **changed}
        path = folder / "small.npz"
        np.savez_compressed(path, **{name: col for name, col in columns.items() if col is not None})
        kinds = Counter(chr(row[0]) for row in self.rows)
        path.with_suffix(".json").write_text(json.dumps({"records": len(self.rows), "kinds": kinds}))
        return path


class Guest(Records):
    """A guest whose tables lie in its first pages and map its lowest pages to themselves.

    Parameters
    ----------
    paging : str
        Name of a mode.
    cr4 : int
        More bits of CR4.
    root : int
        Where its tables begin.
    flags : int
        Of the mapped pages.
    """

    def __init__(self, paging: str, *, cr4: int = 0, root: int = 0x1000, flags: int = PAGE) -> None:
        mode_cr4, efer = CR4_EFER[paging]
        super().__init__(Registers(CR0, root, mode_cr4 | cr4, efer))
        self.mode: PagingMode = MODES[paging]
        self.width = self.mode.entry_bytes
        self.count = 1 << self.mode.index_bits
        self.tables: dict[int, int] = {}
        self.block(root, flags)

    def block(self, root: int, flags: int = PAGE) -> None:
        """Announce a whole set of tables from `root` on, as the block behind a record."""
        page = root & ~0xFFF
        self.tables = {level: page + 0x1000 * (self.mode.root_level - level) for level in self.levels()}
        self.tables[self.mode.root_level] = root
        for level in self.levels():
            self.new_table(self.tables[level], level)
            if level > 1:
                flag = P if self.is_pdpt(level) else TABLE
                self.entry(self.tables[level], level, self.tables[level - 1] | flag)
        for index in range(self.count):
            self.entry(self.entry_gpa(1, index << 12), 1, index << 12 | flags)

    def levels(self) -> range:
        return range(self.mode.root_level, 0, -1)

    def is_pdpt(self, level: int) -> bool:
        return level == 3 and self.mode.has_pdptes

    def entry_gpa(self, level: int, gva: int, table: int | None = None) -> int:
        """Return where the entry for `gva` lies, in `table` or in the first one of the level."""
        index = self.mode.index(gva, level)
        return (self.tables[level] if table is None else table) + index * self.width

    def set_entry(self, gva: int, value: int, level: int = 1, table: int | None = None) -> int:
        """Store an entry, at the address at which the guest sees its own tables."""
        gpa = self.entry_gpa(level, gva, table)
        return self.store(gpa, gpa, level, value, self.width)

    def miss(self, gpa: int) -> int:
        """The TLB miss of a table store to `gpa`."""
        return self.write(gpa & ~0xFFF, gpa & ~0xFFF, size=self.width)


def depth_first() -> Guest:
    """A PAE guest that loads a root whose tables are announced depth first, as a recorder walks them."""
    guest = Guest("pae")
    guest.control(3, 0x200EEA0)
    guest.new_table(0x200EEA0, 3)
    guest.entry(0x200EEA0, 3, 0x200F000 | P)
    guest.new_table(0x200F000, 2)
    guest.entry(0x200EEA8, 3, 0x2016000 | P)
    guest.new_table(0x2016000, 2)
    guest.entry(0x2016540, 2, 0x2018000 | TABLE)
    guest.new_table(0x2018000, 1)
    guest.entry(0x2018008, 1, 0x300000 | PAGE)
    return guest
