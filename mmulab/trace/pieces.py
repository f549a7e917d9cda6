"""The pieces of a machine's state as bytes: frames, shadow pages, lists of sptes."""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.kvm.memslot import PteList
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import SPTE_ENT_PER_PAGE
from mmulab.limits import PIECE_BYTES
from mmulab.trace.known import check

Frame = npt.NDArray[np.uint64]

SPARSE_WORDS = 200
"""A frame of at most so many non-zero words is kept as those words."""
LONG = 200
"""A page's text of more bytes is compressed."""


class Codec(NamedTuple):
    """How the entries of one table become bytes.

    Attributes
    ----------
    encode : callable
        From an entry to bytes, of which there is at least one.
    decode : callable
        From the entry's key and those bytes.
    """

    encode: Callable[[Any], bytes]
    decode: Callable[[int, bytes], Any]


def unpack(data: bytes, limit: int = PIECE_BYTES) -> bytes:
    """Return what was compressed with zlib.

    Raises
    ------
    ValueError
        More than `limit` bytes, or not all of it.
    zlib.error
    """
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(data, limit)
    if not unpacker.eof:
        raise ValueError(f"a piece that is cut, or of more than {limit} bytes")
    return text


def encode_frame(words: Frame) -> bytes:
    """Return the 512 words of a frame as bytes: of one value, sparse, or compressed."""
    places = np.flatnonzero(words)
    if len(places) <= SPARSE_WORDS:
        return b"s" + places.astype("<u2").tobytes() + words[places].tobytes()
    if (words == words[0]).all():
        return b"u" + words[:1].tobytes()
    return b"z" + zlib.compress(words.tobytes(), 1)


ZERO_FRAME = b"s"
"""A frame without a non-zero word: what every frame is before it is written."""


def decode_frame(data: bytes, words: Frame) -> None:
    """Set the 512 words of a frame to what `data` holds."""
    kind, data = data[:1], data[1:]
    if kind == b"z":
        words[:] = np.frombuffer(unpack(data, words.nbytes), np.uint64)
    elif kind == b"u":
        words[:] = np.frombuffer(data, np.uint64)[0]
    else:
        count = len(data) // 10
        words[:] = 0
        words[np.frombuffer(data, "<u2", count)] = np.frombuffer(data, np.uint64, count, 2 * count)


_PAGE_NAMES = tuple(name for name in ShadowPage.__slots__ if name != "frame")
_BITMAP = "unsync_child_bitmap"
"""The one integer of more than 64 bits: one for each entry."""
_PAGE_HINTS: dict[str, Any] = {
    **dict.fromkeys(_PAGE_NAMES, int),
    "parent_ptes": list[list[int]],
    "shadowed_translation": dict[int, int],
}


def _encode_page(page: ShadowPage) -> bytes:
    row = [getattr(page, name) for name in _PAGE_NAMES]
    row = [{"d": [list(value), list(value.values())]} if type(value) is dict else value for value in row]
    text = json.dumps(row, separators=(",", ":")).encode()
    return b"z" + zlib.compress(text, 1) if len(text) > LONG else b"j" + text


def _decode_page(frame: int, data: bytes) -> ShadowPage:
    text = unpack(data[1:]) if data[:1] == b"z" else data[1:]
    page = ShadowPage.__new__(ShadowPage)
    page.frame = frame
    for name, value in zip(_PAGE_NAMES, json.loads(text), strict=True):
        made = dict(zip(*value["d"], strict=True)) if type(value) is dict else value
        if name == _BITMAP and type(made) is int:
            made &= (1 << SPTE_ENT_PER_PAGE) - 1
        else:
            check(made, _PAGE_HINTS[name], f"{name} of a page")
        setattr(page, name, made)
    return page


def _encode_pte_list(head: PteList) -> bytes:
    lengths = array("H", [len(head), *map(len, head)])
    return lengths.tobytes() + array("Q", [sptep for block in head for sptep in block]).tobytes()


def _decode_pte_list(key: int, data: bytes) -> PteList:
    blocks = array("H", data[:2])[0]
    lengths = array("H", data[2 : 2 + 2 * blocks])
    flat = array("Q", data[2 + 2 * blocks :]).tolist()
    head = []
    at = 0
    for length in lengths:
        head.append(flat[at : at + length])
        at += length
    return head


PAGE = Codec(_encode_page, _decode_page)
PTE_LIST = Codec(_encode_pte_list, _decode_pte_list)
INTEGERS = Codec(
    lambda values: b"i" + array("Q", values).tobytes(),
    lambda key, data: array("Q", data[1:]).tolist(),
)
INTEGER = Codec(
    lambda value: int(value).to_bytes(8, "little", signed=True),
    lambda key, data: int.from_bytes(data, "little", signed=True),
)
