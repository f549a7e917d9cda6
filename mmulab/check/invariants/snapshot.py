"""All shadow tables as they were at the last look, and what has changed since.

A table is compared as one run of bytes, so that a look at some tens of pages costs
some tens of microseconds; the memory's own epochs are not used, which are raised by
those who copy or record it.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        nothing = empty.to_bytes(8, "little") * FRAME_WORDS
        old = np.frombuffer(self.old or nothing, np.uint64)
        new = np.frombuffer(self.new or nothing, np.uint64)
        for index in (old != new).nonzero()[0].tolist():
            yield index, int(old[index]), int(new[index])


class Snapshot:
    """The shadow tables of one VM.

    Attributes
    ----------
    tables : dict of int to (ShadowPage, bytes)
        By frame.
    """

    __slots__ = ("tables",)

    def __init__(self) -> None:
        self.tables: dict[int, tuple[ShadowPage, bytes]] = {}

    def look(self, kvm: Kvm) -> list[Changed]:
        """Return what changed since the last look."""
        changed = []
        tables, memory, pages = self.tables, kvm.memory.bytes, kvm.pages
        for frame, sp in pages.items():
            new = bytes(memory[frame << 12 : frame + 1 << 12])
            held = tables.get(frame)
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
        if len(tables) != len(pages):
            for frame in [frame for frame in tables if frame not in pages]:
                sp, old = tables.pop(frame)
                changed.append(Changed(sp, old, None))
        return changed
