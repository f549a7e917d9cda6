"""All shadow tables as they were at the last look, and what has changed since.

A table is compared, about a microsecond each, if it was written since the last look:
who looks raises memory's epoch (:class:`~mmulab.memory.host.HostMemory`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm
from mmulab.memory.host import FRAME_WORDS

Table = npt.NDArray[np.uint64]


class Changed(NamedTuple):
    """A table that changed.

    Attributes
    ----------
    sp : ShadowPage
    old : Table or None
        The table at the last look; None: the page is new.
    new : Table or None
        None: the page is gone.
    indexes : list of int
        Of the entries that changed; where there is no page, all were empty.
    """

    sp: ShadowPage
    old: Table | None
    new: Table | None
    indexes: list[int]

    def words(self, empty: int) -> Iterator[tuple[int, int, int]]:
        """Yield index, old and new value of each entry that changed; without a page it was `empty`."""
        old, new = self.old, self.new
        for index in self.indexes:
            yield index, empty if old is None else old.item(index), empty if new is None else new.item(index)


@cache
def _nothing(empty: int) -> Table:
    """Return a table of such entries alone."""
    return np.full(FRAME_WORDS, empty, np.uint64)


def _differ(one: Table, other: Table) -> list[int]:
    found: list[int] = (one != other).nonzero()[0].tolist()
    return found


class Snapshot:
    """The shadow tables of one VM.

    Attributes
    ----------
    tables : dict of int to (ShadowPage, Table)
        By frame.
    """

    __slots__ = ("_since", "tables")

    def __init__(self) -> None:
        self.tables: dict[int, tuple[ShadowPage, Table]] = {}
        self._since = 0

    def look(self, kvm: Kvm) -> list[Changed]:
        """Return what changed since the last look, in the order of the VM's pages; then what is gone."""
        tables, pages, memory, since = self.tables, kvm.pages, kvm.memory, self._since
        empty, stamp = _nothing(kvm.fmt.nonpresent), memory.stamp
        changed: list[Changed] = []
        written = [frame for frame in pages if stamp[frame] >= since]  # a new page's is
        if written:
            memory.epoch += 1
            self._since = memory.epoch
        for frame in written:
            sp, new = pages[frame], memory.frames[frame]
            held, old = tables.get(frame, (sp, None))
            if held is not sp:  # freed and used again since
                changed.append(Changed(held, old, None, _differ(tables[frame][1], empty)))
                old = None
            indexes = _differ(empty if old is None else old, new)
            if indexes or old is None:
                kept = new.copy()
                changed.append(Changed(sp, old, kept, indexes))
                tables[frame] = sp, kept
        if len(tables) != len(pages):
            for frame in [frame for frame in tables if frame not in pages]:
                sp, gone = tables.pop(frame)
                changed.append(Changed(sp, gone, None, _differ(gone, empty)))
        return changed
