"""Every walk that the architecture allows, with entries that the processor may remember.

At each level a walk may use what memory holds or a value that the entry has had since
the processor last had to forget it (:mod:`mmulab.check.remembered`), in any combination.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from mmulab.check.remembered import Forgotten, TableHistory, is_global, is_leaf, may_be_remembered
from mmulab.x86.paging import Paging
from mmulab.x86.regs import X86_CR4_PGE
from mmulab.x86.walk import Load, Walk, walk

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


class Nested(NamedTuple):
    """L1's nested tables: form, root, tag, the kind of access that reads L2's tables, and of the last one."""

    paging: Paging
    root: int
    tag: Hashable
    table_kind: int
    final_kind: Callable[[int], int]


class FoundWalk(NamedTuple):
    """A walk that is allowed; as :class:`mmulab.lab.cases.judge.TwoWalks`."""

    outer: Walk
    inner: tuple[Walk, ...]
    gpa: int | None
    ept: bool


@dataclass(frozen=True)
class World:
    """How a guest's addresses are translated: its registers, and where its memory lies.

    Attributes
    ----------
    paging : tuple of Paging
        By each walker that may walk: the processor, and a hypervisor that emulates it.
    cr3, pcid : int
    control : tuple of three int
        CR0, CR4 and EFER as far as a change makes the processor forget everything.
    space : Hashable
        See :class:`~mmulab.check.remembered.Forgotten`.
    hpa_of : callable
        Host-physical address of a guest-physical one; None: no memory.
    pdptes : tuple of int or None
        PDPTE registers.
    nested : Nested or None
    pkru : int
    nested_guest : bool
        L2 runs.
    """

    paging: tuple[Paging, ...]
    cr3: int
    pcid: int
    control: tuple[int, int, int]
    space: Hashable
    hpa_of: Callable[[int], int | None]
    pdptes: tuple[int, ...] | None = None
    nested: Nested | None = None
    pkru: int = 0
    nested_guest: bool = False


def allowed_walks(
    world: World, history: TableHistory, forgotten: Forgotten, gva: int, pfec: int, *, not_smap: bool = False
) -> Iterator[FoundWalk]:
    """Yield each walk of `gva` that is allowed, what memory holds now first; A and D are not set."""
    for paging in forgotten.forms(world.space, world.paging):
        found = every(partial(_walk, world, history, forgotten, paging, gva, pfec, not_smap))
        yield from islice(found, MAX_WALKS)


def _walk(
    world: World,
    history: TableHistory,
    forgotten: Forgotten,
    paging: Paging,
    gva: int,
    pfec: int,
    not_smap: bool,
    choices: Choices,
) -> FoundWalk:
    inner: list[Walk] = []
    nested, width = world.nested, paging.mode.entry_bytes

    def load_nested(gpa: int, level: int) -> int | None:
        assert nested is not None
        form, hpa = nested.paging, world.hpa_of(gpa)
        if hpa is None:
            return None
        size, since = form.mode.entry_bytes, forgotten.tables_since(nested.tag)
        past = [
            value
            for value, until in history.past(hpa, size)
            if until > since and may_be_remembered(form, value, level)
        ]
        return choices.pick(_distinct([history.read(hpa, size), *past]))

    def through(ngpa: int, kind: int) -> int | None:
        if nested is None:
            return ngpa
        found = walk(nested.paging, nested.root, ngpa, kind, load_nested)
        inner.append(found)
        return None if found.error is not None else found.pa

    def load(address: int, level: int) -> int | None:
        gpa = through(address, 0 if nested is None else nested.table_kind)
        hpa = None if gpa is None else world.hpa_of(gpa)
        if hpa is None:
            return None
        past = [
            value
            for value, until in history.past(hpa, width)
            if may_be_remembered(paging, value, level)
            and until > _since(world, forgotten, paging, gva, value, level)
        ]
        return choices.pick(_distinct([history.read(hpa, width), *past]))

    reader: Load = load
    outer = walk(
        paging, world.cr3, gva, pfec, reader, pdptes=world.pdptes, not_smap=not_smap, pkru=world.pkru
    )
    gpa = None
    if outer.error is None:
        gpa = through(outer.pa, 0 if nested is None else nested.final_kind(pfec))
    return FoundWalk(outer, tuple(inner), gpa, nested is not None and nested.paging.ept)


def _since(world: World, forgotten: Forgotten, paging: Paging, gva: int, entry: int, level: int) -> int:
    """Return the last op that made the processor forget what `entry` says of `gva`."""
    if not is_leaf(paging, entry, level):
        return forgotten.upper_since(world.space, world.pcid)
    shift = paging.mode.level_shift(level)
    kept = bool(world.control[1] & X86_CR4_PGE) and is_global(paging, entry, level)
    return forgotten.leaf_since(world.space, world.pcid, gva, shift, is_global=kept)


def _distinct(values: list[int]) -> list[int]:
    return list(dict.fromkeys(values))
