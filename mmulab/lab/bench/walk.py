"""How fast the walk is, against a processor that someone else wrote, in the same run.

The peer is the ``unicorn`` package, the translator of QEMU 5 as a library. Both
sides walk the same 4-level tables for the same random pages, with rights
checked (CR0.WP, SMEP, SMAP and NX on) and A set. Unicorn's guest runs a loop of
its own code that draws the pages; its soft TLB holds far fewer pages than there
are, so nearly every access walks. Two more loops show its limits: one empties
the TLB by ``mov cr3`` before each access, one touches a single page. Rates
depend on the machine; what is compared is their ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.errors import InputError
from mmulab.x86.mode import PT64_NX_MASK, PT_PRESENT_MASK, PT_WRITABLE_MASK
from mmulab.x86.paging import Paging, make_paging
from mmulab.x86.regs import (
    EFER_LMA,
    EFER_LME,
    EFER_NX,
    X86_CR0_ET,
    X86_CR0_PE,
    X86_CR0_PG,
    X86_CR0_WP,
    X86_CR4_PAE,
    X86_CR4_SMAP,
    X86_CR4_SMEP,
    CpuModel,
)
from mmulab.x86.walk import walk

Words = npt.NDArray[np.uint64]

PAGE_BITS = 16
"""Binary logarithm of the number of pages that accesses are drawn from."""
DATA_FRAMES = 64
"""Frames behind the pages; each begins with a word of its own, so sums of words tell frames apart."""
CODE_GVA = 1 << 39
ROOT, UPPER_PAGES, MIDDLE_PAGES, UPPER_CODE, MIDDLE_CODE, LOWER_CODE, CODE, FIRST_DATA = range(1, 9)
FIRST_LOWER = FIRST_DATA + DATA_FRAMES
TABLE = PT_PRESENT_MASK | PT_WRITABLE_MASK
CR0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_WP | X86_CR0_PG
CR4 = X86_CR4_PAE | X86_CR4_SMEP | X86_CR4_SMAP
EFER = EFER_LME | EFER_LMA | EFER_NX

MULTIPLIER, INCREMENT = 6364136223846793005, 1442695040888963407
"""Knuth's linear congruential generator modulo 2**64; the upper bits of its state choose the page."""
DRAW = bytes.fromhex("490fafc0 4c01c8 4889c2 48c1ea30 48c1e20c")
"""imul rax, r8; add rax, r9; mov rdx, rax; shr rdx, 48; shl rdx, 12"""
EMPTY_TLB = bytes.fromhex("410f22db")
"""mov cr3, r11"""
LOAD = bytes.fromhex("4c0322")
"""add r12, [rdx]"""
SAME_PAGE = bytes.fromhex("31d2")
"""xor edx, edx"""
AGAIN = bytes.fromhex("48ffc9 75")
"""dec rcx; jnz (its displacement follows)"""


class Rate(NamedTuple):
    """One line of the comparison.

    Attributes
    ----------
    name : str
    per_second : float
        Translations a second, the best of the repetitions.
    ratio : float
        Rate of the batch walk over this one.
    """

    name: str
    per_second: float
    ratio: float


def make_frames(seed: int) -> Words:
    """Make the tables, the data they map in random order, and room for code.

    Returns
    -------
    numpy.ndarray, shape (n, 512), dtype uint64
    """
    rng = np.random.default_rng(seed)
    tables = (1 << PAGE_BITS) // 512
    frames = np.zeros((FIRST_LOWER + tables, 512), np.uint64)
    frames[ROOT, :2] = UPPER_PAGES << 12 | TABLE, UPPER_CODE << 12 | TABLE
    frames[UPPER_PAGES, 0] = MIDDLE_PAGES << 12 | TABLE
    frames[MIDDLE_PAGES, :tables] = np.arange(FIRST_LOWER, FIRST_LOWER + tables) << 12 | TABLE
    frames[UPPER_CODE, 0] = MIDDLE_CODE << 12 | TABLE
    frames[MIDDLE_CODE, 0] = LOWER_CODE << 12 | TABLE
    frames[LOWER_CODE, 0] = CODE << 12 | TABLE
    data = rng.integers(FIRST_DATA, FIRST_DATA + DATA_FRAMES, (tables, 512), dtype=np.uint64)
    frames[FIRST_LOWER:] = data << np.uint64(12) | np.uint64(TABLE | PT64_NX_MASK)
    frames[FIRST_DATA:FIRST_LOWER, 0] = rng.integers(0, 1 << 64, DATA_FRAMES, dtype=np.uint64)
    return frames


def draw_pages(seed: int, count: int) -> Words:
    """Return the addresses that the guest's generator draws from `seed`."""
    addresses = np.empty(count, np.uint64)
    state, mask = seed, (1 << 64) - 1
    for i in range(count):
        state = (state * MULTIPLIER + INCREMENT) & mask
        addresses[i] = state >> (64 - PAGE_BITS) << 12
    return addresses


