"""What a trial has met that none met before: kinds of events, with roles and levels, by kind of op.

Tracing lines is too slow for a search, and events say more: which page with which role was
made, found, synced or zapped, which right an spte got, why the processor left the guest.
A *feature* is an integer; a trial that has a new one is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from mmulab import events as ev
from mmulab.events import Event
from mmulab.scenario.runner import Result

Shape = tuple[Any, ...]
_SHAPES: dict[type, Callable[[Any], Shape]] = {
    ev.kvm_mmu_get_page: lambda e: (e.role, e.created, e.unsync),
    ev.kvm_mmu_sync_page: lambda e: (e.role,),
    ev.kvm_mmu_unsync_page: lambda e: (e.role,),
    ev.kvm_mmu_prepare_zap_page: lambda e: (e.role, e.unsync, bool(e.root_count)),
    ev.kvm_mmu_set_spte: lambda e: (e.level, e.r, e.x, e.u, e.spte & 2),
    ev.kvm_tdp_mmu_spte_changed: lambda e: (e.level, e.old_spte & 3, e.new_spte & 3),
    ev.kvm_mmu_walker_error: lambda e: (e.pferr,),
    ev.kvm_mmu_pagetable_walk: lambda e: (e.pferr,),
    ev.fast_page_fault: lambda e: (e.error_code, e.ret),
    ev.kvm_page_fault: lambda e: (e.error_code,),
    ev.kvm_exit: lambda e: (e.reason, e.error_code),
    ev.kvm_nested_vmexit: lambda e: (e.reason,),
    ev.kvm_nested_vmexit_inject: lambda e: (e.reason,),
    ev.kvm_mmu_free_roots: lambda e: (e.roots_to_free,),
    ev.kvm_mmu_pte_write: lambda e: (e.bytes,),
    ev.kvm_mmio: lambda e: (e.type,),
    ev.kvm_mmu_spte_requested: lambda e: (e.level,),
}
"""What of an event tells it from others of its type; of the rest the type alone counts."""


class Coverage:
    """All features met so far.

    Attributes
    ----------
    seen : set of int
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self._fresh: set[int] = set()
        self._numbers: dict[Shape, int] = {}
        self._roles: dict[int, set[int]] = defaultdict(set)

    def begin(self) -> None:
        """Begin a trial."""
        self._fresh.clear()
        self._roles.clear()

    def note(self, result: Result) -> None:
        """Take note of an op's events."""
        kind, met = type(result.op), set()
        seen, fresh, number_of = self.seen, self._fresh, self._number
        before = 0
        for event in result.events:
            number = number_of(event)
            met.add(number)
            if number != before:
                feature = before * 65537 + number
                if feature not in seen:
                    fresh.add(feature)
                before = number
        self._meet(self._intern((kind, result.outcome.kind, result.outcome.error_code, frozenset(met))))

    def end(self) -> int:
        """End a trial; return how many features it met first."""
        count = len(self._fresh)
        self.seen |= self._fresh
        return count

    def _number(self, event: Event) -> int:
        kind = type(event)
        shape_of = _SHAPES.get(kind)
        shape: Shape = (kind,) if shape_of is None else (kind, *shape_of(event))
        if kind is ev.kvm_mmu_get_page:
            others = self._roles[event.gfn]
            if event.role not in others:
                for other in others:  # the same table under two roles
                    self._meet(self._intern((min(other, event.role), max(other, event.role))))
                others.add(event.role)
        number = self._numbers.get(shape)
        return self._intern(shape) if number is None else number

    def _intern(self, shape: Shape) -> int:
        """Return a small number for a shape: hashes of strings and types differ from run to run."""
        number = self._numbers.get(shape)
        if number is None:
            number = self._numbers[shape] = len(self._numbers) + 1
        return number

    def _meet(self, feature: int) -> None:
        if feature not in self.seen:
            self._fresh.add(feature)
