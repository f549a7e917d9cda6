"""What things were at each checkpoint: a new version only where one changed.

A :class:`Versions` is a table of bytes by (key, checkpoint). The bytes at a
checkpoint are those of the last version up to it, so that a checkpoint costs
what changed since the one before, whatever the size of the whole.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

CHECKPOINT_BITS = 20
MAX_CHECKPOINTS = 1 << CHECKPOINT_BITS
KEY_BITS = 64 - CHECKPOINT_BITS

VERSION_ARRAYS = ("places", "ends", "blob")
"""What a file holds of a table, in the order of :meth:`Versions.of_arrays`."""

U64 = npt.NDArray[np.uint64]


class Versions:
    """Versions of the things of one kind, each with an integer key below 2**44.

    Versions are put in the order of their checkpoints; :meth:`freeze` ends that
    and makes them readable.
    """

    __slots__ = ("_blob", "_ends", "_places", "_sorted", "_starts", "_stops")

    def __init__(self) -> None:
        self._places = array("Q")
        self._ends = array("Q")
        self._blob = bytearray()
        self._sorted: U64 = np.zeros(0, np.uint64)
        self._starts: U64 = np.zeros(0, np.uint64)
        self._stops: U64 = np.zeros(0, np.uint64)

    def put(self, key: int, checkpoint: int, data: bytes) -> None:
        """Add the version that `key` has from `checkpoint` on; empty: it is gone.

        Raises
        ------
        OverflowError
            A key or a checkpoint that there is no room for.
        """
        if not (0 <= key < 1 << KEY_BITS and checkpoint < MAX_CHECKPOINTS):
            raise OverflowError(f"no room for key {key:#x} at checkpoint {checkpoint}")
        self._places.append(key << CHECKPOINT_BITS | checkpoint)
        self._blob += data
        self._ends.append(len(self._blob))

    def freeze(self) -> None:
        """End the writing."""
        places = np.frombuffer(self._places, np.uint64)
        order = np.argsort(places, kind="stable")
        ends = np.frombuffer(self._ends, np.uint64)
        starts = np.concatenate([np.zeros(1, np.uint64), ends[:-1]])
        self._sorted, self._starts, self._stops = places[order], starts[order], ends[order]

    def get(self, key: int, checkpoint: int) -> bytes:
        """Return what `key` was at `checkpoint`; empty if there was no such thing."""
        if not 0 <= key < 1 << KEY_BITS:
            return b""
        row = int(np.searchsorted(self._sorted, np.uint64(key << CHECKPOINT_BITS | checkpoint), "right")) - 1
        if row < 0 or int(self._sorted[row]) >> CHECKPOINT_BITS != key:
            return b""
        return bytes(self._blob[int(self._starts[row]) : int(self._stops[row])])

    def get_all(self, keys: list[int], checkpoint: int) -> list[bytes]:
        """Return what each of `keys` was at `checkpoint`."""
        if not len(self._sorted):
            return [b""] * len(keys)
        wanted = np.array(keys, np.uint64)
        places = wanted << np.uint64(CHECKPOINT_BITS) | np.uint64(checkpoint)
        rows = np.searchsorted(self._sorted, places, "right") - 1
        known = (rows >= 0) & (self._sorted[rows] >> np.uint64(CHECKPOINT_BITS) == wanted)
        starts = np.where(known, self._starts[rows], 0).tolist()
        stops = np.where(known, self._stops[rows], 0).tolist()
        blob = self._blob
        return [bytes(blob[start:stop]) for start, stop in zip(starts, stops, strict=True)]

    def keys(self, checkpoint: int) -> list[int]:
        """Return the keys of what there was at `checkpoint`, ascending."""
        rows = self._rows_at(checkpoint)
        there = rows[self._stops[rows] > self._starts[rows]]
        keys: list[int] = (self._sorted[there] >> np.uint64(CHECKPOINT_BITS)).tolist()
        return keys

    def changed(self, before: int, after: int) -> list[int]:
        """Return the keys whose version at one checkpoint is not that at the other, ascending.

        `before` may be -1: then all that there is at `after`.
        """
        if before == -1:
            return self.keys(after)
        low, high = min(before, after), max(before, after)
        checkpoints = self._sorted & np.uint64(MAX_CHECKPOINTS - 1)
        between = (checkpoints > low) & (checkpoints <= high)
        keys: list[int] = np.unique(self._sorted[between] >> np.uint64(CHECKPOINT_BITS)).tolist()
        return keys

    def _rows_at(self, checkpoint: int) -> npt.NDArray[np.intp]:
        """Return the row of each key's version at `checkpoint`, of the keys that have one."""
        known = np.flatnonzero((self._sorted & np.uint64(MAX_CHECKPOINTS - 1)) <= checkpoint)
        keys = self._sorted[known] >> np.uint64(CHECKPOINT_BITS)
        last = np.flatnonzero(np.append(keys[1:] != keys[:-1], True)) if len(keys) else np.zeros(0, np.intp)
        return known[last]

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a file holds of a frozen table."""
        held = (
            np.frombuffer(self._places, np.uint64),
            np.frombuffer(self._ends, np.uint64),
            np.frombuffer(self._blob, np.uint8),
        )
        return dict(zip(VERSION_ARRAYS, held, strict=True))

    @classmethod
    def of_arrays(cls, places: U64, ends: U64, blob: npt.NDArray[np.uint8]) -> Versions:
        """Return a frozen table from what a file holds.

        Raises
        ------
        ValueError
            The three do not fit together.
        """
        if len(places) != len(ends) or (ends[1:] < ends[:-1]).any():
            raise ValueError("versions out of order")
        if (int(ends[-1]) if len(ends) else 0) != len(blob):
            raise ValueError(f"versions of {len(blob)} bytes, their ends say otherwise")
        made = cls()
        made._places = array("Q", places.tobytes())
        made._ends = array("Q", ends.tobytes())
        made._blob = bytearray(blob.tobytes())
        made.freeze()
        return made

    @property
    def nbytes(self) -> int:
        """Memory used, in bytes."""
        return len(self._blob) + 16 * len(self._places) + 24 * len(self._sorted)
