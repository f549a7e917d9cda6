"""The whole state of a machine between two ops, taken and put back cheaply.

A search goes back after every op, so that both directions cost about as much as the
op changed: a savepoint is a record of *pieces*, and shares with the one before each
piece that is equal. Frames of memory are looked at only if they were written since, and a
piece of one holds the words that differ from what the frame began with.

Everything mutable hangs from the :class:`~mmulab.kvm.state.Kvm` and refers by integers
(:mod:`mmulab.trace.checkpoints` writes the same state to a file); attributes are taken by
their classes' own lists, so that a new one cannot be forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.check.pieces import Fields, Piece, copied, names_of
from mmulab.kvm.dirty_ring import DirtyRing
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu import Mmu
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm, Vcpu
from mmulab.kvm.vmx.vmcs12 import VmxState
from mmulab.machine.machine import Machine
from mmulab.memory.host import FRAME_WORDS, HostMemory

CONTEXTS = ("root_mmu", "guest_mmu", "nested_mmu")
ORDERED = ("active_mmu_pages", "tdp_mmu_roots", "possible_nx_huge_pages")
"""Lists of frames kept as the keys of a dict: their order counts."""
NOISE = ("rip", "singlestep_rip", "last_vmentry_cpu", "emulation", "cpl", "ac", "cr2")
"""What each op sets anew, of a vCPU; with what is only counted, no later op depends on it."""
VM_COUNTS = ("stat", "sync_stat")
"""Statistics of the VM."""
_HOST_PAGES = ("page_level", "protection", "swapped", "clean")
_CONSTANT = ("behaviours", "config", "emit", "fmt", "memory", "sync", "tlb_sink", "watch")
_PFN_MASK = (1 << 52) - (1 << 12)
FEW_WORDS = 32
"""How many words are stored one by one rather than the whole frame."""
KNOWN_FRAMES = 1 << 12
"""Contents of frames that are kept, each of 4 KiB, to be known again."""


class FramePiece(NamedTuple):
    """What a frame holds: `fill` in each word but those at `indexes`, which have `values`.

    `children` are the frames of tables that entries lead to, by position in `values`.
    """

    fill: int
    indexes: tuple[int, ...]
    values: tuple[int, ...]
    children: tuple[tuple[int, int], ...]


def _but(kind: type, *apart: str) -> tuple[str, ...]:
    return tuple(name for name in names_of(kind) if name not in apart)


_VCPU_APART = (*CONTEXTS, "mmu", "walk_mmu", "nested", "id", "kvm", "vmx", "dirty_ring")
PAGE = Fields(names_of(ShadowPage))
MMU = Fields(names_of(Mmu), records=("prev_roots",))
SLOT = Fields(_but(KvmMemslot, "rmap"))
RMAP = Fields(("rmap", "as_id"))
VCPU = Fields(_but(Vcpu, *_VCPU_APART, *NOISE, "stat"))
VMX = Fields(names_of(VmxState))
RING = Fields(names_of(DirtyRing))
_VM_APART = (*_CONSTANT, *ORDERED, *VM_COUNTS, "running_vcpu", "pages", "slots", "vcpus", "sync_state")
VM = Fields(_but(Kvm, *_VM_APART))
_noise_of = attrgetter(*NOISE)


class VcpuPieces(NamedTuple):
    """A vCPU.

    Attributes
    ----------
    fields, vmx : Piece
    contexts : tuple of Piece
        As :data:`CONTEXTS`.
    used : tuple of str
        The contexts that `mmu` and `walk_mmu` are.
    nested : Piece or None
        Of what is kept of L2; its class and names are in the values.
    ring : Piece or None
    """

    fields: Piece
    vmx: Piece
    contexts: tuple[Piece, ...]
    used: tuple[str, ...]
    nested: Piece | None
    ring: Piece | None


Space = tuple[int, tuple[tuple[Piece, Piece], ...]]


class Savepoint(NamedTuple):
    """A machine's state; pieces are shared and never changed.

    Attributes
    ----------
    vm : Piece
    ordered : tuple of tuple of int
        As :data:`ORDERED`.
    pages : dict of int to Piece
        By frame, in the order of ``kvm.pages``.
    slots : tuple of (int, tuple of (Piece, Piece))
        Of each address space: its generation, and the slots in ascending order, with their reverse maps.
    vcpus : tuple of VcpuPieces
    frames : dict of int to FramePiece
        Of the backing those that hold something else than at the beginning; tables in use.
    pool : tuple of (int, list of int)
    host_pages : tuple of dict
    noise : tuple of tuple
        Of the VM and of each vCPU what is counted, and what each op sets anew.
    """

    vm: Piece
    ordered: tuple[tuple[int, ...], ...]
    pages: dict[int, Piece]
    slots: tuple[Space, ...]
    vcpus: tuple[VcpuPieces, ...]
    frames: dict[int, FramePiece]
    pool: tuple[int, list[int]]
    host_pages: tuple[dict[int, Any], ...]
    noise: tuple[tuple[Any, ...], ...]

    def same(self, other: Savepoint) -> bool:
        """Whether nothing of weight has changed between two states, of which one followed the other."""
        return (
            self.frames is other.frames
            and self.vm is other.vm
            and self.pages is other.pages
            and all(map(_is, self.vcpus, other.vcpus))
            and all(map(_is, self.slots, other.slots))
            and self.ordered == other.ordered
            and self.host_pages is other.host_pages
        )


class Keeper:
    """Takes and puts back the states of one machine.

    Parameters
    ----------
    machine : Machine
        Between two ops. What its memory holds now is what frames are compared with.

    Raises
    ------
    ValueError
        Its sync policy keeps a state of its own, which no savepoint holds.

    Attributes
    ----------
    now : Savepoint
        The state that was taken or put back last.
    """

    def __init__(self, machine: Machine) -> None:
        if machine.kvm.sync_state is not None:
            raise ValueError("the sync policy keeps a state of its own, which no savepoint holds")
        self._machine = machine
        self._memory: HostMemory = machine.memory
        self._backing = machine.memory.backing
        self._base: npt.NDArray[np.uint64] = machine.memory.frames[self._backing :].copy()
        self._since = 1  # no write leaves 0
        self._known: defaultdict[int, dict[bytes, FramePiece]] = defaultdict(dict)
        self._many = 0
        self.now = self._take(None)

    def take(self) -> Savepoint:
        """Return the machine's state, after any number of ops since :attr:`now`."""
        self.now = self._take(self.now)
        return self.now

    def put(self, target: Savepoint) -> None:
        """Put the machine back to a state; what it is now must have been taken.

        The frames that change are stamped as by a write.
        """
        now, machine = self.now, self._machine
        kvm = machine.kvm
        if target.vm is not now.vm:
            VM.put(kvm, target.vm, now.vm)
        for name, old, new in zip(ORDERED, now.ordered, target.ordered, strict=True):
            if old != new:
                setattr(kvm, name, dict.fromkeys(new))
        self._put_pages(target)
        self._put_slots(target)
        for vcpu, old_vcpu, new_vcpu in zip(kvm.vcpus, now.vcpus, target.vcpus, strict=True):
            if old_vcpu is not new_vcpu:
                _put_vcpu(vcpu, old_vcpu, new_vcpu)
        self._put_frames(target)
        _put_noise(kvm, target.noise)
        self._memory.restore_pool(*target.pool)
        if now.host_pages is not target.host_pages:
            for name, pages in zip(_HOST_PAGES, target.host_pages, strict=True):
                setattr(self._memory, name, dict(pages))
        self.now = target

    # Taking ---------------------------------------------------------------------

    def _take(self, before: Savepoint | None) -> Savepoint:
        kvm = self._machine.kvm
        host_pages = tuple([getattr(self._memory, name) for name in _HOST_PAGES])
        if before is None or before.host_pages != host_pages:
            host_pages = tuple([dict(pages) for pages in host_pages])
        else:
            host_pages = before.host_pages
        pool = self._memory.pool()
        if before is not None and pool == before.pool:
            pool = before.pool
        return Savepoint(
            VM.take(kvm, before and before.vm),
            tuple([tuple(getattr(kvm, name)) for name in ORDERED]),
            _take_pages(kvm, before),
            _take_slots(kvm, before),
            tuple(
                [_take_vcpu(vcpu, before.vcpus[at] if before else None) for at, vcpu in enumerate(kvm.vcpus)]
            ),
            self._take_frames(before, pool),
            pool,
            host_pages,
            _take_noise(kvm),
        )

    def _take_frames(self, before: Savepoint | None, pool: tuple[int, list[int]]) -> dict[int, FramePiece]:
        memory = self._memory
        written = np.flatnonzero(memory.written >= self._since).tolist()
        memory.epoch += 1
        self._since = memory.epoch
        old = before.frames if before is not None else {}
        changed: dict[int, FramePiece | None] = {}
        free = set(pool[1])
        for frame in written:
            if frame in free:
                continue
            piece = self._frame_piece(frame)
            wanted = None if frame >= self._backing and not piece.indexes else piece
            if old.get(frame) is not wanted:
                changed[frame] = wanted
        for frame in free & old.keys():
            changed[frame] = None
        if not changed:
            return old
        found = old.copy()
        for frame, kept in changed.items():
            if kept is None:
                found.pop(frame, None)
            else:
                found[frame] = kept
        return found

    def _frame_piece(self, frame: int) -> FramePiece:
        """Return what a frame holds; of equal tables, and of equal content of one frame, the same piece."""
        content = self._memory.bytes[frame << 12 : frame + 1 << 12].tobytes()
        known = self._known[frame if frame >= self._backing else 0]
        piece = known.get(content)
        if piece is None:
            if self._many >= KNOWN_FRAMES:
                self._known.clear()
                self._many = 0
                known = self._known[frame if frame >= self._backing else 0]
            piece = known[content] = self._read_frame(frame)
            self._many += 1
        return piece

    def _read_frame(self, frame: int) -> FramePiece:
        words = self._memory.frames[frame]
        if frame >= self._backing:
            indexes = np.flatnonzero(words != self._base[frame - self._backing])
            return FramePiece(0, tuple(indexes.tolist()), tuple(words[indexes].tolist()), ())
        fill = int(words[FRAME_WORDS - 1])
        indexes = np.flatnonzero(words != fill)
        values = words[indexes].tolist()
        children = tuple(
            [
                (at, (value & _PFN_MASK) >> 12)
                for at, value in enumerate(values)
                if value & 1 and 0 < (value & _PFN_MASK) >> 12 < self._backing
            ]
        )
        return FramePiece(fill, tuple(indexes.tolist()), tuple(values), children)

    # Putting back -----------------------------------------------------------------

    def _put_pages(self, target: Savepoint) -> None:
        kvm, now = self._machine.kvm, self.now.pages
        if target.pages is now:
            return
        live, pages = kvm.pages, {}
        for frame, piece in target.pages.items():
            old = now.get(frame)
            page = live[frame] if old is not None else ShadowPage.__new__(ShadowPage)
            if old is not piece:
                PAGE.put(page, piece, old)
            pages[frame] = page
        kvm.pages = pages

    def _put_slots(self, target: Savepoint) -> None:
        for slots, old, new in zip(self._machine.kvm.slots, self.now.slots, target.slots, strict=True):
            if old is new:
                continue
            live = slots.slots
            items = []
            for at, (fields, rmap) in enumerate(new[1]):
                slot = live[at] if at < len(live) else KvmMemslot.__new__(KvmMemslot)
                had = old[1][at] if at < len(old[1]) else (None, None)
                if had[0] is not fields:
                    SLOT.put(slot, fields, had[0])
                if had[1] is not rmap:
                    RMAP.put(slot, rmap, had[1])
                items.append(slot)
            slots.replace_all(items, new[0])

    def _put_frames(self, target: Savepoint) -> None:
        frames, now, wanted = self._memory.frames, self.now.frames, target.frames
        changed = []
        for frame, piece in wanted.items():
            if now.get(frame) is not piece:
                changed.append(frame)
                self._put_frame(frame, now.get(frame), piece)
        for frame in now.keys() - wanted.keys():
            changed.append(frame)
            at = frame - self._backing
            frames[frame] = self._base[at] if at >= 0 else 0
        for frame in self.now.pool[1]:
            if frame >= target.pool[0]:
                frames[frame] = 0  # a frame that was never handed out is taken to hold zeros
        stamp, epoch = self._memory.stamp, self._memory.epoch
        for frame in changed:
            stamp[frame] = epoch
        self._memory.epoch = self._since = epoch + 1

    def _put_frame(self, frame: int, now: FramePiece | None, piece: FramePiece) -> None:
        """Give a frame what a piece says; where little differs from what it holds, only that is stored."""
        at, words = frame - self._backing, self._memory.frames[frame]
        if now is None or now.fill != piece.fill or len(now.indexes) + len(piece.indexes) > FEW_WORDS:
            words[:] = self._base[at] if at >= 0 else piece.fill
            if piece.indexes:
                words[list(piece.indexes)] = piece.values
            return
        for index in now.indexes:
            words[index] = self._base[at, index] if at >= 0 else piece.fill
        for index, value in zip(piece.indexes, piece.values, strict=True):
            words[index] = value


