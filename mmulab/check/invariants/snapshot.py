"""All shadow tables as they were at the last look, and what has changed since.

A table is compared as one run of bytes, about a microsecond each. Those who copy or
record memory raise its epoch (:class:`~mmulab.memory.host.HostMemory`); where one of
them does so after each op, only the tables that the op wrote are compared.
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

    __slots__ = ("_since", "tables")

    def __init__(self) -> None:
        self.tables: dict[int, tuple[ShadowPage, bytes]] = {}
        self._since = 0

    def look(self, kvm: Kvm) -> list[Changed]:
        """Return what changed since the last look."""
        changed = []
        tables, memory, pages = self.tables, kvm.memory.bytes, kvm.pages
        stamp, since = kvm.memory.stamp, self._since
        self._since = kvm.memory.epoch
        for frame, sp in pages.items():
            held = tables.get(frame)
            if stamp[frame] < since and held is not None and held[0] is sp:
                continue
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
        if len(tables) != len(pages):
            for frame in [frame for frame in tables if frame not in pages]:
                sp, old = tables.pop(frame)
                changed.append(Changed(sp, old, None))
        return changed
