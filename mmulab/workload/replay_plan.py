"""What a replay does, worked out before it begins.

A stream's records fall into two sorts. Accesses and table stores go through the
processor's tables, most of them without anything else happening, so they become
columns for the compiled walk. Everything else is a *step* between them: a
control register, INVLPG, tables announced behind a record, a look at the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.workload.stream import (
    ACCESS_KINDS,
    AUX_STORE_SIZE_SHIFT,
    INITIAL_RECORDS,
    Kind,
    Stream,
    table_owners,
)
from mmulab.x86.mode import PT_ACCESSED_MASK
from mmulab.x86.pferr import PFERR_FETCH_MASK, PFERR_USER_MASK, PFERR_WRITE_MASK

NO_FRAME = 0
"""What a device access may reach among host frames: none (frame 0 is never handed out)."""
PROGRESS_RECORDS = 1 << 14
"""Records between two reports of progress."""


class Action(IntEnum):
    """Kinds of steps, in the order in which those at one record are taken."""

    SAMPLE = 0
    PROGRESS = 1
    TABLES = 2
    CONTROL = 3
    INVLPG = 4
    TABLE_END = 5


class Step(NamedTuple):
    """One step.

    Attributes
    ----------
    position : int
        Number of accesses before it.
    record : int
        The record it belongs to; of ``TABLES``, the first record of the block.
    action : Action
    """

    position: int
    record: int
    action: Action


@dataclass(frozen=True, slots=True, eq=False)
class TableStores:
    """The guest's stores to its tables.

    Attributes
    ----------
    position : numpy.ndarray, shape (m,), dtype int64
        Which of the accesses they are.
    size : numpy.ndarray, shape (m,), dtype uint8
        Bytes.
    value : numpy.ndarray, shape (m,), dtype uint64
    """

    position: npt.NDArray[np.int64]
    size: npt.NDArray[np.uint8]
    value: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The first records of a stream as accesses and steps.

    Attributes
    ----------
    record : numpy.ndarray, shape (n,), dtype int64
        The record of each access.
    va : numpy.ndarray, shape (n,), dtype uint64
    pfec : numpy.ndarray, shape (n,), dtype uint8
        Kind of access by the CPL: W, U and F bits of an error code.
    not_smap : numpy.ndarray, shape (n,), dtype bool
        Supervisor data accesses run with EFLAGS.AC=1.
    frame : numpy.ndarray, shape (n,), dtype uint64
        Host frame that the access must reach; `NO_FRAME` for a device.
    stores : TableStores
    miss : numpy.ndarray, shape (n,), dtype bool
        Whether it is only the TLB miss of the table store that is the next access.
    steps : list of Step
    """

    record: npt.NDArray[np.int64]
    va: npt.NDArray[np.uint64]
    pfec: npt.NDArray[np.uint8]
    not_smap: npt.NDArray[np.bool_]
    frame: npt.NDArray[np.uint64]
    stores: TableStores
    miss: npt.NDArray[np.bool_]
    steps: list[Step]


def make_plan(stream: Stream, limit: int, backing: int, sample_every: int | None) -> Plan:
    """Lay out the first `limit` records.

    Parameters
    ----------
    backing : int
        Host frame of the guest's page 0.
    sample_every : int or None
        Records between two steps ``SAMPLE``; None: none are taken.
    """
    kind = stream.kind[:limit]
    store = kind == Kind.STORE
    fetch = kind == Kind.FETCH
    write = store | (kind == Kind.WRITE)
    user = stream.cpl[:limit] == 3
    record = np.flatnonzero(store | np.isin(kind, np.array(ACCESS_KINDS, np.uint8)))
    pfec = write * np.uint8(PFERR_WRITE_MASK) | fetch * np.uint8(PFERR_FETCH_MASK)
    pfec |= user * np.uint8(PFERR_USER_MASK)
    device = stream.device()[:limit][record]
    frame = (stream.gpa[:limit][record] >> np.uint64(12)) + np.uint64(backing)
    frame[device] = NO_FRAME
    miss = _misses(stream)
    miss[limit - 1 :] = False
    return Plan(
        record=record,
        va=stream.gva[:limit][record],
        pfec=pfec[record],
        not_smap=(~user & ~fetch)[record],
        frame=frame,
        stores=_table_stores(stream, record, np.flatnonzero(store[record])),
        miss=miss[record],
        steps=_steps(stream, limit, record, miss, sample_every),
    )


