"""Checkpoints of a machine: taken by what changed, gone back to in any order.

Everything mutable of a machine hangs from its :class:`~mmulab.kvm.state.Kvm` and
refers by integers, so it can be copied piece by piece: frames of memory by
their generation, shadow pages and reverse maps by having been fetched
(:mod:`mmulab.trace.tracked`), the few registers and lists whole.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmulab.errors import InputError, quoted
from mmulab.kvm.dirty_ring import DirtyRing
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu import Mmu, X86Exception
from mmulab.kvm.state import Kvm, Vcpu
from mmulab.kvm.sync.oos_state import OosState
from mmulab.machine.machine import Machine
from mmulab.memory.host import HostMemory
from mmulab.memory.memslots import KVM_ADDRESS_SPACE_NUM, Memslots
from mmulab.trace import pieces
from mmulab.trace.codec import Constants, Json, decode, encode
from mmulab.trace.known import AGAIN, NESTED, check
from mmulab.trace.tracked import Tracked
from mmulab.trace.versions import Versions

SMALL, FRAMES = "small", "frames"
_KVM_APART = (
    "behaviours",
    "bugs",
    "config",
    "emit",
    "fmt",
    "memory",
    "page_hash",
    "pages",
    "slots",
    "sync",
    "vcpus",
    "watch",
)
_VCPU_APART = ("id", "kvm")
_SLOT_APART = ("disallow_lpage", "gfn_track", "rmap")
_MACHINE_APART = ("config", "kvm", "memory", "op_sink", "processor")
_LEVELS = (1, 2, 3)


def state_names(kind: type) -> list[str]:
    """Return the names of a slotted class's attributes, its bases' included, sorted."""
    return sorted({name for base in kind.__mro__ for name in getattr(base, "__slots__", ())})


class Place(NamedTuple):
    """Where a machine keeps one of its tables.

    Attributes
    ----------
    name : str
        Of the table in a recording.
    codec : Codec
    get : callable
        Returns the table.
    put : callable
        Puts another one in its place.
    """

    name: str
    codec: pieces.Codec
    get: Callable[[], dict[int, Any]]
    put: Callable[[dict[int, Any]], None]


def places(kvm: Kvm) -> Iterator[Place]:
    """Yield every table of a VM."""
    yield _attribute("pages", pieces.PAGE, kvm, "pages")
    yield _attribute("page_hash", pieces.INTEGERS, kvm, "page_hash")
    for slots in kvm.slots:
        for slot in slots.slots:
            yield from _slot_places(slot)


def _slot_places(slot: KvmMemslot) -> Iterator[Place]:
    name = f"slot {slot.as_id}.{slot.id}"
    for level in _LEVELS:
        yield _item(f"{name} rmap {level}", pieces.PTE_LIST, slot.rmap, level)
        yield _item(f"{name} disallow_lpage {level}", pieces.INTEGER, slot.disallow_lpage, level)
    yield _attribute(f"{name} gfn_track", pieces.INTEGER, slot, "gfn_track")


def _attribute(name: str, codec: pieces.Codec, holder: object, attribute: str) -> Place:
    return Place(
        name, codec, lambda: getattr(holder, attribute), lambda table: setattr(holder, attribute, table)
    )


def _item(name: str, codec: pieces.Codec, holder: list[dict[int, Any]], index: int) -> Place:
    return Place(name, codec, lambda: holder[index], lambda table: holder.__setitem__(index, table))


class _Source:
    """The entries of a table at a checkpoint."""

    __slots__ = ("_checkpoint", "_codec", "_versions")

    def __init__(self, versions: Versions, checkpoint: int, codec: pieces.Codec) -> None:
        self._versions = versions
        self._checkpoint = checkpoint
        self._codec = codec

    def load(self, key: int) -> Any:
        """Return the entry of `key`, None if there is none."""
        data = self._versions.get(key, self._checkpoint)
        return self._codec.decode(key, data) if data else None

    def present(self) -> list[int]:
        """Return the keys of all entries, ascending."""
        return self._versions.keys(self._checkpoint)


class Checkpoints:
    """The checkpoints of one run.

    Attributes
    ----------
    tables : dict of str to Versions
    constants : Constants
    count : int
    """

    def __init__(self) -> None:
        self.tables: dict[str, Versions] = {SMALL: Versions(), FRAMES: Versions()}
        self.constants = Constants()
        self.count = 0
        self._last: dict[str, dict[int, bytes]] = {}
        self._since = 0

    # Taking ---------------------------------------------------------------------

    def take(self, machine: Machine) -> None:
        """Add a checkpoint of the machine as it is; it must stand between two ops."""
        for place in places(machine.kvm):
            self._take_table(place)
        self._take_frames(machine.memory)
        small = json.dumps(small_state(machine, self.constants), separators=(",", ":"))
        self.tables[SMALL].put(0, self.count, zlib.compress(small.encode()))
        self.count += 1

    def _take_table(self, place: Place) -> None:
        table = place.get()
        last = self._last.setdefault(place.name, {})
        versions = self.tables.get(place.name)
        if versions is None:
            versions = self.tables[place.name] = Versions()
        if isinstance(table, Tracked):
            keys = list(table.touched)
        else:
            keys = list({**last, **table})
            tracked: Tracked[Any] = Tracked()
            for key, value in table.items():
                tracked[key] = value
            place.put(tracked)
            table = tracked
        for key in keys:
            value = dict.get(table, key)
            data = b"" if value is None else place.codec.encode(value)
            if data != last.get(key, b""):
                versions.put(key, self.count, data)
                last[key] = data
        table.settle()

    def _take_frames(self, memory: HostMemory) -> None:
        last = self._last.setdefault(FRAMES, {})
        versions = self.tables[FRAMES]
        for frame in np.flatnonzero(memory.written >= max(self._since, 1)).tolist():
            data = pieces.encode_frame(memory.frames[frame])
            # A store of what is there already changes nothing.
            if data != last.get(frame, pieces.ZERO_FRAME):
                versions.put(frame, self.count, data)
                last[frame] = data
        memory.epoch += 1
        self._since = memory.epoch

    def freeze(self) -> None:
        """End the taking."""
        for versions in self.tables.values():
            versions.freeze()
        self._last.clear()

    # Going back -------------------------------------------------------------------

    def restore(self, machine: Machine, number: int, before: int) -> None:
        """Put a machine back to checkpoint `number`.

        Parameters
        ----------
        machine : Machine
            Of the recording's configuration.
        number : int
        before : int
            The checkpoint that it was put to last; -1 if this is the first time.
        """
        self._restore_frames(machine.memory, number, before)
        text = pieces.unpack(self.tables[SMALL].get(0, number))
        restore_small(machine, json.loads(text), self.constants)
        for place in places(machine.kvm):
            versions = self.tables.get(place.name, _NONE)
            place.put(Tracked(_Source(versions, number, place.codec)))

    def _restore_frames(self, memory: HostMemory, number: int, before: int) -> None:
        versions = self.tables[FRAMES]
        differing = dict.fromkeys(versions.changed(before, number))
        if before >= 0:
            # What the run wrote after it was put back; everything else is as it was then.
            differing |= dict.fromkeys(np.flatnonzero(memory.written == memory.epoch).tolist())
        for frame, data in zip(differing, versions.get_all(list(differing), number), strict=True):
            pieces.decode_frame(data or pieces.ZERO_FRAME, memory.frames[frame])
            memory.stamp[frame] = memory.epoch
        memory.epoch += 1

    @property
    def nbytes(self) -> int:
        """Memory used by the tables, in bytes."""
        return sum(versions.nbytes for versions in self.tables.values())


_NONE = Versions()


def small_state(machine: Machine, constants: Constants) -> Json:
    """Return everything mutable of a machine but its memory and its tables."""
    kvm = machine.kvm
    memory = machine.memory
    return {
        "kvm": _attributes(kvm, _KVM_APART, constants),
        "slots": [_address_space(slots, constants) for slots in kvm.slots],
        "vcpus": [_vcpu(vcpu, constants) for vcpu in kvm.vcpus],
        "pool": encode(memory.pool(), constants),
        **{name: encode(getattr(memory, name), constants) for name in _HOST_PAGES},
        "machine": {
            name: encode(value, constants)
            for name, value in vars(machine).items()
            if name not in _MACHINE_APART
        },
    }


def _attributes(thing: Any, apart: tuple[str, ...], constants: Constants) -> Json:
    names = [name for name in state_names(type(thing)) if name not in apart]
    return {name: encode(getattr(thing, name), constants) for name in names}


def _address_space(slots: Memslots[KvmMemslot], constants: Constants) -> Json:
    return [slots.generation, [_attributes(slot, _SLOT_APART, constants) for slot in slots.slots]]


def _vcpu(vcpu: Vcpu, constants: Constants) -> Json:
    """Return a vCPU; an MMU context that two attributes share is named in the second."""
    seen: dict[int, str] = {}
    state: dict[str, Json] = {}
    for name in state_names(Vcpu):
        value = getattr(vcpu, name)
        if name in _VCPU_APART:
            continue
        if isinstance(value, Mmu):
            if id(value) in seen:
                state[name] = {"same": seen[id(value)]}
                continue
            seen[id(value)] = name
        state[name] = encode(value, constants)
    return state


_OPTIONAL: dict[str, Any] = {
    "exception": tuple[int, int | None, int | None] | None,
    "dirty_ring": DirtyRing | None,
    "fetch_fault": X86Exception | None,
    "nested": NESTED | None,
    "singlestep_rip": int | None,
    "dirty_bitmap": bytearray | None,
    "active_mmu_pages": dict[int, None],
    "tdp_mmu_roots": dict[int, None],
    "possible_nx_huge_pages": dict[int, None],
    "stat": dict[str, int],
    "sync_stat": dict[str, int],
    "sync_state": OosState | None,
}
"""What attributes may be whose first value does not tell."""
_HOST_PAGES: dict[str, Any] = {
    "page_level": dict[int, int],
    "protection": dict[int, int],
    "swapped": dict[int, None],
    "clean": dict[int, None],
}
"""Attributes of the memory that say how the host has the backing's pages."""


