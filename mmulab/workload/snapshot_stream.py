"""A snapshot as a stream: real tables, and reads of them that are drawn.

The stream holds what the snapshot's guest had built, announced as a recorded
boot announces its tables, and then reads of the addresses whose translations
the snapshot brings. What each read must reach comes from there, so a replay
compares the shadow tables with another program's answers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmulab.errors import InputError
from mmulab.workload.snapshot import Snapshot
from mmulab.workload.stream import (
    AUX_DEVICE,
    AUX_INITIAL,
    AUX_SIZE_SHIFT,
    CONTROL_NAMES,
    Kind,
    Registers,
    Stream,
)

__all__ = ["snapshot_stream"]

Row = tuple[int, int, int, int]
"""Kind, aux, gpa and val of a record."""
_PAGE = ~np.uint64(0xFFF)


def snapshot_stream(snapshot: Snapshot, records: int, seed: int) -> Stream:
    """Return a stream of `records` records: the snapshot's tables, then reads at CPL 0.

    The reads are drawn from a working set that grows from one address to all
    that are known to be mapped.

    Parameters
    ----------
    snapshot : Snapshot
    records : int
    seed : int
        The same seed draws the same reads.

    Raises
    ------
    InputError
        `records` leaves no room for a read behind the tables.
    """
    rows = [*_registers(snapshot), *_tables(snapshot)]
    reads = records - len(rows)
    if reads < 1:
        raise InputError(
            f"{snapshot.name}: {records} records hold no read; its registers and tables alone are "
            f"{len(rows)}, ask for more"
        )
    gva, gpa = _reads(snapshot, reads, seed)
    kind, aux, table_gpa, value = np.array(rows, np.uint64).T
    size_1 = np.where(gpa >= snapshot.ram_bytes, AUX_DEVICE, 0) | 1 << AUX_SIZE_SHIFT
    none = np.zeros(len(rows), np.uint64)
    return Stream(
        snapshot.name,
        kind=np.concatenate((kind.astype(np.uint8), np.full(reads, Kind.READ, np.uint8))),
        cpl=np.zeros(records, np.uint8),
        aux=np.concatenate((aux, size_1)).astype(np.uint16),
        gva=np.concatenate((none, gva)),
        gpa=np.concatenate((table_gpa, gpa)),
        val=np.concatenate((value, np.zeros(reads, np.uint64))),
        registers=Registers(snapshot.cr0, snapshot.cr3, snapshot.cr4, snapshot.efer),
        ram_bytes=snapshot.ram_bytes,
    )


def _registers(snapshot: Snapshot) -> list[Row]:
    """Return the records of the state at the start."""
    return [
        (Kind.CONTROL, AUX_INITIAL + number, 0, getattr(snapshot, name))
        for number, name in CONTROL_NAMES.items()
    ]


def _tables(snapshot: Snapshot) -> list[Row]:
    """Return the N and e records of every table, the root's level first."""
    width, mode = snapshot.mode.entry_bytes, snapshot.mode
    rows: list[Row] = []
    for level in range(mode.root_level, 0, -1):
        for row in np.flatnonzero(snapshot.levels & 1 << level).tolist():
            gpa = int(snapshot.gfn[row]) << 12
            if mode.has_pdptes and level == mode.root_level:
                gpa = snapshot.cr3 & mode.root_mask
            entries = snapshot.entries(gpa, level)
            rows.append((Kind.NEW_TABLE, level, gpa, 0))
            rows += [
                (Kind.ENTRY, level, gpa + width * index, int(entries[index]))
                for index in np.flatnonzero(entries).tolist()
            ]
    return rows


def _reads(
    snapshot: Snapshot, reads: int, seed: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Draw `reads` pages among those that are known to be mapped, and where they lie."""
    known = [(truth.gva, truth.gpa) for truth in snapshot.truth if truth.gpa is not None]
    draw = np.random.default_rng(seed)
    order = draw.permutation(np.array(known, np.uint64) & _PAGE)
    working_set = np.linspace(1, len(known), reads)
    drawn = order[(draw.random(reads) * working_set).astype(np.int64)]
    return drawn[:, 0].copy(), drawn[:, 1].copy()
