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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.memory.host import FRAME_WORDS, HostMemory
from mmulab.x86.mode import PT_GLOBAL_MASK
from mmulab.x86.paging import Paging

NEVER = 1 << 62
"""Later than any op."""
ALL_PCIDS = -1
"""What INVVPID makes an address forgotten in."""
_LOW = 0xFFFFFFFF
_MARKS = 0x0000036000000360
"""A and D of an entry, and of EPT's; two entries of 32 bits have them in each half."""


Past = tuple[tuple[int, int], ...]
"""Values that a word had, each with the op that ended it."""


class _Held(NamedTuple):
    """A frame as it was, in three forms of the same memory."""

    array: npt.NDArray[np.uint64]
    words: memoryview
    bytes: memoryview


def _held(frame: npt.NDArray[np.uint64]) -> _Held:
    array = frame.copy()
    flat = array.data.cast("B")
    return _Held(array, flat.cast("Q"), flat)


def _ended(past: Past, old: int, new: int, now: int) -> Past:
    """Let what was there end when the guest writes; a half of the word that it left stays.

    Setting A or D is no write of the guest's, and KVM does not take it for one.
    """
    if new & ~_MARKS == old & ~_MARKS and new & old == old:
        return past
    ended = tuple((value, min(until, now)) for value, until in past)
    if (old ^ new) >> 32 and (old ^ new) & _LOW:
        return ended
    left = _LOW if not (old ^ new) & _LOW else _LOW << 32
    stays = ((value & left | new & ~left, NEVER) for value, until in past if until == NEVER)
    return (*ended, *(entry for entry in stays if entry[0] != new))


class SavedHistory(NamedTuple):
    """What a history knew: the past of each word."""

    past: dict[int, Past]


