"""Streams: what a real kernel's boot did to its pages and page tables, record by record.

A stream is two files. ``NAME.npz`` holds the records as columns, ``NAME.json``
counts them. An emulator recorded them while it ran the kernel: each access by
page, through a filter the size of a TLB, with the physical address that it
reached; every store to a table; every load of a control register. The format is
told in ``data/stream/PROVENANCE.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from mmulab.errors import InputError, quoted
from mmulab.workload.columns import COPY_AGAIN, Column, Fields, read_columns
from mmulab.x86.mode import PagingMode, paging_mode
from mmulab.x86.regs import X86_CR4_PAE

RAM_BYTES = 256 << 20
"""Guest memory of every recording: from 0, without holes."""
COLUMNS = {
    "kind": Column("uint8"),
    "cpl": Column("uint8"),
    "aux": Column("uint16"),
    "gva": Column("uint64"),
    "gpa": Column("uint64"),
    "val": Column("uint64"),
}


class Kind(IntEnum):
    """Kinds of records: the ASCII codes in column ``kind``."""

    READ = ord("r")
    WRITE = ord("w")
    FETCH = ord("x")
    CONTROL = ord("C")
    INVLPG = ord("I")
    PAGE_FAULT = ord("F")
    NEW_TABLE = ord("N")
    ENTRY = ord("e")
    STORE = ord("P")
    TABLE_END = ord("U")

    @property
    def letter(self) -> str:
        """The letter in the file."""
        return chr(self.value)


ACCESS_KINDS = (Kind.READ, Kind.WRITE, Kind.FETCH)
AUX_DEVICE = 1
"""In `aux` of a read or write: it goes to a device."""
AUX_SIZE_SHIFT = 1
"""In `aux` of a read or write: bytes of the access, from this bit on."""
AUX_INITIAL = 0x100
"""In `aux` of a control record: the state at the stream's start."""
AUX_STORE_SIZE_SHIFT = 9
"""In `aux` of a table store: its bytes, from this bit on. Bits 1 to 7 name the levels of the table."""
CONTROL_NAMES = {0: "cr0", 3: "cr3", 4: "cr4", 8: "efer"}
INITIAL_RECORDS = len(CONTROL_NAMES)
PDPT_BYTES = 32
"""Size of PAE's root table."""


class Registers(NamedTuple):
    """The control registers at a stream's start."""

    cr0: int
    cr3: int
    cr4: int
    efer: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stream:
    """A recorded boot.

    Attributes
    ----------
    name : str
        The file's name without its ending; for messages.
    kind, cpl : numpy.ndarray, shape (n,), dtype uint8
        See :class:`Kind`; the CPL, which is not always the kind of access.
    aux : numpy.ndarray, shape (n,), dtype uint16
    gva, gpa, val : numpy.ndarray, shape (n,), dtype uint64
        Their meanings depend on the kind.
    registers : Registers
        State at the start.
    ram_bytes : int
        The guest's memory starts at 0 and has no holes below this size.
    """

    name: str
    kind: npt.NDArray[np.uint8]
    cpl: npt.NDArray[np.uint8]
    aux: npt.NDArray[np.uint16]
    gva: npt.NDArray[np.uint64]
    gpa: npt.NDArray[np.uint64]
    val: npt.NDArray[np.uint64]
    registers: Registers
    ram_bytes: int = RAM_BYTES

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def mode(self) -> PagingMode:
        """The paging mode at the start."""
        return paging_mode(self.registers.cr0, self.registers.cr4, self.registers.efer)

    @property
    def entry_bytes(self) -> int:
        """Width of a table entry: 8 with CR4.PAE, else 4; it stays so for the whole stream."""
        return 8 if self.registers.cr4 & X86_CR4_PAE else 4

    def counts(self) -> dict[str, int]:
        """Return how many records there are of each kind, by its letter."""
        found = np.bincount(self.kind, minlength=256)
        return {kind.letter: int(found[kind]) for kind in Kind if found[kind]}

    def device(self) -> npt.NDArray[np.bool_]:
        """Tell which records are accesses to devices."""
        data = (self.kind == Kind.READ) | (self.kind == Kind.WRITE)
        found: npt.NDArray[np.bool_] = data & (self.aux & AUX_DEVICE != 0)
        return found

    def table_bytes(self, level: int) -> int:
        """Return the size of a table of `level`: a page, or PAE's 32-byte root."""
        return PDPT_BYTES if level == 3 and self.mode.has_pdptes else 4096

    def table(self, record: int) -> tuple[int, int]:
        """Return address and level of the table that an N or U record is about."""
        level = int(self.aux[record])
        return int(self.gpa[record]) & ~(self.table_bytes(level) - 1), level

    def __repr__(self) -> str:
        counts = ", ".join(f"{letter} {count}" for letter, count in self.counts().items())
        return f"Stream({self.name}: {len(self)} records, {self.mode.name} paging; {counts})"