def _steps(
    stream: Stream,
    limit: int,
    record: npt.NDArray[np.int64],
    miss: npt.NDArray[np.bool_],
    sample_every: int | None,
) -> list[Step]:
    """List the steps in order.

    A block of tables stands behind the record in front of which it must be
    applied; a ``w`` that is the TLB miss of that record's store is part of it.
    """
    kind = stream.kind[:limit]
    control = np.flatnonzero(kind == Kind.CONTROL)[INITIAL_RECORDS:]
    invlpg = np.flatnonzero(kind == Kind.INVLPG)
    table_end = np.flatnonzero(kind == Kind.TABLE_END)
    samples = np.arange(sample_every or limit, limit, sample_every or limit)
    progress = np.arange(PROGRESS_RECORDS, limit, PROGRESS_RECORDS)
    block = _block_starts(stream)
    block = block[(block > INITIAL_RECORDS) & (block <= limit)]
    owner = block - 1
    owner = owner - miss[owner - 1]
    sorts = (
        (Action.SAMPLE, samples, samples),
        (Action.PROGRESS, progress, progress),
        (Action.TABLES, owner, block),
        (Action.CONTROL, control, control),
        (Action.INVLPG, invlpg, invlpg),
        (Action.TABLE_END, table_end, table_end),
    )
    before = np.concatenate([at for _, at, _ in sorts])
    named = np.concatenate([what for _, _, what in sorts])
    action = np.concatenate([np.full(len(at), number) for number, at, _ in sorts])
    order = np.lexsort((action, before))
    positions = np.searchsorted(record, before[order])
    rows = zip(positions.tolist(), named[order].tolist(), action[order].tolist(), strict=True)
    return [Step(position, at, Action(number)) for position, at, number in rows]


def _block_starts(stream: Stream) -> npt.NDArray[np.int64]:
    """Return the first record of every run of N and e."""
    block = np.isin(stream.kind, np.array((Kind.NEW_TABLE, Kind.ENTRY), np.uint8))
    return np.flatnonzero(block[1:] & ~block[:-1]) + 1


def _misses(stream: Stream) -> npt.NDArray[np.bool_]:
    """Tell which records are the TLB miss of the table store that is the next record."""
    kind, page = stream.kind, stream.gva >> np.uint64(12)
    found = np.zeros(len(stream), np.bool_)
    found[:-1] = (kind[:-1] == Kind.WRITE) & (kind[1:] == Kind.STORE) & (page[:-1] == page[1:])
    return found


def _table_stores(
    stream: Stream, record: npt.NDArray[np.int64], position: npt.NDArray[np.int64]
) -> TableStores:
    """Work out what the P records store.

    A record's value is the whole entry afterwards; a narrow store wrote only
    some bytes of it, and of a misaligned one those within the entry count.
    """
    at, width = record[position], np.uint64(stream.entry_bytes)
    offset = stream.gva[at] & (width - np.uint64(1))
    size = np.minimum(stream.aux[at] >> AUX_STORE_SIZE_SHIFT, width - offset)
    entry = entry_value(stream, at, stream.aux[at] & 1 << 3 != 0)
    kept = ~np.uint64(0) >> np.uint64(8) * (np.uint64(8) - size)
    return TableStores(position, size.astype(np.uint8), entry >> np.uint64(8) * offset & kept)


def entry_value(
    stream: Stream, record: npt.NDArray[np.int64], root: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint64]:
    """Return the entries in e or P records.

    The emulator sets bit 5 of PAE's PDPTEs, which a processor and KVM hold for
    reserved; it is masked in them. `root`: the table is one of level 3.
    """
    accessed = np.uint64(PT_ACCESSED_MASK if stream.mode.has_pdptes else 0)
    return stream.val[record] & ~np.where(root, accessed, np.uint64(0))


class NewTable(NamedTuple):
    """A page (or PAE's root) that became a table.

    Attributes
    ----------
    gpa : int
    level : int
    size : int
        Bytes.
    content : numpy.ndarray, dtype uint32 or uint64
        Its entries as they are now.
    """

    gpa: int
    level: int
    size: int
    content: npt.NDArray[np.uint32] | npt.NDArray[np.uint64]


def new_tables(stream: Stream, first: int) -> Iterator[NewTable]:
    """Yield the tables of the block of N and e records that begins at `first`.

    Entries without a record of their own are zero.
    """
    width = stream.entry_bytes
    last = first
    while last < len(stream) and stream.kind[last] in (Kind.NEW_TABLE, Kind.ENTRY):
        last += 1
    at, owner = table_owners(
        stream.kind[first:last], stream.aux[first:last], stream.gpa[first:last], stream.mode
    )
    order = np.argsort(owner, kind="stable")  # by table; N is the first record of each
    at, owner = first + at[order], first + owner[order]
    bounds = np.flatnonzero(np.diff(owner, prepend=-1))
    for start, end in pairwise([*bounds.tolist(), len(at)]):
        gpa, level = stream.table(int(owner[start]))
        size = stream.table_bytes(level)
        entries = at[start + 1 : end]
        content = np.zeros(size // width, np.uint64)
        index = (stream.gpa[entries] - np.uint64(gpa)) // np.uint64(width)
        content[index.astype(np.int64)] = entry_value(stream, entries, stream.aux[entries] == 3)
        yield NewTable(gpa, level, size, content if width == 8 else content.astype(np.uint32))
