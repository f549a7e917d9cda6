"""Random page tables of any mode, for tests that compare two translators of them.

Every table of a level holds 512 (1024) random entries, so one set of tables
holds some thousand translations with rights, reserved bits, page sizes and A/D
bits in all mixtures. The last entry of the root is kept for a well-formed path
to three pages at :func:`stub_va`, where an emulated processor has its code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mmulab.x86.mode import PT_BASE_ADDR_MASK, PT_USER_MASK, PagingMode
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK
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
    X86_CR4_PKE,
    X86_CR4_PSE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
)

Frames = npt.NDArray[np.uint64]

FRAMES = 48
"""Frames of memory behind the tables; leaf entries point above them."""
CODE_SUPERVISOR, CODE_USER, DATA = 1, 2, 3
"""Frames of the three stub pages, in the order of their virtual pages."""
TABLES_PER_LEVEL = 4
STUB_FLAGS = 0x63
"""Present, writable, accessed, dirty."""
ACCESSES = (0, PFERR_WRITE_MASK, PFERR_FETCH_MASK)


@dataclass(frozen=True, slots=True)
class Registers:
    """The registers that paging depends on."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    pkru: int


@dataclass(frozen=True, slots=True)
class Access:
    """One access: `pfec` holds its W, U and F bits, `ac` is EFLAGS.AC."""

    va: int
    pfec: int
    ac: bool


@dataclass(frozen=True, slots=True)
class World:
    """Tables in memory and the registers that make them current."""

    mode: PagingMode
    frames: Frames
    registers: Registers

    def pdptes(self) -> list[int] | None:
        """Return what PAE's PDPTE registers hold, None in other modes."""
        if not self.mode.has_pdptes:
            return None
        first = self.registers.cr3 >> 3
        return [int(entry) for entry in self.frames.ravel()[first : first + 4]]