def _take_pages(kvm: Kvm, before: Savepoint | None) -> dict[int, Piece]:
    old = before.pages if before is not None else {}
    pages = {frame: PAGE.take(page, old.get(frame)) for frame, page in kvm.pages.items()}
    same = before is not None and len(old) == len(pages) and all(map(_is, pages.values(), old.values()))
    return old if same else pages


_Counts = tuple[tuple[str, ...], tuple[int, ...]]
_names: dict[tuple[str, ...], tuple[str, ...]] = {}
"""The lists of names that statistics were met with: few, so that states share them."""


def _take_counts(counts: dict[str, int]) -> _Counts:
    names = tuple(counts)
    return _names.setdefault(names, names), tuple(counts.values())


def _put_counts(counts: _Counts) -> dict[str, int]:
    return dict(zip(*counts, strict=True))


def _take_noise(kvm: Kvm) -> tuple[tuple[Any, ...], ...]:
    counts = [_take_counts(getattr(kvm, name)) for name in VM_COUNTS]
    vcpus = [(_take_counts(vcpu.stat), *_noise_of(vcpu)) for vcpu in kvm.vcpus]
    return (kvm.running_vcpu, *counts), *vcpus


def _put_noise(kvm: Kvm, noise: tuple[tuple[Any, ...], ...]) -> None:
    kvm.running_vcpu, *counts = noise[0]
    for name, counted in zip(VM_COUNTS, counts, strict=True):
        setattr(kvm, name, _put_counts(counted))
    for vcpu, (counted, *rest) in zip(kvm.vcpus, noise[1:], strict=True):
        vcpu.stat = _put_counts(counted)
        for name, value in zip(NOISE, rest, strict=True):
            setattr(vcpu, name, value)


