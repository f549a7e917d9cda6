"""A name for a machine's state: two states with one key have the same future.

Equal up to what no op can tell: which frames the shadow tables lie in (they are renamed by
the way to them from the vCPUs' roots, then by the hash lists), which pages of the pool are
free, statistics, what each op sets anew. The kernel's lists keep their order, for its
loops go by them; the age of the pages counts only where a limit may have the oldest zapped.
"""

from __future__ import annotations

import marshal
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from operator import itemgetter
from typing import Any, NamedTuple

from mmulab.check.pieces import Fields, Piece
from mmulab.check.savepoint import (
    MMU,
    PAGE,
    RING,
    SLOT,
    VCPU,
    VM,
    VMX,
    FramePiece,
    Savepoint,
    Space,
    VcpuPieces,
)
from mmulab.kvm.memslot import PteList
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.memory.host import FRAME_WORDS

ROOM = 32
"""Shadow pages that a few ops may add: where the limit leaves fewer, the age of pages counts."""
MOST_KNOWN = 1 << 15
"""Digests of pieces that are kept."""
_PAGE_SIZE = 16
_PLAIN = frozenset((int, bool, str, bytes, type(None)))
_ADDRESS = (1 << 52) - (1 << 12)
_PAGE_APART = ("frame", "parent_ptes", "ptep", "mmu_valid_gen")
_MMU_APART = ("root_hpa", "prev_roots", "pae_root", "pml4_root", "pml5_root")
_VM_APART = (
    "dummy_root",
    "mmu_valid_gen",
    "page_hash",
)
_VCPU_APART = ("mmio_gva", "mmio_gfn", "mmio_access", "mmio_gen")

_Known = tuple[bytes, tuple[Any, ...]]
"""A digest, and what it is of, so that no other thing gets its address."""

_numbers: dict[Hashable, int] = {}
"""A number for each constant (a guest's paging, a CPU model) that was met."""


def plain(value: Any) -> Any:
    """Return a value in types that :mod:`marshal` writes the same way whenever they are equal."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in (list, tuple):
        return tuple([plain(item) for item in value])
    if kind is dict:
        return tuple(sorted((plain(key), plain(item)) for key, item in value.items()))
    if kind is bytearray:
        return bytes(value)
    if isinstance(value, tuple):
        return kind.__name__, *[plain(item) for item in value]
    return "constant", _numbers.setdefault(value, len(_numbers))


def digest_of(value: Any) -> bytes:
    """Return a digest of plain values."""
    return blake2b(marshal.dumps(value, 2), digest_size=_PAGE_SIZE).digest()


class _Part:
    """Which values of a class's pieces go into a key as they are."""

    def __init__(self, fields: Fields, apart: tuple[str, ...]) -> None:
        kept = [at for at, name in enumerate(fields.names) if name not in apart]
        self._kept = itemgetter(*kept, kept[0])  # one twice, so that it returns a tuple even of one
        self.at = {name: at for at, name in enumerate(fields.names)}

    def digest(self, piece: Piece) -> bytes:
        """Return the digest of a piece, once computed."""
        if not piece.digest:
            piece.digest = digest_of([v if type(v) in _PLAIN else plain(v) for v in self._kept(piece.values)])
        return piece.digest


_PAGE, _MMU, _VM = _Part(PAGE, _PAGE_APART), _Part(MMU, _MMU_APART), _Part(VM, _VM_APART)
_VCPU, _SLOT = _Part(VCPU, _VCPU_APART), _Part(SLOT, ())
_RING, _VMX = _Part(RING, ()), _Part(VMX, ())
_PARENTS, _PTEP, _GENERATION = (_PAGE.at[name] for name in ("parent_ptes", "ptep", "mmu_valid_gen"))
_HPA, _PREVIOUS, *_SPECIAL = (_MMU.at[name] for name in _MMU_APART)
_HASH, _DUMMY, _VALID = (_VM.at[name] for name in ("page_hash", "dummy_root", "mmu_valid_gen"))
_USED, _MAX = _VM.at["n_used_mmu_pages"], _VM.at["n_max_mmu_pages"]
_REQUESTS = _VCPU.at["requests"]
_MMIO = [_VCPU.at[name] for name in _VCPU_APART]


class Key(NamedTuple):
    """Names of a state.

    Attributes
    ----------
    machine : bytes
        Of all that counts.
    mmu : bytes
        Of what the MMU's invariants are about: no registers, no guest memory.
    """

    machine: bytes
    mmu: bytes