def load_stream(path: str | Path) -> Stream:
    """Read ``NAME.npz`` and check it, also against the counts in ``NAME.json``.

    Raises
    ------
    InputError
        A file that is missing, truncated or damaged; a missing column, a wrong
        dtype, unequal lengths; an unknown kind; an address beyond the guest's
        memory; tables announced in the wrong place; records that are not those
        of the JSON file.
    """
    path = Path(path)
    columns = read_columns(path, COLUMNS)
    about = Fields.of_file(path.with_suffix(".json"))
    _check_counts(path, about, columns["kind"])
    check = _Check(path, **columns)
    return Stream(path.stem, **columns, registers=check.all(), ram_bytes=RAM_BYTES)


def _check_counts(path: Path, about: Fields, kind: npt.NDArray[np.uint8]) -> None:
    """Check that the JSON file speaks of these records."""
    records = about.number("records")
    if records != len(kind):
        raise InputError(
            f"{path}: {len(kind)} records, {about.where} says {records}; one of the two belongs to "
            f"another stream, {COPY_AGAIN}"
        )
    if not isinstance(about.get("kinds"), dict):
        raise about.wrong("kinds", "an object of counts by kind")
    told = Fields(f"{about.where}: kinds", about.get("kinds"))
    for letter in told.values:
        found = int(np.count_nonzero(kind == ord(letter))) if len(letter) == 1 else 0
        if told.number(letter) != found:
            raise InputError(
                f"{path}: {found} records of kind '{quoted(letter)}', "
                f"{about.where} says {told.number(letter)}; "
                f"one of the two belongs to another stream, {COPY_AGAIN}"
            )


def entry_owners(
    kind: npt.NDArray[np.uint8], aux: npt.NDArray[np.uint16], gpa: npt.NDArray[np.uint64], *, pae: bool
) -> npt.NDArray[np.intp]:
    """Return for each e record the N record that it belongs to, -1 if there is none.

    That is the last N before it in its block whose table, by address and level,
    contains it: a recorder that goes depth first comes back to a table after
    those below it.

    Parameters
    ----------
    kind, aux, gpa : numpy.ndarray, shape (n,)
        Columns of whole blocks; other records may stand between them.
    pae : bool
        A table of level 3 is PAE's root.
    """
    new, entries = np.flatnonzero(kind == Kind.NEW_TABLE), np.flatnonzero(kind == Kind.ENTRY)
    if not len(entries) or not len(new):
        return np.full(len(entries), -1)
    size = np.where(pae & (aux[new] == 3), PDPT_BYTES, 4096).astype(np.uint64)
    base = gpa[new] & ~(size - np.uint64(1))
    last = np.searchsorted(new, entries) - 1
    owner = np.where(
        (last >= 0) & (gpa[entries] - base[last] < size[last]) & (aux[entries] == aux[new[last]]),
        new[last],
        -1,
    )
    return owner if (owner >= 0).all() else _owners_by_table(kind, aux, gpa, pae=pae)


