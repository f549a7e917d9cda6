"""The walk, compiled, for many accesses at once over the array of host memory.

The same translation as :func:`mmulab.x86.walk.walk`, to the bit: rights,
reserved bits, PDPTEs, PSE36, protection keys, EPT and the updates of A and D. Tables
are read where they lie: a table at address `a` is word ``base + a >> 3`` of the
array, so a processor walks shadow tables with `base` 0, and a guest's own
tables are walked with the address of their slot's memory.

Importing this module imports numba (0.2 s to 1.4 s), and the first call compiles
or loads from the cache; import it where a batch runs and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from mmulab.x86.mode import (
    PT64_NX_MASK,
    PT64_NX_SHIFT,
    PT_ACCESSED_MASK,
    PT_BASE_ADDR_MASK,
    PT_PAGE_SIZE_MASK,
    PT_PRESENT_MASK,
)
from mmulab.x86.paging import Paging
from mmulab.x86.pferr import (
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    ACC_WRITE_MASK,
    PFERR_FETCH_MASK,
    PFERR_PK_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)

Words = npt.NDArray[np.uint64]

FRAME_BYTES = 4096
NO_FAULT = -1
"""What stands for "no fault" among error codes."""


class BatchResult(NamedTuple):
    """How far a batch came.

    Attributes
    ----------
    done : int
        Number of accesses translated before the first fault.
    pa : numpy.ndarray, shape (n,), dtype uint64
        Physical addresses, valid below `done`.
    error : int
        Error code of access number `done`, which faulted; -1 if none did.
    """

    done: int
    pa: Words
    error: int


# Compiled code never mixes signed and unsigned integers: uint64 with int64 would become a float. Only the
# main loop touches arrays; an array passed on or taken out of a tuple would cost a reference count each time.
_U = np.uint64
_0, _1, _2, _3, _4, _8, _12, _19, _63 = map(_U, (0, 1, 2, 3, 4, 8, 12, 19, 63))
_BASE, _PRESENT, _PS = _U(PT_BASE_ADDR_MASK), _U(PT_PRESENT_MASK), _U(PT_PAGE_SIZE_MASK)
_A, _NX, _NX_SHIFT = _U(PT_ACCESSED_MASK), _U(PT64_NX_MASK), _U(PT64_NX_SHIFT)
_EXEC, _USER, _WRITE_USER = _U(ACC_EXEC_MASK), _U(ACC_USER_MASK), _U(ACC_WRITE_MASK | ACC_USER_MASK)
_PF_P, _PF_W, _PF_U = _U(PFERR_PRESENT_MASK), _U(PFERR_WRITE_MASK), _U(PFERR_USER_MASK)
_PF_RSVD, _PF_F, _PF_PK = _U(PFERR_RSVD_MASK), _U(PFERR_FETCH_MASK), _U(PFERR_PK_MASK)
_PKEY_SHIFT, _PKEY_MASK, _LOW_HALF, _ALL_ONES = _U(59), _U(15), _U(0xFFFFFFFF), _U((1 << 64) - 1)
_NO_FAULT = _U(1 << 32)
_PLAIN_MASK, _PLAIN, _RSVD_SMALL, _RSVD_LARGE, _LARGE = range(5)
"""Columns of `levels`. An entry is *plain* where only the next table matters: present, no page, no
reserved bit and nothing to set. Most entries are, and take one comparison."""


@numba.njit(cache=True)
def _pdpte_fault(pdpte: Any, rsvd: Any, rsvd_error: Any) -> Any:
    """Return the error code of a walk that starts at `pdpte`, or `_NO_FAULT`."""
    if not pdpte & _PRESENT:
        return _0
    return rsvd_error if pdpte & rsvd else _NO_FAULT


@numba.njit(cache=True)
def _rights_fault(denied: Any, entry: Any, path: Any, kind: Any, pkey: Any, ept: Any) -> Any:
    """Return P (and PK) if the rights of `path` forbid the access, else `_NO_FAULT`.

    `denied` has a bit for each value of ``ACC_*`` that forbids an access of this kind.
    """
    if ept:
        access = (path & _1) << _2 | path & _2 | path >> _2 & _1
    else:
        access = (path & _WRITE_USER) | (path >> _NX_SHIFT & _EXEC)
    code = _PF_P if denied >> access & _1 else _0
    pke, wp, pkru = pkey
    if pke and access & _USER and not kind & _PF_F:
        key = pkru >> (entry >> _PKEY_SHIFT & _PKEY_MASK) * _2 & _3
        writes = kind & _PF_W and (kind & _PF_U or wp)
        if key & _1 or (key & _2 and writes):
            code |= _PF_P | _PF_PK
    return code if code else _NO_FAULT


@numba.njit(cache=True)
def _translation(entry: Any, address: Any, shift: Any, pse36_mask: Any) -> Any:
    """Return the physical address in the page of `entry`, whose offset has `shift` bits."""
    offset = (_1 << shift) - _1
    pa = (entry & _BASE & ~offset) | (address & offset)
    return pa | (entry & pse36_mask) << _19 if shift > _12 else pa


@numba.njit(cache=True)
def _walk_all(
    words: Any,
    written: Any,
    levels: Any,
    permissions: Any,
    pdptes: Any,
    space: Any,
    geometry: Any,
    masks: Any,
    pkey: Any,
    va: Any,
    pfec: Any,
    not_smap: Any,
    stop: Any,
    pa: Any,
    errors: Any,
) -> Any:
    """Walk for each access into `pa` and `errors`; with `stop` return the first that faults."""
    root, base, size, epoch = space
    root_level, width, bits, rsvd_error, reported, has_pdptes, pdpte_rsvd, marks_pdptes = geometry
    present, accessed, dirty, sets_ad, pse36_mask, ept, bad_mt_xwr = masks
    index_mask = (_1 << bits) - _1
    root_shift = _12 + (root_level - _1) * bits
    marks = written.size > 0
    for i in range(va.size):
        address, kind = va[i], _U(pfec[i])
        denied = _U(permissions[(kind | _PF_RSVD if not_smap[i] else kind) >> _1])
        entry, level, shift, path, code = root, root_level, root_shift, _ALL_ONES, _NO_FAULT
        if has_pdptes:
            entry = pdptes[address >> shift & _3]
            code = _pdpte_fault(entry, pdpte_rsvd, rsvd_error)
            if marks_pdptes and code == _NO_FAULT and not entry & _A:
                pdptes[address >> shift & _3] = entry | _A
                if marks:
                    written[(base + root) >> _12] = epoch
            level -= _1
            shift -= bits
        while code == _NO_FAULT:
            at = (entry & _BASE) + (address >> shift & index_mask) * width
            if at >= size:
                code = _0
                break
            at += base
            entry = words[at >> _3]
            half = (at & _4) << _3
            if width == _4:
                entry = entry >> half & _LOW_HALF
            path &= entry ^ _NX
            if entry & levels[level, _PLAIN_MASK] != levels[level, _PLAIN]:
                if not entry & present:
                    code = _0
                    break
                rsvd = levels[level, _RSVD_LARGE if entry & _PS else _RSVD_SMALL]
                if entry & rsvd or bad_mt_xwr >> (entry & _63) & _1:
                    code = rsvd_error
                    break
                leaf = level == _1 or entry & levels[level, _LARGE] != _0
                need = accessed
                if leaf:
                    code = _rights_fault(denied, entry, path, kind, pkey, ept)
                    if code != _NO_FAULT:
                        break
                    if kind & _PF_W:
                        need |= dirty
                if sets_ad and entry & need != need:
                    words[at >> _3] |= need << half
                    if marks:
                        written[at >> _12] = epoch
                if leaf:
                    break
            level -= _1
            shift -= bits
        if code == _NO_FAULT:
            pa[i] = _translation(entry, address, shift, pse36_mask)
            errors[i] = NO_FAULT
        else:
            pa[i] = _0
            errors[i] = code | kind & reported
            if stop:
                return i
    return va.size


# From here on Python ----------------------------------------------------------

_NO_WORDS = np.empty(0, np.uint64)
_NO_STAMPS = np.empty(0, np.uint32)


@lru_cache(maxsize=256)
def _compiled_form(paging: Paging) -> tuple[Any, ...]:
    """Return `levels`, `permissions`, `geometry` and `masks` of a paging configuration."""
    mode = paging.mode
    levels = np.zeros((6, 5), np.uint64)
    set_in_plain = paging.present_mask | (paging.accessed_mask if paging.sets_ad else 0)
    for level in range(1, 6):
        small, large = paging.rsvd[0][level], paging.rsvd[1][level]
        plain_mask = set_in_plain | PT_PAGE_SIZE_MASK | small
        plain = (0, 1) if level == 1 else (plain_mask, set_in_plain)
        levels[level] = (*plain, small, large, paging.page_size_mask[level])
    reported = PFERR_WRITE_MASK | PFERR_USER_MASK | (PFERR_FETCH_MASK if paging.fetch_bit else 0)
    geometry = (
        mode.root_level,
        mode.entry_bytes,
        mode.index_bits,
        paging.rsvd_error,
        reported,
        mode.has_pdptes,
        paging.pdpte_rsvd,
        paging.marks_pdptes,
    )
    masks = (
        paging.present_mask,
        paging.accessed_mask,
        paging.dirty_mask,
        paging.sets_ad,
        paging.pse36_mask,
        paging.ept,
        paging.bad_mt_xwr,
    )
    return (
        levels,
        np.frombuffer(paging.permissions, np.uint8),
        tuple(_U(value) for value in geometry),
        tuple(_U(value) for value in masks),
    )


def _pdptes(words: Words, root: int, base: int, size: int, registers: Sequence[int] | None) -> Words:
    """Return the four PDPTEs: registers, or a view of memory, or nothing where no memory is."""
    if registers is not None:
        return np.array(registers, np.uint64)
    first = (base + root) >> 3
    return words[first : first + 4] if root < size else np.zeros(4, np.uint64)


def _run(
    frames: Words,
    paging: Paging,
    root: int,
    va: npt.ArrayLike,
    pfec: npt.ArrayLike,
    not_smap: npt.ArrayLike | None,
    pdptes: Sequence[int] | None,
    pkru: int,
    base: int,
    size: int | None,
    written: npt.NDArray[np.uint32] | None,
    epoch: int,
    stop: bool,
) -> tuple[int, Words, npt.NDArray[np.int32]]:
    """Check the arguments and walk; return what :func:`_walk_all` does, and the arrays it filled."""
    if not frames.flags.c_contiguous or frames.dtype != np.uint64:
        raise ValueError("frames must be a C-contiguous array of uint64")
    room = frames.nbytes - base
    if size is None:
        size = room
    if base % FRAME_BYTES or size % FRAME_BYTES or not 0 <= size <= room:
        raise ValueError(f"base {base:#x}, size {size:#x} are no pages of {frames.nbytes:#x} bytes")
    vas = np.ascontiguousarray(va, np.uint64)
    kinds = np.ascontiguousarray(pfec, np.uint8)
    exempt = np.zeros(vas.size, np.bool_) if not_smap is None else np.ascontiguousarray(not_smap, np.bool_)
    if not vas.shape == kinds.shape == exempt.shape or vas.ndim != 1:
        raise ValueError(f"shapes differ: va {vas.shape}, pfec {kinds.shape}, not_smap {exempt.shape}")
    mode = paging.mode
    if not mode.root_level:
        return vas.size, vas.copy(), np.full(vas.size, NO_FAULT, np.int32)
    words = frames.reshape(-1)
    root &= mode.root_mask
    levels, permissions, geometry, masks = _compiled_form(paging)
    entries = _NO_WORDS
    if mode.has_pdptes:
        entries = _pdptes(words, root, base, size, pdptes)
        if pdptes is not None:
            # Registers were checked when they were loaded, and are never written.
            geometry = (*geometry[:-2], _U(0), _U(0))
    pa = np.empty(vas.size, np.uint64)
    errors = np.empty(vas.size, np.int32)
    done = _walk_all(
        words,
        _NO_STAMPS if written is None else written,
        levels,
        permissions,
        entries,
        (_U(root), _U(base), _U(size), _U(epoch)),
        geometry,
        masks,
        (paging.pke, paging.wp, _U(pkru)),
        vas,
        kinds,
        exempt,
        stop,
        pa,
        errors,
    )
    return int(done), pa, errors


def walk_batch(
    frames: Words,
    paging: Paging,
    root: int,
    va: npt.ArrayLike,
    pfec: npt.ArrayLike,
    *,
    not_smap: npt.ArrayLike | None = None,
    pdptes: Sequence[int] | None = None,
    pkru: int = 0,
    base: int = 0,
    size: int | None = None,
    written: npt.NDArray[np.uint32] | None = None,
    epoch: int = 0,
) -> BatchResult:
    """Walk for each access in turn until one faults.

    Accesses before the fault have set their A and D bits, the faulting one
    those that a processor sets on the way to its fault, later ones none.

    Parameters
    ----------
    frames : numpy.ndarray, dtype uint64, C-contiguous
        Memory, such as ``HostMemory.frames``.
    paging : Paging
    root : int
        CR3, in the address space of the tables.
    va : array_like of uint64, shape (n,)
        Canonical addresses.
    pfec : array_like of uint8, shape (n,)
        Kinds of access: W, U and F bits of an error code.
    not_smap : array_like of bool, shape (n,), optional
        Where SMAP does not apply (EFLAGS.AC=1 and the access is explicit);
        default: nowhere.
    pdptes : sequence of 4 int, optional
        PAE's PDPTE registers; None: they are read from memory.
    pkru : int
    base, size : int
        Bytes of `frames` from which on the tables' address space lies, and its
        length (default: up to the end). An address behind it holds no entry,
        as where a walk's ``load`` returns None.
    written : numpy.ndarray, dtype uint32, optional
        For each frame of `frames`, gets `epoch` when A or D is set in it.
    epoch : int

    Returns
    -------
    BatchResult

    Raises
    ------
    ValueError
        Arrays of the wrong kind or of different lengths.
    """
    done, pa, errors = _run(
        frames, paging, root, va, pfec, not_smap, pdptes, pkru, base, size, written, epoch, True
    )
    return BatchResult(done, pa, int(errors[done]) if done < errors.size else NO_FAULT)


def walk_each(
    frames: Words,
    paging: Paging,
    root: int,
    va: npt.ArrayLike,
    pfec: npt.ArrayLike,
    *,
    not_smap: npt.ArrayLike | None = None,
    pdptes: Sequence[int] | None = None,
    pkru: int = 0,
    base: int = 0,
    size: int | None = None,
    written: npt.NDArray[np.uint32] | None = None,
    epoch: int = 0,
) -> tuple[Words, npt.NDArray[np.int32]]:
    """Walk for every access, whether it faults or not.

    Parameters are those of :func:`walk_batch`.

    Returns
    -------
    pa : numpy.ndarray, shape (n,), dtype uint64
        Physical addresses; 0 where the access faults.
    errors : numpy.ndarray, shape (n,), dtype int32
        Error codes; -1 where the access does not fault.
    """
    _, pa, errors = _run(
        frames, paging, root, va, pfec, not_smap, pdptes, pkru, base, size, written, epoch, False
    )
    return pa, errors
