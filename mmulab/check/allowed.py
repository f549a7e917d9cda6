"""Every walk that the architecture allows, with entries that the processor may remember.

At each level a walk may use what memory holds or a value that the entry has had since
the processor last had to forget it (:mod:`mmulab.check.remembered`), in any combination.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from mmulab.check.access import Access, TwoWalks
from mmulab.check.remembered import Forgotten, TableHistory, is_global, is_leaf, may_be_remembered
from mmulab.check.world import World, world_of
from mmulab.machine.machine import Machine
from mmulab.trace.judge import access_kind
from mmulab.x86.paging import Paging
from mmulab.x86.regs import X86_CR4_PGE
from mmulab.x86.walk import Walk, walk

MAX_WALKS = 1 << 14
"""More combinations of one access are not looked at; what KVM does is among the first of them or nowhere."""

T = TypeVar("T")


class Choices:
    """The choices of one walk: those of a script, then the first one each."""

    def __init__(self, script: Sequence[int]) -> None:
        self._script = script
        self.taken: list[tuple[int, int]] = []

    def pick(self, options: Sequence[int]) -> int:
        """Return one of `options`."""
        at = len(self.taken)
        choice = self._script[at] if at < len(self._script) else 0
        self.taken.append((choice, len(options)))
        return options[choice]


def every(run: Callable[[Choices], T]) -> Iterator[T]:
    """Yield what `run` returns for each way to choose, what memory holds now first."""
    script: list[int] | None = []
    while script is not None:
        choices = Choices(script)
        yield run(choices)
        taken = choices.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        script = [choice for choice, _ in taken] if taken else None
        if script is not None:
            script[-1] += 1


Reading = tuple[int, int, int, int, int]
"""An entry that a walk read: its guest-physical address (L1's, if there are two), its
host-physical one, size, value, and its accessed bit, below its dirty one; 0: such entries have none.

A search makes several for each op; a record with names would cost as much as the rest of a load.
"""


def walk_memory(
    world: World,
    read: Callable[[int, int], int],
    gva: int,
    pfec: int = 0,
    *,
    not_smap: bool = False,
    readings: list[Reading] | None = None,
) -> TwoWalks:
    """Walk by what memory holds; A and D are not set.

    Parameters
    ----------
    world : World
    read : callable
        Reads memory: host-physical address, number of bytes.
    gva, pfec, not_smap
        As for :func:`mmulab.x86.walk.walk`.
    readings : list of Reading, optional
        Gets the entries, in order.
    """
    own = world.paging[0]
    if world.nested is None:
        return _walk_plain(world, own, read, gva, pfec, not_smap, readings)
    nested = own if world.nested is None else world.nested.paging
    by = _Readers(_reader(own, read, readings), _reader(nested, read, readings))
    return _walk(world, own, by, gva, pfec, not_smap)


def _walk_plain(
    world: World,
    paging: Paging,
    read: Callable[[int, int], int],
    gva: int,
    pfec: int,
    not_smap: bool,
    readings: list[Reading] | None,
) -> TwoWalks:
    """Walk by what memory holds where there are no nested tables, as a search does for each access."""
    size, accessed, hpa_of, hole = paging.mode.entry_bytes, paging.accessed_mask, world.hpa_of, False

    def load(gpa: int, level: int) -> int | None:
        nonlocal hole
        hpa = hpa_of(gpa)
        if hpa is None:
            hole = True
            return None
        value = read(hpa, size)
        if readings is not None:
            readings.append((gpa, hpa, size, value, accessed))
        return value

    outer = walk(paging, world.cr3, gva, pfec, load, pdptes=world.pdptes, not_smap=not_smap, pkru=world.pkru)
    return TwoWalks(outer, (), None if outer.error is not None else outer.pa, False, hole)


def _reader(
    paging: Paging, read: Callable[[int, int], int], readings: list[Reading] | None
) -> Callable[[int, int, int], int]:
    size, accessed = paging.mode.entry_bytes, paging.accessed_mask
    if readings is None:
        return lambda gpa, hpa, level: read(hpa, size)
    keep = readings.append

    def kept(gpa: int, hpa: int, level: int) -> int:
        value = read(hpa, size)
        keep((gpa, hpa, size, value, accessed))
        return value

    return kept


def two_walks(machine: Machine, gva: int, pfec: int = 0, *, vcpu: int = 0) -> TwoWalks:
    """Walk the running guest's tables as they are now, without setting A or D."""
    return walk_memory(world_of(machine, vcpu), machine.memory.read, gva, pfec)


def walks_of(machine: Machine, access: Access) -> TwoWalks:
    """Walk for an access that is about to happen."""
    return two_walks(machine, access.gva, access_kind(access), vcpu=access.vcpu)


def allowed_walks(
    world: World, history: TableHistory, forgotten: Forgotten, gva: int, pfec: int, *, not_smap: bool = False
) -> Iterator[TwoWalks]:
    """Yield each walk of `gva` that is allowed, what memory holds now first; A and D are not set."""

    def run(world: World, paging: Paging, choices: Choices) -> TwoWalks:
        readers = _remembering(world, history, forgotten, paging, gva, choices)
        return _walk(world, paging, readers, gva, pfec, not_smap)

    for form in _nested_forms(world, forgotten):
        for paging in forgotten.forms(world.space, world.paging):
            yield from islice(every(partial(run, form, paging)), MAX_WALKS)


def _nested_forms(world: World, forgotten: Forgotten) -> Iterator[World]:
    """Yield the world with each form that its nested tables may have been read in."""
    nested = world.nested
    if nested is None:
        yield world
        return
    for paging in forgotten.tables_forms(nested.tag, nested.paging):
        yield world if paging is nested.paging else replace(world, nested=nested._replace(paging=paging))


class _Readers(NamedTuple):
    """Read an entry (guest-physical, host-physical address, level) of the guest's tables; of nested ones."""

    own: Callable[[int, int, int], int]
    nested: Callable[[int, int, int], int]


def _remembering(
    world: World, history: TableHistory, forgotten: Forgotten, paging: Paging, gva: int, choices: Choices
) -> _Readers:
    """Read what memory holds, or what may be remembered, as chosen."""
    nested, width = world.nested, paging.mode.entry_bytes

    def read_nested(gpa: int, hpa: int, level: int) -> int:
        assert nested is not None
        form, size = nested.paging, nested.paging.mode.entry_bytes
        since = forgotten.tables_since(nested.tag)
        past = [
            value
            for value, until in history.past(hpa, size)
            if until > since and may_be_remembered(form, value, level)
        ]
        return choices.pick(_distinct([history.read(hpa, size), *past]))

    def read(gpa: int, hpa: int, level: int) -> int:
        past = [
            value
            for value, until in history.past(hpa, width)
            if may_be_remembered(paging, value, level)
            and until > _since(world, forgotten, paging, gva, value, level)
        ]
        return choices.pick(_distinct([history.read(hpa, width), *past]))

    return _Readers(read, read_nested)


def _walk(world: World, paging: Paging, by: _Readers, gva: int, pfec: int, not_smap: bool) -> TwoWalks:
    inner: list[Walk] = []
    hole = False
    nested, hpa_of = world.nested, world.hpa_of

    def load_nested(gpa: int, level: int) -> int | None:
        nonlocal hole
        hpa = hpa_of(gpa)
        hole |= hpa is None
        return None if hpa is None else by.nested(gpa, hpa, level)

    def through(ngpa: int, kind: int) -> int | None:
        if nested is None:
            return ngpa
        found = walk(nested.paging, nested.root, ngpa, kind, load_nested)
        inner.append(found)
        return None if found.error is not None else found.pa

    def load(address: int, level: int) -> int | None:
        nonlocal hole
        gpa = address if nested is None else through(address, nested.table_kind)
        if gpa is None:
            return None
        hpa = hpa_of(gpa)
        hole |= hpa is None
        return None if hpa is None else by.own(gpa, hpa, level)

    outer = walk(paging, world.cr3, gva, pfec, load, pdptes=world.pdptes, not_smap=not_smap, pkru=world.pkru)
    gpa = None
    if outer.error is None:
        gpa = outer.pa if nested is None else through(outer.pa, nested.final_kind(pfec))
    return TwoWalks(outer, tuple(inner), gpa, nested is not None and nested.paging.ept, hole)


def _since(world: World, forgotten: Forgotten, paging: Paging, gva: int, entry: int, level: int) -> int:
    """Return the last op that made the processor forget what `entry` says of `gva`."""
    if not is_leaf(paging, entry, level):
        return forgotten.upper_since(world.space, world.pcid)
    shift = paging.mode.level_shift(level)
    kept = bool(world.control[1] & X86_CR4_PGE) and is_global(paging, entry, level)
    return forgotten.leaf_since(world.space, world.pcid, gva, shift, is_global=kept)


def _distinct(values: list[int]) -> list[int]:
    return list(dict.fromkeys(values))