def restore_small(machine: Machine, state: Json, constants: Constants) -> None:
    """Give a machine what :func:`small_state` returned; the slots' tables are empty then.

    Raises
    ------
    InputError
        Not what :func:`small_state` returns: other names, or values that an attribute cannot have.
    LookupError, TypeError, ValueError
        Not of that form at all.
    """
    kvm = machine.kvm
    _exactly(state["machine"], [name for name in vars(machine) if name not in _MACHINE_APART], "the machine")
    _restore(kvm, state["kvm"], _KVM_APART, constants)
    for slots, (generation, items) in zip(kvm.slots, state["slots"], strict=True):
        check(generation, int, "a generation of memslots")
        slots.replace_all([_slot(item, constants, machine.memory) for item in items], generation)
    for vcpu, attributes in zip(kvm.vcpus, state["vcpus"], strict=True):
        _restore_vcpu(vcpu, attributes, constants)
    pool = decode(state["pool"], constants)
    check(pool, tuple[int, list[int]], "the pool of frames")
    machine.memory.restore_pool(*pool)
    for name, kind in _HOST_PAGES.items():
        value = decode(state[name], constants)
        check(value, kind, name)
        setattr(machine.memory, name, value)


def _exactly(found: Mapping[str, Json], names: Sequence[str], what: str) -> None:
    """Refuse other names than those that are written: nothing else is ever set."""
    if sorted(found) != sorted(names):
        odd = next(iter(sorted({*found} ^ {*names})))
        raise InputError(f"{what} has other attributes in mmulab ({quoted(odd)}); {AGAIN}")