class StateKey:
    """Computes keys; what it knows of a piece is kept, so that a step costs what it changed.

    What refers to tables is known anew under each naming of the frames; those come again and again.
    """

    def __init__(self, backing: int) -> None:
        self._backing = backing
        self._frames: dict[int, tuple[FramePiece, Any]] = {}
        self._known: defaultdict[Hashable, dict[Hashable, _Known]] = defaultdict(dict)
        self._many = 0
        self._host_pages: tuple[Any, Any] | None = None

    def key(self, state: Savepoint) -> Key:
        """Return the names of a state."""
        names = _names(state)
        vm, frames = state.vm.values, state.frames
        valid = vm[_VALID]
        known = self._known[(valid, *names)]
        ages, tdp, nx = state.ordered
        pages = state.pages
        tables = []
        for frame, name in names.items():
            piece = pages.get(frame)
            if piece is not None:
                table = frames.get(frame)
                part = known.get((id(piece), id(table)))
                tables.append(part[0] if part else self._new_page(known, name, piece, table, names, valid))
        mmu = digest_of(
            (
                _VM.digest(state.vm),
                names.get(vm[_DUMMY], 0),
                tuple([names[frame] for frame in ages]) if vm[_MAX] - vm[_USED] < ROOM else (),
                tuple([names[frame] for frame in tdp]),
                tuple([names[frame] for frame in nx]),
                self._part(known, (vm[_HASH],), lambda: _hash(state, names)),
                tables,
                [self._held(state, vcpu, names, known) for vcpu in state.vcpus],
                [self._space(space, names, known) for space in state.slots],
                self._host(state),
            )
        )
        vcpus = [_vcpu(state, vcpu) for vcpu in state.vcpus]
        return Key(digest_of((mmu, vcpus, self._guest_memory(state))), mmu)

    def beside_tables(self, state: Savepoint) -> Any:
        """Return vCPUs, memslots and guest memory: not the shadow tables and what keeps account of them."""
        return (
            [_vcpu(state, vcpu) for vcpu in state.vcpus],
            [b"" if vcpu.ring is None else _RING.digest(vcpu.ring) for vcpu in state.vcpus],
            [(space[0], [_SLOT.digest(fields) for fields, _ in space[1]]) for space in state.slots],
            self._host(state),
            self._guest_memory(state),
        )

    def _host(self, state: Savepoint) -> Any:
        """Return the host's pages, which hardly ever change."""
        if self._host_pages is None or self._host_pages[0] is not state.host_pages:
            self._host_pages = state.host_pages, plain(state.host_pages)
        return self._host_pages[1]

    def _part(self, known: dict[Hashable, _Known], things: tuple[Any, ...], make: Callable[[], Any]) -> bytes:
        """Return the digest of what `make` returns for these very things."""
        at = tuple(map(id, things))
        part = known.get(at)
        if part is None:
            if self._many > MOST_KNOWN:
                self._known.clear()
                self._many = 0
            part = known[at] = digest_of(make()), things
            self._many += 1
        return part[0]

    def _new_page(
        self,
        known: dict[Hashable, _Known],
        name: int,
        piece: Piece,
        table: FramePiece | None,
        names: dict[int, int],
        valid: int,
    ) -> bytes:
        return self._part(
            known, (piece, table), lambda: (name, _page(piece, names, valid), self._table(table, names))
        )

    def _table(self, piece: FramePiece | None, names: dict[int, int]) -> Any:
        if piece is None:
            return ()
        known = self._frames.get(id(piece))
        if known is None or known[0] is not piece:
            values = list(piece.values)
            for at, _ in piece.children:
                values[at] &= ~_ADDRESS
            known = piece, digest_of((piece.fill, piece.indexes, tuple(values)))
            self._remember(piece, known)
        return known[1], tuple([names.get(child, -1) for _, child in piece.children])

    def _remember(self, piece: FramePiece, known: tuple[FramePiece, Any]) -> None:
        if len(self._frames) > 1 << 14:
            self._frames.clear()
        self._frames[id(piece)] = known

    def _guest_memory(self, state: Savepoint) -> Any:
        backing, known, parts = self._backing, self._frames, []
        for frame, piece in state.frames.items():
            if frame < backing:
                continue
            entry = known.get(id(piece))
            if entry is None or entry[0] is not piece:
                entry = piece, digest_of((frame, piece.indexes, piece.values))
                self._remember(piece, entry)
            parts.append(entry[1])
        return tuple(sorted(parts))

    def _held(
        self, state: Savepoint, vcpu: VcpuPieces, names: dict[int, int], known: dict[Hashable, _Known]
    ) -> Any:
        """Return a vCPU's roots, the requests that it will serve and its dirty ring."""
        roots = []
        for piece in vcpu.contexts:
            special = [piece.values[at] for at in _SPECIAL]
            tables = [state.frames.get(frame) if frame > 0 else frame for frame in special]
            roots.append(self._part(known, (piece, *tables), partial(self._roots, piece, tables, names)))
        ring = b"" if vcpu.ring is None else _RING.digest(vcpu.ring)
        return roots, vcpu.fields.values[_REQUESTS], ring

    def _roots(self, piece: Piece, tables: Sequence[FramePiece | int | None], names: dict[int, int]) -> Any:
        values = piece.values
        return (
            _hpa(values[_HPA], names),
            tuple([(pgd, _hpa(hpa, names)) for pgd, hpa in values[_PREVIOUS]]),
            tuple([table if isinstance(table, int) else self._table(table, names) for table in tables]),
        )

    def _space(self, space: Space, names: dict[int, int], known: dict[Hashable, _Known]) -> Any:
        generation, pieces = space
        rmaps = [self._part(known, (rmap,), partial(_rmap, rmap, names)) for _, rmap in pieces]
        return generation, [_SLOT.digest(fields) for fields, _ in pieces], rmaps


