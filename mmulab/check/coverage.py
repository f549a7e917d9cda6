"""What a trial has met that none met before: kinds of events, with roles and levels, by kind of op.

Tracing lines is too slow for a search, and events say more: which page with which role was
made, found, synced or zapped, which right an spte got, why the processor left the guest.
A *feature* is an integer; a trial that has a new one is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import count, pairwise
from operator import itemgetter
from typing import Any

from mmulab import events as ev
from mmulab.scenario.runner import Result

_FIELDS: dict[Any, tuple[str, ...]] = {
    ev.kvm_mmu_get_page: ("role", "created", "unsync"),
    ev.kvm_mmu_sync_page: ("role",),
    ev.kvm_mmu_unsync_page: ("role",),
    ev.kvm_mmu_walker_error: ("pferr",),
    ev.kvm_mmu_pagetable_walk: ("pferr",),
    ev.fast_page_fault: ("error_code", "ret"),
    ev.kvm_page_fault: ("error_code",),
    ev.kvm_exit: ("reason", "error_code"),
    ev.kvm_nested_vmexit: ("reason",),
    ev.kvm_nested_vmexit_inject: ("reason",),
    ev.kvm_mmu_free_roots: ("roots_to_free",),
    ev.kvm_mmu_pte_write: ("bytes",),
    ev.kvm_mmio: ("type",),
    ev.kvm_mmu_spte_requested: ("level",),
}
_SHAPES: dict[type, Callable[[Any], Hashable]] = {
    ev.kvm_mmu_prepare_zap_page: lambda e: (e.role, e.unsync, bool(e.root_count)),
    ev.kvm_mmu_set_spte: lambda e: (e.level, e.r, e.x, e.u, e.spte & 2),
    ev.kvm_tdp_mmu_spte_changed: lambda e: (e.level, e.old_spte & 3, e.new_spte & 3),
    **{kind: itemgetter(*map(kind._fields.index, names)) for kind, names in _FIELDS.items()},
}
"""What of an event tells it from others of its type; of the rest the type alone counts."""
KNOWN_OPS = 1 << 16
"""Ops that are known at most, before all are forgotten."""


class _Numbers(dict[Hashable, int]):
    """Small numbers for shapes, given as they are met: hashes of strings and types differ from run to run."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._unused = numbers

    def __missing__(self, shape: Hashable) -> int:
        number = self[shape] = next(self._unused)
        return number


class _Kinds(dict[type, tuple[Callable[[Any], Hashable], _Numbers]]):
    """What gives an event of a type its shape, and the numbers of these shapes."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._unused = numbers

    def __missing__(self, kind: type) -> tuple[Callable[[Any], Hashable], _Numbers]:
        found = self[kind] = _SHAPES.get(kind, type), _Numbers(self._unused)
        return found


class Coverage:
    """All features met so far.

    Attributes
    ----------
    seen : set of int
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self._fresh: set[int] = set()
        unused = count(1)
        self._kinds = _Kinds(unused)
        self._numbers = _Numbers(unused)
        self._roles: dict[int, set[int]] = defaultdict(set)
        self._known: set[Hashable] = set()

    def begin(self) -> None:
        """Begin a trial."""
        self._fresh.clear()
        self._roles.clear()

    def note(self, result: Result) -> None:
        """Take note of an op's events."""
        kinds = self._kinds
        met: list[int] = []
        for event in result.events:
            kind = type(event)
            shape_of, numbers = kinds[kind]
            met.append(numbers[shape_of(event)])
            if type(event) is ev.kvm_mmu_get_page:
                self._note_role(event.gfn, event.role)
        outcome = result.outcome
        how = type(result.op), outcome.kind, outcome.error_code
        # Most ops go as another went.
        known = how, tuple(met)
        if known not in self._known:
            if len(self._known) >= KNOWN_OPS:
                self._known.clear()
            self._known.add(known)
            self._meet((*how, frozenset(met)))
            self._note_order(met)

    def end(self) -> int:
        """End a trial; return how many features it met first."""
        self.seen |= self._fresh
        return len(self._fresh)

    def _note_order(self, met: Sequence[int]) -> None:
        """Take note of what followed what, repetitions left out."""
        for before, number in pairwise((0, *met)):
            if number != before:
                self._add(before * 65537 + number)

    def _note_role(self, gfn: int, role: int) -> None:
        """Take note of the same table under two roles."""
        others = self._roles[gfn]
        if role not in others:
            for other in others:
                self._meet((min(other, role), max(other, role)))
            others.add(role)

    def _meet(self, shape: Hashable) -> None:
        self._add(self._numbers[shape])

    def _add(self, feature: int) -> None:
        if feature not in self.seen:
            self._fresh.add(feature)
