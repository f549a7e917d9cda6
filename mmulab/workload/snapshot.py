"""Snapshots: the page tables of a real kernel at one moment, with translations known from elsewhere.

A snapshot is two files. ``NAME.npz`` holds every page-table page reachable
from CR3; ``NAME.json`` holds the registers and 200 translations that another
program (the emulator that ran the kernel) reported. Their format is told in
``data/snapshots/PROVENANCE.md``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.errors import InputError
from mmulab.workload.columns import Column, Fields, read_columns
from mmulab.x86.mode import (
    PAGING_4LEVEL,
    PAGING_5LEVEL,
    PAGING_32,
    PAGING_PAE,
    PT64_NX_MASK,
    PT_ACCESSED_MASK,
    PT_BASE_ADDR_MASK,
    PT_DIRTY_MASK,
    PT_GLOBAL_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    PagingMode,
    is_canonical,
    paging_mode,
)
from mmulab.x86.paging import Paging, Walker, make_paging
from mmulab.x86.regs import CpuModel

Words = npt.NDArray[np.uint64]
COLUMNS = {"gfn": Column("uint64"), "pages": Column("uint64", 512), "levels": Column("uint8")}
MODE_NAMES = {"nonpae": PAGING_32, "pae": PAGING_PAE, "4level": PAGING_4LEVEL, "5level": PAGING_5LEVEL}
FLAG_LETTERS = "XGPDACTUW"
READER = Walker("reader", sets_ad=False, pse36_bits=None)
"""A walk by the processor's rules that leaves the tables as they are."""
PDPTE_ACCESSED = PT_ACCESSED_MASK
"""Bit 5 of a PDPTE: the emulator sets it, for a processor it is reserved (SDM 3, table 4-8)."""


class Truth(NamedTuple):
    """One translation as the other program reported it.

    Attributes
    ----------
    gva : int
    gpa : int or None
        None: not mapped.
    size : int or None
        Bytes of the page; None where not reported.
    flags : str or None
        Bits of the leaf entry, a letter of ``XGPDACTUW`` or ``-`` each (X: no
        execute, P: large, C: cache disable, T: write through).
    """

    gva: int
    gpa: int | None
    size: int | None
    flags: str | None


