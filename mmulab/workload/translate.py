"""Comparison of the walk with the translations that a snapshot brings.

The translations came from another program, the monitor of the emulator that
ran the kernel; so agreement says that the walk reads real tables as they are
meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from mmulab.workload.snapshot import FLAG_LETTERS, Snapshot, Truth, load_snapshot
from mmulab.x86.mode import (
    PT64_NX_MASK,
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_GLOBAL_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
)
from mmulab.x86.walk import Walk, walk

PT_PWT_MASK = 1 << 3
PT_PCD_MASK = 1 << 4
FLAG_MASKS = (
    PT64_NX_MASK,
    PT_GLOBAL_MASK,
    PT_PAGE_SIZE_MASK,
    PT_DIRTY_MASK,
    PT_ACCESSED_MASK,
    PT_PCD_MASK,
    PT_PWT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
)
"""The bits of ``FLAG_LETTERS``."""


class Difference(NamedTuple):
    """One translation on which the walk and the snapshot disagree.

    Attributes
    ----------
    gva : int
    field : str
        ``gpa``, ``size`` or ``flags``.
    recorded, walked : str
    """

    gva: int
    field: str
    recorded: str
    walked: str


class Translation(NamedTuple):
    """What became of one snapshot's translations.

    Attributes
    ----------
    snapshot : Snapshot
    agree, total : int
        Addresses on which all that was recorded agrees, and all addresses.
    differences : tuple of Difference
    """

    snapshot: Snapshot
    agree: int
    total: int
    differences: tuple[Difference, ...]


class TranslationSummary(NamedTuple):
    """What became of all translations of several snapshots.

    Attributes
    ----------
    agree, total : int
    snapshots : int
    translations : tuple of Translation
    """

    agree: int
    total: int
    snapshots: int
    translations: tuple[Translation, ...]


def tlb_flags(entry: int, level: int) -> str:
    """Write a leaf entry's bits as the emulator's monitor does; bit 7 of a 4 KiB entry is PAT, not P.

    >>> tlb_flags(0x8000000000000163, 1)
    'XG-DA---W'
    """
    shown = entry & ~PT_PAGE_SIZE_MASK if level == 1 else entry
    return "".join(
        letter if shown & mask else "-" for letter, mask in zip(FLAG_LETTERS, FLAG_MASKS, strict=True)
    )


def translate(snapshot: Snapshot, gva: int) -> Walk:
    """Walk the snapshot's tables for a supervisor's read of `gva`, to which no right can be wanting."""
    return walk(snapshot.paging, snapshot.cr3, gva, 0, snapshot.load, not_smap=True)


def _compare(snapshot: Snapshot, truth: Truth) -> Difference | None:
    """Return the first difference of one translation."""
    w = translate(snapshot, truth.gva)
    if w.error is not None:
        # What is not mapped lacks P somewhere; any other fault would be a wrong reading of an entry.
        found = "unmapped" if not w.error & PT_PRESENT_MASK else f"fault {w.error:#x}"
        recorded = "unmapped" if truth.gpa is None else f"{truth.gpa:#x}"
        return None if found == recorded else Difference(truth.gva, "gpa", recorded, found)
    if truth.gpa is None:
        return Difference(truth.gva, "gpa", "unmapped", f"{w.pa:#x}")
    if w.pa != truth.gpa:
        return Difference(truth.gva, "gpa", f"{truth.gpa:#x}", f"{w.pa:#x}")
    size = 1 << snapshot.mode.level_shift(w.level)
    if truth.size is not None and truth.size != size:
        return Difference(truth.gva, "size", f"{truth.size:#x}", f"{size:#x}")
    flags = tlb_flags(w.ptes[w.level], w.level)
    if truth.flags is not None and truth.flags != flags:
        return Difference(truth.gva, "flags", truth.flags, flags)
    return None


def translate_snapshot(snapshot: Snapshot) -> Translation:
    """Walk every sampled address of a snapshot and compare all that was recorded of it.

    Compared are the physical address (or that there is none), the size of the
    page, and the bits of its leaf entry: NX, G, PS, D, A, PCD, PWT, U, W.
    """
    compared = [_compare(snapshot, truth) for truth in snapshot.truth]
    differences = tuple(difference for difference in compared if difference is not None)
    return Translation(snapshot, len(compared) - len(differences), len(compared), differences)


def translate_files(
    paths: Iterable[str | Path], progress: Callable[[Translation], None] | None = None
) -> TranslationSummary:
    """Translate the sampled addresses of several snapshots.

    Parameters
    ----------
    paths : iterable of path
        The snapshots' ``.npz`` files.
    progress : callable, optional
        Called with each snapshot's result as soon as it is there.

    Raises
    ------
    InputError
        A file that :func:`~mmulab.workload.snapshot.load_snapshot` refuses.
    """
    translations = []
    for path in paths:
        translation = translate_snapshot(load_snapshot(path))
        translations.append(translation)
        if progress is not None:
            progress(translation)
    return TranslationSummary(
        sum(translation.agree for translation in translations),
        sum(translation.total for translation in translations),
        len(translations),
        tuple(translations),
    )
