"""What a processor may still remember of a guest's tables, and what made it forget.

A processor may use an entry that memory no longer holds until the guest obliges it
to forget: SDM 3, 4.10; APM 2, 5.5 and 15.16. Nothing here knows a shadow page. Times
are numbers of ops; a value that went in op 5 outlives what the guest flushed in op 5
and before only if it was there later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from mmulab.memory.host import HostMemory
from mmulab.x86.mode import PT_GLOBAL_MASK
from mmulab.x86.paging import Paging

NEVER = 1 << 62
"""Later than any op."""


class TableHistory:
    """Each value that a word of the guest's memory has had.

    Parameters
    ----------
    memory : HostMemory
        Which word was written is read from its epochs, so nobody else may raise them.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._first = memory.backing
        self._held = memory.frames[self._first :].copy()
        self._bytes = self._held.data.cast("B")
        self._past: dict[int, list[tuple[int, int]]] = defaultdict(list)
        memory.epoch += 1

    def note(self, now: int, *, behind: bool = False) -> None:
        """Take note of what op `now` changed.

        `behind`: the VMM stored, of which KVM learns nothing (``mmu_notifier`` tells of
        mappings, not of stores). What was there may be used until the guest writes the word.
        """
        memory, first = self._memory, self._first
        for at in np.flatnonzero(memory.written[first:] == memory.epoch).tolist():
            new, old = memory.frames[first + at], self._held[at]
            for index in np.flatnonzero(new != old).tolist():
                hpa = (first + at) << 12 | index << 3
                past = self._past[hpa]
                if not behind:
                    past[:] = [(value, min(until, now)) for value, until in past]
                past.append((int(old[index]), NEVER if behind else now))
            old[:] = new
        memory.epoch += 1

    def read(self, hpa: int, size: int) -> int:
        """Read `size` bytes as they were at the last :meth:`note`."""
        at = hpa - (self._first << 12)
        return int.from_bytes(self._bytes[at : at + size], "little")

    def past(self, hpa: int, size: int) -> list[tuple[int, int]]:
        """Return the values that `size` aligned bytes had before, each with the op that ended it."""
        shift, mask = 8 * (hpa & 7), (1 << 8 * size) - 1
        return [(value >> shift & mask, until) for value, until in self._past.get(hpa & ~7, ())]


class Forgotten:
    """When a processor last had to forget what.

    A *space* is what tags translations besides the PCID: L1's own ASID or VPID, or that
    of a guest of it. *Tables* are L1's nested ones, by what INVEPT or TLB_CONTROL names.
    """

    def __init__(self) -> None:
        self._spaces: dict[Hashable, int] = {}
        self._contexts: dict[Hashable, int] = {}
        self._uppers: dict[Hashable, int] = {}
        self._pages: list[tuple[int, Hashable, int, int, bool]] = []
        self._tables: dict[Hashable, int] = {}
        self._all_tables = 0
        self._forms: dict[Hashable, list[tuple[int, tuple[Paging, ...]]]] = defaultdict(list)

    def space(self, space: Hashable, now: int, *, keep_global: bool = False) -> None:
        """Forget all of a space, in each PCID."""
        (self._contexts if keep_global else self._spaces)[space] = now

    def pcid(self, space: Hashable, pcid: int, now: int) -> None:
        """Forget one PCID of a space but for global translations (a write to CR3)."""
        self._contexts[space, pcid] = now

    def page(
        self, space: Hashable, pcid: int, gva: int, now: int, *, keep_global: bool = False
    ) -> None:
        """Forget an address, and but for INVPCID all upper-level entries of the PCID (INVLPG)."""
        self._pages.append((now, space, pcid, gva, keep_global))
        if not keep_global:
            self._uppers[space, pcid] = now

    def tables(self, tables: Hashable, now: int) -> None:
        """Forget nested tables; None: all."""
        if tables is None:
            self._all_tables = now
        else:
            self._tables[tables] = now

    def form(self, space: Hashable, paging: tuple[Paging, ...], now: int) -> None:
        """Note that paging took another form, of which no processor must take notice at once: PSE, NX.

        What was cached before keeps its page size, and no reserved bit is looked for again.
        """
        self._forms[space].append((now, paging))

    def forms(self, space: Hashable, paging: tuple[Paging, ...]) -> list[Paging]:
        """Return the forms in which an entry may have been read that is used now: rights are today's."""
        since = self._spaces.get(space, 0)
        found = list(paging)
        for until, forms in self._forms.get(space, ()):
            if until > since:
                found += [
                    replace(
                        now, rsvd=old.rsvd, page_size_mask=old.page_size_mask, pse36_mask=old.pse36_mask
                    )
                    for old, now in zip(forms, paging, strict=False)
                    if old.mode is now.mode
                ]
        return list(dict.fromkeys(found))

    def upper_since(self, space: Hashable, pcid: int) -> int:
        """Return the last op that made it forget the upper-level entries of a PCID."""
        context = (space, pcid)
        return max(self._flushed(space, pcid), self._uppers.get(context, 0))

    def leaf_since(self, space: Hashable, pcid: int, gva: int, shift: int, *, is_global: bool) -> int:
        """Return the last op that made it forget a leaf of `1 << shift` bytes."""
        since = self._spaces.get(space, 0) if is_global else self._flushed(space, pcid)
        for now, its_space, its_pcid, address, keep_global in self._pages:
            same = its_space == space and (address ^ gva) >> shift == 0
            if same and (not keep_global if is_global else its_pcid == pcid):
                since = max(since, now)
        return since

    def tables_since(self, tables: Hashable) -> int:
        """Return the last op that made it forget nested tables."""
        return max(self._all_tables, self._tables.get(tables, 0))

    def _flushed(self, space: Hashable, pcid: int) -> int:
        return max(
            self._spaces.get(space, 0), self._contexts.get(space, 0), self._contexts.get((space, pcid), 0)
        )


def is_leaf(paging: Paging, entry: int, level: int) -> bool:
    """Whether an entry of a level maps a page."""
    return level == 1 or bool(entry & paging.page_size_mask[level])


def is_global(paging: Paging, entry: int, level: int) -> bool:
    """Whether an entry is a global leaf, where CR4.PGE is set."""
    return not paging.ept and is_leaf(paging, entry, level) and bool(entry & PT_GLOBAL_MASK)


def may_be_remembered(paging: Paging, entry: int, level: int) -> bool:
    """Whether a processor keeps an entry: present, nothing reserved set, accessed (SDM 3, 4.10.2.3)."""
    if not entry & paging.present_mask:
        return False
    if paging.mode.has_pdptes and level == paging.mode.root_level:
        return not entry & paging.pdpte_rsvd
    if entry & paging.rsvd[entry >> 7 & 1][level] or paging.bad_mt_xwr >> (entry & 63) & 1:
        return False
    return entry & paging.accessed_mask == paging.accessed_mask