class Memory:
    """A copy of frames with the `load` and `store` of a walk; nothing is behind the last frame."""

    def __init__(self, frames: Frames, mode: PagingMode) -> None:
        self.frames = frames.copy()
        self.stores = 0
        flat = memoryview(self.frames).cast("B")
        self._entries = flat.cast("I" if mode.entry_bytes == 4 else "Q")
        self._width = mode.entry_bytes

    def load(self, address: int, level: int) -> int | None:
        """Read one entry."""
        index = address // self._width
        return self._entries[index] if index < len(self._entries) else None

    def store(self, address: int, entry: int) -> None:
        """Write one entry."""
        self.stores += 1
        self._entries[address // self._width] = entry


def stub_va(mode: PagingMode, page: int) -> int:
    """Return the address of stub page `page`: under the last entry of every table but the lowest."""
    if not mode.root_level:
        return (CODE_SUPERVISOR + page) << 12
    top = (1 << mode.va_bits) - (1 << mode.level_shift(2))
    return sign_extend(top, mode) + (page << 12)


def sign_extend(va: int, mode: PagingMode) -> int:
    """Make `va` canonical by its highest translated bit."""
    if mode.va_bits == 32 or not va >> (mode.va_bits - 1) & 1:
        return va
    return va | (1 << 64) - (1 << mode.va_bits)


def random_registers(rng: np.random.Generator, mode: PagingMode) -> Registers:
    """Draw the control bits that the mode leaves free; CR3 is 0 yet."""

    def maybe(bits: int) -> int:
        return bits if rng.random() < 0.5 else 0

    cr0 = X86_CR0_PE | X86_CR0_ET | maybe(X86_CR0_WP) | (X86_CR0_PG if mode.root_level else 0)
    cr4 = maybe(X86_CR4_SMEP) | maybe(X86_CR4_SMAP) | maybe(X86_CR4_PSE) | maybe(X86_CR4_PKE)
    efer = maybe(EFER_NX)
    if mode.root_level >= 3:
        cr4 |= X86_CR4_PAE
    if mode.root_level >= 4:
        efer |= EFER_LME | EFER_LMA
    if mode.root_level == 5:
        cr4 |= X86_CR4_LA57
    return Registers(cr0, 0, cr4, efer, int(rng.integers(0, 1 << 32)))


def random_world(rng: np.random.Generator, mode: PagingMode) -> World:
    """Draw registers and tables of `mode`."""
    frames: Frames = np.zeros((FRAMES, 512), np.uint64)
    registers = random_registers(rng, mode)
    if not mode.root_level:
        return World(mode, frames, registers)
    large_levels = (2, 3) if mode.entry_bytes == 8 else (2,) if registers.cr4 & X86_CR4_PSE else ()
    free = iter(range(DATA + 1, FRAMES))
    below: list[int] = []
    stub = 0
    for level in range(1, mode.root_level + 1):
        root = level == mode.root_level
        tables = [next(free) for _ in range(1 if root else TABLES_PER_LEVEL)]
        for frame in tables:
            frames[frame] = _random_table(rng, mode, level, level in large_levels, below)
        stub_table = tables[0] if root else next(free)
        entries = frames[stub_table].view(np.uint32 if mode.entry_bytes == 4 else np.uint64)
        if level == 1:
            entries[:3] = [page << 12 | STUB_FLAGS for page in (CODE_SUPERVISOR, CODE_USER, DATA)]
            entries[1] |= PT_USER_MASK
        else:
            last = (1 << (mode.root_index_bits if root else mode.index_bits)) - 1
            entries[last] = stub << 12 | (1 if mode.has_pdptes and root else STUB_FLAGS | PT_USER_MASK)
        below, stub = tables, stub_table
    return World(mode, frames, replace(registers, cr3=stub << 12))


def _random_table(
    rng: np.random.Generator, mode: PagingMode, level: int, large_pages: bool, below: list[int]
) -> npt.NDArray[np.uint64]:
    """Draw one table as 512 words; `below` are the frames of the next level's tables."""
    count = 4096 // mode.entry_bytes

    def bits(mask: int, share: float) -> npt.NDArray[np.uint64]:
        """Set each bit of `mask` in a share of the entries."""
        out = np.zeros(count, np.uint64)
        for bit in range(64):
            if mask >> bit & 1:
                out |= (rng.random(count) < share).astype(np.uint64) << np.uint64(bit)
        return out

    tables = rng.choice(np.array(below or [0], np.uint64), count) << np.uint64(12)
    if mode.has_pdptes and level == mode.root_level:
        return (bits(0x001, 0.8) | bits(0xE18, 0.5) | bits(1 << 40, 0.05) | tables)[:512]
    large_share = 0.25 if large_pages else 0.5 if level == 1 or mode.entry_bytes == 4 else 0.01
    entries = bits(0x001, 0.93) | bits(0x006, 0.8) | bits(0xF78, 0.5) | bits(0x080, large_share)
    if mode.entry_bytes == 8:
        entries |= bits(1 << 63, 0.15) | bits(3 << 40 | 1 << 51, 0.01)
        entries |= bits(0x7FF << 52, 0.003 if mode.has_pdptes else 0.5)
    top = 20 if mode.entry_bytes == 4 else 28
    page = rng.integers(FRAMES, 1 << top, count, dtype=np.uint64) << np.uint64(12)
    if level == 1:
        entries |= page
    elif large_pages:
        offset = np.uint64((1 << mode.level_shift(level)) - 1)
        base = page & ~offset
        base[base == 0] = offset + np.uint64(1)
        base |= bits(int(offset) & ~0x1FFF, 0.1 if mode.entry_bytes == 4 else 0.01) | bits(0x1000, 0.5)
        if mode.entry_bytes == 4:
            base |= bits(0xFF << 13, 0.3)
        entries |= np.where(entries & np.uint64(0x80), base, tables)
    else:
        entries |= tables
    return entries.astype("<u4").view("<u8") if mode.entry_bytes == 4 else entries


def path_tables(mode: PagingMode, va: int, entries: dict[int, int]) -> tuple[int, dict[int, int]]:
    """Lay out one path of tables for `va`: its root and its entries by address.

    The table of level n is frame 0x100 + n; an entry without address bits gets
    that of the next table.
    """
    memory = {}
    for level, entry in entries.items():
        linked = entry if entry & PT_BASE_ADDR_MASK or level == 1 else entry | 0xFF + level << 12
        memory[(0x100 + level << 12) + mode.index(va, level) * mode.entry_bytes] = linked
    return 0x100 + mode.root_level << 12, memory


def random_accesses(rng: np.random.Generator, world: World, count: int, user: bool) -> list[Access]:
    """Draw accesses of one privilege anywhere but under the stub's root entry."""
    mode = world.mode
    accesses = []
    for _ in range(count):
        va = int(rng.integers(0, 1 << 63)) & (1 << mode.va_bits) - 1
        if mode.root_level:
            root_shift = mode.va_bits - mode.root_index_bits
            if va >> root_shift == (1 << mode.root_index_bits) - 1:
                va ^= 1 << root_shift
        pfec = ACCESSES[rng.integers(3)] | (PFERR_USER_MASK if user else 0)
        accesses.append(Access(sign_extend(va, mode), pfec, bool(rng.integers(2))))
    return accesses