def bench_walk(*, seed: int = 1, translations: int = 300_000, repeat: int = 3) -> tuple[Rate, ...]:
    """Measure the batch walk, the walk in Python and unicorn on the same random pages.

    Parameters
    ----------
    seed : int
        Chooses tables and pages.
    translations : int
        Accesses in each measurement.
    repeat : int
        Measurements of each; the best counts.

    Returns
    -------
    tuple of Rate
        The batch walk first.

    Raises
    ------
    InputError
        unicorn is not installed.
    RuntimeError
        Two of them reached different frames; a bug.
    """
    unicorn = _unicorn()
    frames = make_frames(seed)
    pages = draw_pages(seed, translations)
    paging = make_paging(CR0, CR4, EFER, CpuModel(vendor="intel"))
    batch, physical = _time_batch(frames, paging, pages, repeat)
    reached = int(np.add.reduce(frames.reshape(-1)[physical >> np.uint64(3)]))
    few = pages[: max(1, translations // 10)]
    timings = [("batch walk", batch), ("walk in Python", _time_python(frames, paging, few, physical, repeat))]
    for name, code in (
        ("unicorn, random pages", DRAW + LOAD),
        ("unicorn, random pages, TLB emptied", DRAW + EMPTY_TLB + LOAD),
        ("unicorn, one page (TLB hits)", DRAW + SAME_PAGE + LOAD),
    ):
        rate, total = _time_unicorn(unicorn, make_frames(seed), code, seed, translations, repeat)
        if SAME_PAGE not in code and total != reached:
            raise RuntimeError(f"{name}: the loads add up to {total:#x}, those of the batch to {reached:#x}")
        timings.append((name, rate))
    return tuple(Rate(name, rate, batch / rate) for name, rate in timings)


def _unicorn() -> Any:
    try:
        import unicorn
    except ImportError as error:
        raise InputError(
            "bench: the package 'unicorn' is not installed; install it with pip install 'mmulab[dev]'"
        ) from error
    return unicorn


def _best(measured: Callable[[], object], count: int, repeat: int) -> float:
    """Return how often a second the fastest of `repeat` calls did each of its `count` things."""
    fastest = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        measured()
        fastest = min(fastest, time.perf_counter() - start)
    return count / fastest


def _time_batch(frames: Words, paging: Paging, pages: Words, repeat: int) -> tuple[float, Words]:
    from mmulab.x86.batch import walk_batch

    kinds = np.zeros(pages.size, np.uint8)
    result = walk_batch(frames, paging, ROOT << 12, pages, kinds)
    if result.done != pages.size:
        raise RuntimeError(f"access {result.done} of the batch faults with {result.error:#x}")
    rate = _best(lambda: walk_batch(frames, paging, ROOT << 12, pages, kinds), pages.size, repeat)
    return rate, result.pa


def _time_python(frames: Words, paging: Paging, pages: Words, physical: Words, repeat: int) -> float:
    flat = frames.data.cast("B").cast("Q")
    addresses = pages.tolist()

    def load(address: int, level: int) -> int:
        return flat[address >> 3]

    def store(address: int, entry: int) -> None:
        flat[address >> 3] = entry

    def measured() -> list[int]:
        return [walk(paging, ROOT << 12, va, 0, load, store).pa for va in addresses]

    if measured() != physical[: len(addresses)].tolist():
        raise RuntimeError("the walk in Python reaches other frames than the batch")
    return _best(measured, len(addresses), repeat)


def _time_unicorn(
    unicorn: Any, frames: Words, body: bytes, seed: int, count: int, repeat: int
) -> tuple[float, int]:
    """Run `body` in a loop of `count`; return its rate and the sum of the words it loaded."""
    from unicorn import x86_const as x86

    code = body + AGAIN
    code += (256 - len(code) - 1).to_bytes(1, "little")
    frames.view(np.uint8)[CODE, : len(code)] = np.frombuffer(code, np.uint8)
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.ctl_set_cpu_model(x86.UC_CPU_X86_ICELAKE_SERVER)
    uc.ctl_set_tlb_mode(unicorn.UC_TLB_CPU)
    uc.mem_map_ptr(0, frames.nbytes, unicorn.UC_PROT_ALL, frames.ctypes.data)
    uc.msr_write(0xC0000080, EFER)
    for register, value in (
        (x86.UC_X86_REG_CR3, ROOT << 12),
        (x86.UC_X86_REG_CR4, CR4),
        (x86.UC_X86_REG_CR0, CR0),
        (x86.UC_X86_REG_R8, MULTIPLIER),
        (x86.UC_X86_REG_R9, INCREMENT),
        (x86.UC_X86_REG_R11, ROOT << 12),
    ):
        uc.reg_write(register, value)

    def measured() -> None:
        uc.reg_write(x86.UC_X86_REG_RAX, seed)
        uc.reg_write(x86.UC_X86_REG_RCX, count)
        uc.reg_write(x86.UC_X86_REG_R12, 0)
        uc.emu_start(CODE_GVA, CODE_GVA + len(code))

    rate = _best(measured, count, repeat)
    return rate, uc.reg_read(x86.UC_X86_REG_R12)