class LevelSummary(NamedTuple):
    """What the tables of one level hold.

    Attributes
    ----------
    level : int
    tables : int
        Pages that are tables of this level.
    links : int
        Entries that point to them (1 for the root).
    shared : int
        Tables to which more than one entry points.
    entries : int
        Entries in all of them.
    present : int
        Of these, the present ones.
    page_size : int
        Bytes that a leaf of this level maps.
    leaves : int
        Present entries that map a page; the rest of the fields count among these.
    user, writable, nx, accessed, dirty, global_ : int
    """

    level: int
    tables: int
    links: int
    shared: int
    entries: int
    present: int
    page_size: int
    leaves: int
    user: int
    writable: int
    nx: int
    accessed: int
    dirty: int
    global_: int


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Page tables of a guest, its registers and what is known about them.

    Attributes
    ----------
    name, kernel : str
    mode : PagingMode
    cr0, cr3, cr4, efer : int
    cpl : int
        Privilege at the moment of the snapshot.
    paging : Paging
        The configuration of these registers, for a walk that sets no bits.
    ram_bytes : int
        The guest's memory starts at 0 and has no holes below this size.
    gfn : numpy.ndarray, shape (n,), dtype uint64
    pages : numpy.ndarray, shape (n, 512), dtype uint64
        Contents of the page-table pages, as 64-bit words in every mode.
    levels : numpy.ndarray, shape (n,), dtype uint8
        Bit l is set where the page is reached as a table of level l.
    truth : tuple of Truth
    leaf_counts : dict
        Leaf entries by page size (``4K``, ``2M``, ``4M``, ``1G``), counted by
        the program that took the snapshot.
    masked_pdptes : int
        PDPTEs of a PAE snapshot in which bit 5 was set, and is masked here.
    row : dict
        Row of `pages` for each gfn.
    """

    name: str
    kernel: str
    mode: PagingMode
    cr0: int
    cr3: int
    cr4: int
    efer: int
    cpl: int
    paging: Paging
    ram_bytes: int
    gfn: Words
    pages: Words
    levels: npt.NDArray[np.uint8]
    truth: tuple[Truth, ...]
    leaf_counts: dict[str, int]
    masked_pdptes: int
    row: dict[int, int]

    def load(self, address: int, level: int = 0) -> int | None:
        """Read the entry at guest-physical `address`; the ``load`` of a walk."""
        row = self.row.get(address >> 12)
        if row is None:
            return None
        word = int(self.pages[row, (address & 0xFFF) >> 3])
        if self.mode.entry_bytes == 8:
            return word
        return word >> 8 * (address & 4) & 0xFFFFFFFF

    def summary(self) -> tuple[LevelSummary, ...]:
        """Return what the tables of each level hold, the root's level first."""
        summaries = []
        links: Counter[int] = Counter([self.cr3 & self.mode.root_mask & PT_BASE_ADDR_MASK])
        for level in range(self.mode.root_level, 0, -1):
            below: Counter[int] = Counter()
            tables = [self.entries(address, level) for address in links]
            entries = np.concatenate(tables)
            present = entries[entries & np.uint64(PT_PRESENT_MASK) != 0]
            leaf = self.maps_page(present, level)
            leaves = present[leaf]
            below.update((present[~leaf] & np.uint64(PT_BASE_ADDR_MASK)).tolist())
            masks = (PT_USER_MASK, PT_WRITABLE_MASK, PT64_NX_MASK, PT_ACCESSED_MASK, PT_DIRTY_MASK)
            counts = [int(np.count_nonzero(leaves & np.uint64(m))) for m in (*masks, PT_GLOBAL_MASK)]
            shared = sum(count > 1 for count in links.values())
            summaries.append(
                LevelSummary(
                    level,
                    len(tables),
                    links.total(),
                    shared,
                    len(entries),
                    len(present),
                    1 << self.mode.level_shift(level),
                    len(leaves),
                    *counts,
                )
            )
            links = below
        return tuple(summaries)

    def entries(self, table: int, level: int) -> Words:
        """Return the entries of the table of `level` at guest-physical address `table`."""
        page: Words = self.pages[self.row[table >> 12]]
        if self.mode.has_pdptes and level == self.mode.root_level:
            first = (self.cr3 & self.mode.root_mask & 0xFFF) >> 3
            page = page[first : first + 4]
        return page if self.mode.entry_bytes == 8 else page.view("<u4").astype(np.uint64)

    def maps_page(self, entries: Words, level: int) -> npt.NDArray[np.bool_]:
        """Tell which of the present `entries` of a table of `level` are leaves."""
        if level == 1:
            return np.ones(len(entries), np.bool_)
        leaf: npt.NDArray[np.bool_] = entries & np.uint64(self.paging.page_size_mask[level]) != 0
        return leaf

    def __repr__(self) -> str:
        leaves = ", ".join(f"{count} x {size}" for size, count in sorted(self.leaf_counts.items()))
        masked = f", bit 5 masked in {self.masked_pdptes} PDPTEs" if self.masked_pdptes else ""
        return (
            f"Snapshot({self.name}: {self.mode.name} paging, cr3 {self.cr3:#x}, cpl {self.cpl}, "
            f"{len(self.gfn)} table pages, leaves {leaves}{masked})"
        )

    def _repr_html_(self) -> str:
        names = (*LevelSummary._fields[:-1], "global")
        head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
        rows = "".join(
            "<tr>" + "".join(f"<td>{value:,}</td>" for value in summary) + "</tr>"
            for summary in self.summary()
        )
        return f"<p>{self!r}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def load_snapshot(path: str | Path) -> Snapshot:
    """Read ``NAME.npz`` and the ``NAME.json`` beside it.

    In a PAE snapshot bit 5 of the four PDPTEs is masked (and nothing else):
    the emulator sets it as it walks, a processor and KVM's ``load_pdptrs``
    hold it for reserved.

    Raises
    ------
    InputError
        A file that is missing, truncated or inconsistent: a missing column, a
        wrong dtype, an address beyond the guest's memory, an entry that leads
        to a table that is not there, registers of another mode.
    """
    path = Path(path)
    columns = read_columns(path, COLUMNS)
    about = Fields.of_file(path.with_suffix(".json"))
    registers = {name: about.number(name) for name in ("cr0", "cr3", "cr4", "efer")}
    mode = _mode(about, registers["cr0"], registers["cr4"], registers["efer"])
    gfn, ram_bytes = columns["gfn"], about.number("ram_bytes")
    row = {number: i for i, number in enumerate(gfn.tolist())}
    if len(row) != len(gfn):
        raise InputError(f"{path}: column 'gfn' names a page twice; write each page once")
    for i, number in enumerate(gfn.tolist()):
        if number >= ram_bytes >> 12:
            raise InputError(
                f"{path}: gfn[{i}] {number:#x} is beyond the RAM of {ram_bytes:#x} bytes in "
                f"{path.stem}.json; one of the two belongs to another snapshot"
            )
    cpu = CpuModel(maxphyaddr=about.number("maxphyaddr", 6), pku=True)
    pages = columns["pages"].copy()
    masked = _mask_pdptes(path, mode, registers["cr3"], pages, row)
    snapshot = Snapshot(
        name=path.stem,
        kernel=about.text("kernel"),
        mode=mode,
        **registers,
        cpl=about.number("cpl", 2),
        paging=make_paging(registers["cr0"], registers["cr4"], registers["efer"], cpu, READER),
        ram_bytes=ram_bytes,
        gfn=gfn,
        pages=pages,
        levels=columns["levels"],
        truth=tuple(_truth(record, mode) for record in about.records("truth")),
        leaf_counts=_leaf_counts(about),
        masked_pdptes=masked,
        row=row,
    )
    _check_reached(path, snapshot)
    return snapshot