def _restore(thing: object, items: Mapping[str, Json], apart: tuple[str, ...], constants: Constants) -> None:
    _exactly(items, [name for name in state_names(type(thing)) if name not in apart], type(thing).__name__)
    for name, item in items.items():
        _put(thing, name, decode(item, constants))


def _put(thing: object, name: str, value: object) -> None:
    """Set an attribute to a value of the kind that it has."""
    kind = type(thing)
    check(value, _OPTIONAL.get(name) or type(getattr(thing, name)), f"{name} of {kind.__name__}")
    setattr(thing, name, value)


def _restore_vcpu(vcpu: Vcpu, items: Mapping[str, Json], constants: Constants) -> None:
    """Restore a vCPU, whose contexts may be one and the same under two names."""
    _exactly(items, [name for name in state_names(Vcpu) if name not in _VCPU_APART], "a vCPU")
    done: dict[str, Mmu] = {}
    for name, item in items.items():
        if isinstance(item, dict) and "same" in item:
            if not isinstance(getattr(vcpu, name), Mmu):
                raise InputError(f"{name} of a vCPU is no context; {AGAIN}")
            setattr(vcpu, name, done[item["same"]])
            continue
        _put(vcpu, name, decode(item, constants))
        value = getattr(vcpu, name)
        if isinstance(value, Mmu):
            done[name] = value


def _slot(item: Mapping[str, Json], constants: Constants, memory: HostMemory) -> KvmMemslot:
    slot = KvmMemslot(0, 0, 0, 0)
    _restore(slot, item, _SLOT_APART, constants)
    inside = 0 <= slot.base_frame <= len(memory.frames) - slot.npages and slot.npages > 0
    if not inside or slot.as_id not in range(KVM_ADDRESS_SPACE_NUM):
        raise InputError(f"a memslot lies in no memory; {AGAIN}")
    if slot.dirty_bitmap is not None and len(slot.dirty_bitmap) != slot.npages:
        raise InputError(f"a dirty bitmap of another length; {AGAIN}")
    return slot


def digest(machine: Machine) -> str:
    """Return a SHA-256 over the whole state of a machine: equal states have equal digests."""
    constants = Constants()
    total = hashlib.sha256(json.dumps(small_state(machine, constants)).encode())
    total.update(json.dumps(constants.encoded).encode())
    for place in places(machine.kvm):
        total.update(place.name.encode())
        for key, value in sorted(place.get().items()):
            total.update(f"{key}:".encode() + place.codec.encode(value))
    memory = machine.memory
    for frame in np.flatnonzero(memory.written).tolist():
        if memory.frames[frame].any():
            total.update(f"{frame}:".encode() + memory.frames[frame].tobytes())
    return total.hexdigest()