def _is(one: object, other: object) -> bool:
    return one is other


def _take_slots(kvm: Kvm, before: Savepoint | None) -> tuple[Space, ...]:
    taken = []
    for space, slots in enumerate(kvm.slots):
        old: Space = before.slots[space] if before is not None else (-1, ())
        pieces = []
        for at, slot in enumerate(slots.slots):
            fields, rmap = old[1][at] if at < len(old[1]) else (None, None)
            pieces.append((SLOT.take(slot, fields), RMAP.take(slot, rmap)))
        same = old[0] == slots.generation and len(pieces) == len(old[1]) and all(map(_same, pieces, old[1]))
        taken.append(old if same else (slots.generation, tuple(pieces)))
    return tuple(taken)


def _same(one: tuple[Piece, Piece], other: tuple[Piece, Piece]) -> bool:
    return one[0] is other[0] and one[1] is other[1]


def _take_vcpu(vcpu: Vcpu, before: VcpuPieces | None) -> VcpuPieces:
    mmus = tuple([getattr(vcpu, name) for name in CONTEXTS])
    nested = vcpu.nested
    kept = None
    if nested is not None:
        kept = Piece((type(nested), copied(vars(nested))))
        if before is not None and before.nested is not None and before.nested.values == kept.values:
            kept = before.nested
    taken = VcpuPieces(
        VCPU.take(vcpu, before and before.fields),
        VMX.take(vcpu.vmx, before and before.vmx),
        tuple([MMU.take(mmu, before and before.contexts[at]) for at, mmu in enumerate(mmus)]),
        tuple([CONTEXTS[_index(mmus, used)] for used in (vcpu.mmu, vcpu.walk_mmu)]),
        kept,
        None if vcpu.dirty_ring is None else RING.take(vcpu.dirty_ring, before and before.ring),
    )
    return before if before is not None and _unchanged(taken, before) else taken