class TableHistory:
    """Each value that a word of the guest's memory has had.

    Parameters
    ----------
    memory : HostMemory
        Which frame was written is read from its epochs; others may raise them too.

    Attributes
    ----------
    version : int
        What :meth:`read` returns is the same as long as this is.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._first = memory.backing
        self._stamps = memory.written[self._first :]
        backing = memory.frames[self._first :]
        # Most frames hold one word all over, as their last one does; the others are copied.
        self._fill = int(backing[-1, -1])
        other = (backing != backing[-1, -1]).view(np.uint64).any(axis=1)
        self._held = {self._first + at: _held(backing[at]) for at in np.flatnonzero(other).tolist()}
        self._background = memoryview(self._fill.to_bytes(8, "little") * 2)
        self._past: dict[int, Past] = {}
        self._changed: dict[int, int] = {}
        self.version = 0
        memory.epoch += 1
        self._since = memory.epoch

    def note(self, now: int, *, behind: bool = False) -> None:
        """Take note of what op `now` changed.

        `behind`: the VMM stored, of which KVM learns nothing (``mmu_notifier`` tells of
        mappings, not of stores). What was there may be used until the guest writes the word.
        """
        for frame in self._written():
            new, old = self._memory.frames[frame], self._of(frame)
            changed = (new != old.array).nonzero()[0].tolist()
            if not changed:
                continue
            self.version += 1
            self._changed[frame] = self.version
            for index in changed:
                hpa = frame << 12 | index << 3
                word, past = old.words[index], self._past.get(hpa, ())
                if past and not behind:
                    past = _ended(past, word, new.item(index), now)
                self._past[hpa] = (*past, (word, NEVER if behind else now))
            old.array[:] = new

    def add(self, hpa: int, size: int, value: int, now: int) -> None:
        """Note a value that `size` aligned bytes had within op `now`, which ended it too."""
        at, shift = hpa & ~7, 8 * (hpa & 7)
        word = self.read(at, 8) & ~((1 << 8 * size) - 1 << shift) | value << shift
        self._past[at] = (*self._past.get(at, ()), (word, now))

    def read(self, hpa: int, size: int) -> int:
        """Read `size` bytes of one frame as they were at the last :meth:`note`."""
        held = self._held.get(hpa >> 12)
        if held is None:
            return int.from_bytes(self._background[hpa & 7 : (hpa & 7) + size], "little")
        if size == 8 and not hpa & 7:
            return held.words[(hpa & 0xFFF) >> 3]
        return int.from_bytes(held.bytes[hpa & 0xFFF : (hpa & 0xFFF) + size], "little")

    def past(self, hpa: int, size: int) -> Past:
        """Return the values that `size` aligned bytes had before, each with the op that ended it."""
        past = self._past.get(hpa & ~7, ())
        if not past or size == 8:
            return past
        shift, mask = 8 * (hpa & 7), (1 << 8 * size) - 1
        return tuple((value >> shift & mask, until) for value, until in past)

    def save(self) -> SavedHistory:
        """Return what :meth:`restore` takes."""
        return SavedHistory(dict(self._past))

    def restore(self, saved: SavedHistory) -> None:
        """Go back, after memory was put back and each frame that changed was stamped."""
        self._past = dict(saved.past)
        self.version += 1
        for frame in self._written():
            self._of(frame).array[:] = self._memory.frames[frame]
            self._changed[frame] = self.version

    def changed(self, frame: int) -> int:
        """Return the version in which a frame changed last; 0: it never did."""
        return self._changed.get(frame, 0)

    def _of(self, frame: int) -> _Held:
        """Return the copy of a frame."""
        held = self._held.get(frame)
        if held is None:
            held = self._held[frame] = _held(np.full(FRAME_WORDS, self._fill, np.uint64))
        return held

    def _written(self) -> list[int]:
        """Return the frames of the backing that were written since the last time."""
        stamps = self._stamps
        if stamps.item(stamps.argmax()) < self._since:
            return []
        self._memory.epoch += 1
        written, self._since = stamps >= self._since, self._memory.epoch
        return [self._first + at for at in written.nonzero()[0].tolist()]


class Forgotten:
    """When a processor last had to forget what.

    A *space* is what tags translations besides the PCID: L1's own ASID or VPID, or that
    of a guest of it. *Tables* are L1's nested ones, by what INVEPT or TLB_CONTROL names.
    """

    def __init__(self) -> None:
        self._spaces: dict[Hashable, int] = {}
        self._contexts: dict[Hashable, int] = {}
        self._uppers: dict[Hashable, int] = {}
        self._pages: dict[tuple[Hashable, int, int, bool], int] = {}
        self._tables: dict[Hashable, int] = {}
        self._all_tables = 0
        self._used: dict[Hashable, Paging | None] = {}
        self._forms: dict[Hashable, list[tuple[int, tuple[Paging, ...]]]] = defaultdict(list)

    def copy(self) -> Forgotten:
        """Return the same, to be told more of on its own."""
        other = Forgotten()
        other._spaces, other._contexts = dict(self._spaces), dict(self._contexts)
        other._uppers, other._pages = dict(self._uppers), dict(self._pages)
        other._tables, other._all_tables = dict(self._tables), self._all_tables
        other._used = dict(self._used)
        for space, forms in self._forms.items():
            other._forms[space] = list(forms)
        return other

    def use(self, space: Hashable, pcid: int, now: int) -> None:
        """Note what tags translations from op `now` on; of a tag that is new nothing is known before."""
        for tag, told in ((space, self._spaces), ((space, pcid), self._contexts)):
            if tag not in self._used:
                self._used[tag] = None
                told[tag] = now

    def use_tables(self, tables: Hashable, paging: Paging, now: int) -> None:
        """Note the nested tables in use, and if L1 gave them another form since it used them last.

        Parameters
        ----------
        tables : Hashable
            Their tag.
        paging : Paging
        now : int
            Number of the op.
        """
        if tables not in self._used:
            self._tables[tables] = now
        last = self._used.get(tables)
        if last is not None and last != paging:
            self._forms[tables].append((now, (last,)))
        self._used[tables] = paging

    def space(self, space: Hashable, now: int, *, keep_global: bool = False) -> None:
        """Forget all of a space, in each PCID."""
        (self._contexts if keep_global else self._spaces)[space] = now

    def pcid(self, space: Hashable, pcid: int, now: int) -> None:
        """Forget one PCID of a space but for global translations (a write to CR3)."""
        self._contexts[space, pcid] = now

    def page(self, space: Hashable, pcid: int, gva: int, now: int, *, keep_global: bool = False) -> None:
        """Forget an address, and but for INVPCID all upper-level entries of the PCID (INVLPG)."""
        self._pages[space, pcid, gva & ~0xFFF, keep_global] = now
        if not keep_global:
            self._uppers[space, pcid] = now

    def tables(self, tables: Hashable, now: int) -> None:
        """Forget nested tables by their tag, or those of an ASID; None: all."""
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
        return self._forms_since(space, paging, self._spaces.get(space, 0))

    def tables_forms(self, tables: Hashable, paging: Paging) -> list[Paging]:
        """Return the forms in which an entry of nested tables may have been read that is used now."""
        return self._forms_since(tables, (paging,), self.tables_since(tables))

    def _forms_since(self, tag: Hashable, paging: tuple[Paging, ...], since: int) -> list[Paging]:
        found = list(paging)
        if tag not in self._forms:
            return found
        for until, forms in self._forms[tag]:
            if until > since:
                found += [
                    replace(now, rsvd=old.rsvd, page_size_mask=old.page_size_mask, pse36_mask=old.pse36_mask)
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
        for (its_space, its_pcid, address, keep_global), now in self._pages.items():
            same = its_space == space and (address ^ gva) >> shift == 0
            if same and (not keep_global if is_global else its_pcid in (pcid, ALL_PCIDS)):
                since = max(since, now)
        return since

    def tables_since(self, tables: Hashable) -> int:
        """Return the last op that made it forget nested tables."""
        of_asid = self._tables.get(tables[0], 0) if isinstance(tables, tuple) else 0
        return max(self._all_tables, self._tables.get(tables, 0), of_asid)

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