def _vcpu(state: Savepoint, vcpu: VcpuPieces) -> Any:
    """Return the rest of a vCPU."""
    values = vcpu.fields.values
    gva, gfn, access, generation = [values[at] for at in _MMIO]
    fresh = generation == state.slots[0][0] or generation == state.slots[1][0]
    return (
        _VCPU.digest(vcpu.fields),
        (gva, gfn, access, generation) if fresh else (),
        _VMX.digest(vcpu.vmx),
        [_MMU.digest(piece) for piece in vcpu.contexts],
        vcpu.used,
        _nested(vcpu.nested),
    )


def _nested(piece: Piece | None) -> bytes:
    if piece is None:
        return b""
    if not piece.digest:
        kind, values = piece.values
        piece.digest = digest_of((kind.__name__, plain(values)))
    return piece.digest


def _hpa(hpa: int, names: dict[int, int]) -> int:
    return hpa if hpa == INVALID_PAGE else names.get(hpa >> 12, hpa) << 12 | hpa & 0xFFF


def _names(state: Savepoint) -> dict[int, int]:
    """Return a new name for each frame of a table, by the way to it."""
    names: dict[int, int] = {}
    waiting = list(_roots(state))
    waiting.reverse()
    frames, pages = state.frames, state.pages
    while waiting:
        frame = waiting.pop()
        if frame in names or frame not in frames:
            continue
        names[frame] = len(names) + 1
        waiting += [child for _, child in reversed(frames[frame].children)]
    hashed: dict[int, list[int]] = state.vm.values[_HASH]
    for gfn in sorted(hashed):
        for frame in hashed[gfn]:
            names.setdefault(frame, len(names) + 1)
    for frame in pages:
        names.setdefault(frame, len(names) + 1)
    return names


def _roots(state: Savepoint) -> Iterator[int]:
    for vcpu in state.vcpus:
        for piece in vcpu.contexts:
            values = piece.values
            yield values[_HPA] >> 12
            for _, hpa in values[_PREVIOUS]:
                yield hpa >> 12
            for at in _SPECIAL:
                yield values[at]
    yield state.vm.values[_DUMMY]
    yield from state.ordered[1]


def _hash(state: Savepoint, names: dict[int, int]) -> Any:
    hashed: dict[int, list[int]] = state.vm.values[_HASH]
    return tuple([(gfn, tuple([names[frame] for frame in hashed[gfn]])) for gfn in sorted(hashed)])


def _page(piece: Piece, names: dict[int, int], valid: int) -> Any:
    values = piece.values
    return (
        _PAGE.digest(piece),
        values[_GENERATION] == valid,
        _sptes(values[_PARENTS], names),
        _spte(values[_PTEP], names) if values[_PTEP] else 0,
    )


def _spte(sptep: int, names: dict[int, int]) -> int:
    return names.get(sptep >> 12, -(sptep >> 12)) * FRAME_WORDS + (sptep >> 3 & FRAME_WORDS - 1)


def _sptes(head: PteList, names: dict[int, int]) -> Any:
    """Return the sptes of a list in its order; one in a frame that is gone keeps that frame's number."""
    return tuple([_spte(sptep, names) for block in head for sptep in block])


def _rmap(piece: Piece, names: dict[int, int]) -> Any:
    tables: list[dict[int, PteList]] = piece.values[0]
    return tuple([tuple([(key, _sptes(table[key], names)) for key in sorted(table)]) for table in tables])
