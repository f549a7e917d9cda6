"""All shadow tables as they were at the last look, and what has changed since.

A table is compared as one run of bytes, about a microsecond each, if it was written since
the last look: who looks raises memory's epoch (:class:`~mmulab.memory.host.HostMemory`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm
from mmulab.memory.host import FRAME_WORDS


class Changed(NamedTuple):
    """A table that changed.

    Attributes
    ----------
    sp : ShadowPage
    old : bytes or None
        The table at the last look; None: the page is new.
    new : bytes or None
        None: the page is gone.
    """

    sp: ShadowPage
    old: bytes | None
    new: bytes | None

    def words(self, empty: int) -> Iterator[tuple[int, int, int]]:
        """Yield index, old and new value of each entry that changed; without a page all were `empty`."""
        old = self.old or _nothing(empty)
        new = self.new or _nothing(empty)
        changed = (np.frombuffer(old, np.uint64) != np.frombuffer(new, np.uint64)).nonzero()[0].tolist()
        old_words, new_words = memoryview(old).cast("Q"), memoryview(new).cast("Q")
        for index in changed:
            yield index, old_words[index], new_words[index]


@cache
def _nothing(empty: int) -> bytes:
    """Return a table of such entries alone."""
    return empty.to_bytes(8, "little") * FRAME_WORDS


class Snapshot:
    """The shadow tables of one VM.

    Attributes
    ----------
    tables : dict of int to (ShadowPage, bytes)
        By frame.
    """

    __slots__ = ("_since", "tables")

    def __init__(self) -> None:
        self.tables: dict[int, tuple[ShadowPage, bytes]] = {}
        self._since = 0

    def look(self, kvm: Kvm) -> list[Changed]:
        """Return what changed since the last look."""
        changed: list[Changed] = []
        written = False
        tables, memory, pages = self.tables, kvm.memory.bytes, kvm.pages
        stamp, since = kvm.memory.stamp, self._since
        for frame, sp in pages.items():
            held = tables.get(frame)
            if stamp[frame] < since and held is not None and held[0] is sp:
                continue
            written = True
            new = memory[frame << 12 : frame + 1 << 12].tobytes()
            if held is not None:
                if held[0] is sp:
                    if held[1] == new:
                        continue
                    changed.append(Changed(sp, held[1], new))
                else:  # freed and used again since
                    changed += [Changed(held[0], held[1], None), Changed(sp, None, new)]
            else:
                changed.append(Changed(sp, None, new))
            tables[frame] = sp, new
        if written:
            kvm.memory.epoch += 1
            self._since = kvm.memory.epoch
        if len(tables) != len(pages):
            for frame in [frame for frame in tables if frame not in pages]:
                sp, old = tables.pop(frame)
                changed.append(Changed(sp, old, None))
        return changed