def _owners_by_table(
    kind: npt.NDArray[np.uint8], aux: npt.NDArray[np.uint16], gpa: npt.NDArray[np.uint64], *, pae: bool
) -> npt.NDArray[np.intp]:
    """Return what :func:`entry_owners` does, with the tables of a block in mind."""
    owners: list[int] = []
    tables: dict[tuple[int, int], int] = {}
    before = -1
    block = np.flatnonzero((kind == Kind.NEW_TABLE) | (kind == Kind.ENTRY)).tolist()
    for at, letter, level, address in zip(
        block, kind[block].tolist(), aux[block].tolist(), gpa[block].tolist(), strict=True
    ):
        if at != before + 1:
            tables.clear()
        before = at
        table = level, address & ~((PDPT_BYTES if pae and level == 3 else 4096) - 1)
        if letter == Kind.NEW_TABLE:
            tables[table] = at
        else:
            owners.append(tables.get(table, -1))
    return np.array(owners, np.intp)


class _Check:
    """The checks of a stream's records; each names the first record that is wrong."""

    def __init__(
        self,
        path: Path,
        kind: npt.NDArray[np.uint8],
        cpl: npt.NDArray[np.uint8],
        aux: npt.NDArray[np.uint16],
        gva: npt.NDArray[np.uint64],
        gpa: npt.NDArray[np.uint64],
        val: npt.NDArray[np.uint64],
    ) -> None:
        self.path = path
        self.kind, self.cpl, self.aux = kind, cpl, aux
        self.gva, self.gpa, self.val = gva, gpa, val

    def all(self) -> Registers:
        """Check everything and return the state at the start."""
        self._kinds()
        registers = self._initial_state()
        self._control()
        self._levels()
        self._blocks()
        self._addresses(registers)
        self._entries(registers)
        return registers

    def _is(self, *kinds: Kind) -> npt.NDArray[np.bool_]:
        return np.isin(self.kind, np.array(kinds, np.uint8))

    def _none(self, wrong: npt.NDArray[np.bool_], column: str, problem: str, mend: str = COPY_AGAIN) -> None:
        """Raise the error of the first record for which `wrong` is true."""
        if wrong.any():
            self._refuse(int(np.argmax(wrong)), column, problem, mend)

    def _refuse(self, record: int, column: str, problem: str, mend: str = COPY_AGAIN) -> NoReturn:
        value = int(getattr(self, column)[record])
        letter = chr(int(self.kind[record]))
        shown = f"{value} ({letter!r})" if column == "kind" else f"{value:#x}"
        raise InputError(f"{self.path}: record {record} ({letter!r}): {column} {shown} {problem}; {mend}")

    def _kinds(self) -> None:
        known = " ".join(kind.letter for kind in Kind)
        self._none(~self._is(*Kind), "kind", "is unknown", f"a kind is one of {known}")
        self._none(self.cpl > 3, "cpl", "is no privilege level", "it is 0 to 3")

    def _initial_state(self) -> Registers:
        """The first four records give CR0, CR3, CR4 and EFER."""
        first = self.kind[:INITIAL_RECORDS]
        aux = self.aux[:INITIAL_RECORDS].tolist()
        if (first != Kind.CONTROL).any() or sorted(aux) != [AUX_INITIAL + n for n in CONTROL_NAMES]:
            raise InputError(
                f"{self.path}: records 0 to 3 are not the state at the start (kind 'C', aux 0x100, 0x103, "
                f"0x104 and 0x108); {COPY_AGAIN}"
            )
        value = dict(zip(aux, self.val[:INITIAL_RECORDS].tolist(), strict=True))
        return Registers(**{name: value[AUX_INITIAL + n] for n, name in CONTROL_NAMES.items()})

    def _control(self) -> None:
        control = self._is(Kind.CONTROL)
        control[:INITIAL_RECORDS] = False
        names = ", ".join(f"{n} ({name})" for n, name in CONTROL_NAMES.items())
        unknown = control & ~np.isin(self.aux, np.array(list(CONTROL_NAMES), np.uint16))
        self._none(unknown, "aux", "names no control register", f"it is one of {names}")
        cr4 = self.val[self._is(Kind.CONTROL) & (self.aux & 0xFF == 4)]
        width = control & (self.aux == 4) & ((self.val ^ cr4[0]) & np.uint64(X86_CR4_PAE) != 0)
        self._none(width, "val", "changes CR4.PAE", "a stream has entries of one width; cut it there")

    def _levels(self) -> None:
        tables = self._is(Kind.NEW_TABLE, Kind.ENTRY, Kind.TABLE_END)
        self._none(tables & ((self.aux < 1) | (self.aux > 5)), "aux", "is no level", "it is 1 to 5")
        store = self._is(Kind.STORE)
        self._none(store & (self.aux & 0x3E == 0), "aux", "names no level of the table stored to")
        self._none(store & (self.aux >> AUX_STORE_SIZE_SHIFT == 0), "aux", "is a store of no bytes")
        data = self._is(Kind.READ, Kind.WRITE)
        self._none(data & (self.aux >> AUX_SIZE_SHIFT == 0), "aux", "is an access of no bytes")

    def _blocks(self) -> None:
        """A block of N and e stands behind a P or C, and begins with N."""
        block = self._is(Kind.NEW_TABLE, Kind.ENTRY)
        before = np.concatenate((np.zeros(1, np.uint8), self.kind[:-1]))
        first = block & ~np.isin(before, np.array((Kind.NEW_TABLE, Kind.ENTRY), np.uint8))
        owned = np.isin(before, np.array((Kind.STORE, Kind.CONTROL), np.uint8))
        self._none(first & ~owned, "kind", "does not stand behind a P or C record")
        self._none(first & (self.kind == Kind.ENTRY), "kind", "belongs to no page announced by N")

    def _addresses(self, registers: Registers) -> None:
        data = self._is(Kind.READ, Kind.WRITE)
        device = data & (self.aux & AUX_DEVICE != 0)
        in_ram = self._is(*ACCESS_KINDS, Kind.NEW_TABLE, Kind.ENTRY, Kind.STORE, Kind.TABLE_END) & ~device
        problem = f"is beyond the RAM of {RAM_BYTES:#x} bytes"
        self._none(in_ram & (self.gpa >= RAM_BYTES), "gpa", problem)
        pages = np.zeros(RAM_BYTES >> 12, np.bool_)
        pages[(self.gpa[in_ram] >> np.uint64(12)).astype(np.int64)] = True
        inside = device & (self.gpa < RAM_BYTES)
        at = np.where(inside, self.gpa >> np.uint64(12), 0).astype(np.int64)
        self._none(inside & pages[at], "gpa", "is a device and, in other records, memory")
        used = self._is(*ACCESS_KINDS, Kind.STORE)
        mode = paging_mode(registers.cr0, registers.cr4, registers.efer)
        top = self.gva >> np.uint64(mode.va_bits - 1) if mode.va_bits > 32 else self.gva >> np.uint64(32)
        high = (1 << (65 - mode.va_bits)) - 1 if mode.va_bits > 32 else 0
        wrong = used & (top != 0) & (top != np.uint64(high))
        self._none(wrong, "gva", f"is no canonical address of {mode.name} paging")

    def _entries(self, registers: Registers) -> None:
        width = 8 if registers.cr4 & X86_CR4_PAE else 4
        mode = paging_mode(registers.cr0, registers.cr4, registers.efer)
        entry = self._is(Kind.ENTRY, Kind.STORE)
        problem = f"is not aligned to an entry of {width} bytes"
        self._none(entry & (self.gpa & np.uint64(width - 1) != 0), "gpa", problem)
        entries = np.flatnonzero(self._is(Kind.ENTRY))
        lost = entries[entry_owners(self.kind, self.aux, self.gpa, pae=mode.has_pdptes) < 0]
        if len(lost):
            self._refuse(int(lost[0]), "gpa", "is in no table of its level announced by an N of its block")