def _unchanged(taken: VcpuPieces, before: VcpuPieces) -> bool:
    return (
        taken.fields is before.fields
        and taken.vmx is before.vmx
        and all(map(_is, taken.contexts, before.contexts))
        and taken.used == before.used
        and taken.nested is before.nested
        and taken.ring is before.ring
    )


def _index(mmus: tuple[Mmu, ...], used: Mmu) -> int:
    """Return which context is in use: the same object, for two may be equal."""
    return next(at for at, mmu in enumerate(mmus) if mmu is used)


def _put_vcpu(vcpu: Vcpu, now: VcpuPieces, target: VcpuPieces) -> None:
    if now.fields is not target.fields:
        VCPU.put(vcpu, target.fields, now.fields)
    if now.vmx is not target.vmx:
        VMX.put(vcpu.vmx, target.vmx, now.vmx)
    for name, old, new in zip(CONTEXTS, now.contexts, target.contexts, strict=True):
        if old is not new:
            MMU.put(getattr(vcpu, name), new, old)
    vcpu.mmu, vcpu.walk_mmu = (getattr(vcpu, name) for name in target.used)
    if target.ring is not None and now.ring is not target.ring:
        RING.put(vcpu.dirty_ring, target.ring, now.ring)
    if target.nested is None:
        vcpu.nested = None
    elif now.nested is not target.nested:
        kind, values = target.nested.values
        if type(vcpu.nested) is not kind:
            vcpu.nested = kind.__new__(kind)
        vars(vcpu.nested).clear()
        vars(vcpu.nested).update(copied(values))