def _mode(about: Fields, cr0: int, cr4: int, efer: int) -> PagingMode:
    mode = MODE_NAMES.get(about.text("mode"))
    if mode is None:
        raise about.wrong("mode", f"one of {', '.join(MODE_NAMES)}")
    selected = paging_mode(cr0, cr4, efer)
    if selected is not mode:
        raise about.wrong("mode", f"that of cr0, cr4 and efer, which select {selected.name} paging")
    return mode


def _mask_pdptes(path: Path, mode: PagingMode, cr3: int, pages: Words, row: dict[int, int]) -> int:
    """Check that the root is there; mask bit 5 of PAE's PDPTEs and return in how many it was set."""
    root = cr3 & mode.root_mask
    if root >> 12 not in row:
        raise InputError(
            f"{path}: gfn {root >> 12:#x}, the root's page by cr3 {cr3:#x}, is not in column 'gfn'; "
            "take the snapshot again"
        )
    if not mode.has_pdptes:
        return 0
    first = (root & 0xFFF) >> 3
    pdptes = pages[row[root >> 12], first : first + 4]
    masked = int(np.count_nonzero(pdptes & np.uint64(PDPTE_ACCESSED)))
    pdptes &= ~np.uint64(PDPTE_ACCESSED)
    return masked


def _truth(record: Fields, mode: PagingMode) -> Truth:
    gva = record.number("gva")
    if not is_canonical(gva, mode):
        raise record.wrong("gva", f"a canonical address of {mode.name} paging")
    gpa = None if record.get("gpa") is None else record.number("gpa", 52)
    size = None if record.get("size") is None else record.number("size")
    levels = (1, 2, 3) if mode.root_level > 3 else (1, 2)
    if size is not None and size not in {1 << mode.level_shift(level) for level in levels}:
        raise record.wrong("size", f"the size of a page in {mode.name} paging")
    flags = None if record.get("flags") is None else record.text("flags")
    if flags is not None and not re.fullmatch("".join(f"[-{letter}]" for letter in FLAG_LETTERS), flags):
        raise record.wrong("flags", f"{FLAG_LETTERS} with '-' for a clear bit")
    return Truth(gva, gpa, size, flags)


def _leaf_counts(about: Fields) -> dict[str, int]:
    counts = about.get("leaf_entries_by_walker")
    if not isinstance(counts, dict):
        raise about.wrong("leaf_entries_by_walker", "an object of counts by page size")
    fields = Fields(f"{about.where}: leaf_entries_by_walker", counts)
    return {size: fields.number(size) for size in counts}


def _check_reached(path: Path, snapshot: Snapshot) -> None:
    """Check that the entries lead to the pages in the file, and to each as the levels that it names."""
    levels = np.zeros(len(snapshot.gfn), np.uint8)
    for address, level in _reached(path, snapshot):
        levels[snapshot.row[address >> 12]] |= np.uint8(1 << level)
    for i in np.flatnonzero(levels != snapshot.levels).tolist():
        raise InputError(
            f"{path}: levels[{i}] of gfn {int(snapshot.gfn[i]):#x} is {int(snapshot.levels[i]):#x}, the "
            f"tables from cr3 {snapshot.cr3:#x} on reach it as {int(levels[i]):#x}; "
            "the two files belong to different snapshots"
        )


def _reached(path: Path, snapshot: Snapshot) -> Iterator[tuple[int, int]]:
    """Yield address and level of each table, once a level."""
    tables = [snapshot.cr3 & snapshot.mode.root_mask & PT_BASE_ADDR_MASK]
    for level in range(snapshot.mode.root_level, 0, -1):
        below: dict[int, None] = {}
        for table in tables:
            yield table, level
            entries = snapshot.entries(table, level)
            present = entries & np.uint64(PT_PRESENT_MASK) != 0
            for index in np.flatnonzero(present & ~snapshot.maps_page(entries, level)).tolist():
                child = int(entries[index]) & PT_BASE_ADDR_MASK
                if child >> 12 not in snapshot.row:
                    raise InputError(
                        f"{path}: entry {index} of the level-{level} table at {table:#x} leads to "
                        f"{child:#x}, whose page is not in column 'gfn'; take the snapshot again"
                    )
                below[child] = None
        tables = list(below)
