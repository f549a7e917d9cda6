"""Ops that do nothing, of which it is known beforehand where they do nothing again.

A search tries most ops in many states that differ in little but the shadow tables. Two kinds
that left everything as it was are not executed again where all that they depend on is as it was:

* the guest's own: nobody but the processor and the guest's tables had a say. It left the guest,
  if at all, at the end of the op, or for faults that are the guest's own. Such an op depends on
  the registers, on guest memory, and on those words of the shadow tables that the processor read;
* a VMM's ioctl that was refused or had nothing to do; it depends on the memslots.

Neither looks at what keeps account of the shadow tables: their pages, the reverse maps, lists.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from mmulab import events as ev
from mmulab.check.savepoint import MMU, VM, Savepoint
from mmulab.check.state_key import StateKey, digest_of, plain
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import HOST_OPS, Result

Words = tuple[tuple[int, int], ...]
"""Words of memory by their number, and what they held."""
_IOCTLS = (ops.SetMemslot, ops.DeleteMemslot, ops.GetDirtyLog)
_EXITS = frozenset(("db", "ioio", "pf"))
"""At the end of an op: the step is over, or the handler has told the VMM; and what a fault leads to."""
_OF_A_FAULT = ev.kvm_page_fault, ev.kvm_mmu_pagetable_walk, ev.kvm_mmu_walker_error
"""Each once, where the guest's tables do not allow an access."""
_GUESTS_OWN = frozenset((*_OF_A_FAULT, ev.kvm_exit, ev.kvm_mmu_paging_element, ev.kvm_inj_exception))
_ACCOUNTS = ("n_used_mmu_pages", "indirect_shadow_pages", "page_hash")
_VM_REST = [at for at, name in enumerate(VM.names) if name not in _ACCOUNTS]
_ROOTS = [MMU.names.index(name) for name in ("root_hpa", "prev_roots", "pae_root", "pml4_root", "pml5_root")]
FEW = 8
"""Ways in which an op may do nothing, with one and the same around the tables."""
MOST = 1 << 16
"""How many of all ops are kept."""


class _Walks(dict[tuple[object, ...], Any]):
    """The processor's known walks, which tells those that were used since it was asked last."""

    def __init__(self) -> None:
        super().__init__()
        self.used: dict[tuple[object, ...], Any] = {}

    def get(self, key: tuple[object, ...], default: Any = None) -> Any:
        found = super().get(key, default)
        if found is not None:
            self.used[key] = found
        return found

    def __setitem__(self, key: tuple[object, ...], known: Any) -> None:
        super().__setitem__(key, known)
        self.used[key] = known


class Quiet:
    """Which ops of a machine are known to do nothing.

    Parameters
    ----------
    machine : Machine
        Its processor tells from now on which words it reads.
    keys : StateKey
    """

    def __init__(self, machine: Machine, keys: StateKey) -> None:
        self._walks = _Walks()
        machine.processor = replace(machine.processor, known=self._walks)
        self._words = machine.memory.words
        self._keys = keys
        self._known: defaultdict[tuple[int, bytes], list[Words]] = defaultdict(list)

    def around(self, state: Savepoint, remembered: Hashable) -> bytes:
        """Return a name of a state without its shadow tables, and of what is remembered beside it."""
        vm = state.vm.values
        return digest_of(
            (
                plain([vm[at] for at in _VM_REST]),
                self._keys.beside_tables(state),
                [[plain([piece.values[at] for at in _ROOTS]) for piece in v.contexts] for v in state.vcpus],
                remembered,
            )
        )

    def known(self, choice: int, around: bytes) -> bool:
        """Whether an op is known to do nothing in the state that the machine is in."""
        return any(self._holds(read) for read in self._known.get((choice, around), ()))

    def begin(self) -> None:
        """Begin with an op."""
        self._walks.used.clear()

    def learn(self, choice: int, around: bytes, results: Sequence[Result]) -> None:
        """Take note of an op that left everything as it was, if it is known what it depends on."""
        if not all(map(_is_plain, results)):
            return
        read: set[tuple[int, int]] = set()
        for ways in self._walks.used.values():
            way = next((way for way in ways if self._holds(way.words)), None)
            if way is None:
                return  # a walk that no longer was what it had been, and whose words nobody kept
            read.update(way.words)
        if len(self._known) >= MOST:
            self._known.clear()
        known = self._known[choice, around]
        if len(known) < FEW:
            known.append(tuple(read))

    def _holds(self, read: Words) -> bool:
        return all(self._words[at] == value for at, value in read)


def _is_plain(result: Result) -> bool:
    if isinstance(result.op, _IOCTLS):
        return not result.events
    return not isinstance(result.op, HOST_OPS) and _is_guests_own(result.events)


def _is_guests_own(events: Sequence[ev.Event]) -> bool:
    """Whether KVM did nothing but send the guest its own faults."""
    kinds = Counter(map(type, events))
    exits = [event.reason for event in events if isinstance(event, ev.kvm_exit)]
    faults = [exits.count("pf"), *[kinds[kind] for kind in _OF_A_FAULT]]
    return kinds.keys() <= _GUESTS_OWN and _EXITS.issuperset(exits) and len(set(faults)) == 1
