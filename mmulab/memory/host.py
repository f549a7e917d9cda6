"""Host physical memory: one array of 4 KiB frames.

Shadow tables, special roots and the guest's own memory are frames of the same
array, because the processor sees nothing else. Python reads and writes it
through memoryviews (plain ints), compiled code through :attr:`HostMemory.frames`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FRAME_WORDS = 512
FRAME_BYTES = 4096
READ_ACCESS, ALL_ACCESS = 1, 3
"""What a mapping of the VMM's allows: reads; reads and writes. 0 is nothing."""


class OutOfFramesError(RuntimeError):
    """The pool has no free frame left."""


class HostMemory:
    """A pool of frames, allocated once and never resized (zeroed memory is lazy).

    Frame 0 is never handed out. Frames for tables come from the low part, one
    at a time; the guest's backing is one aligned run behind them.

    Parameters
    ----------
    backing_bytes : int
        Size of the guest's backing in bytes, a multiple of 4096.
    table_frames : int
        Frames for shadow tables and special roots.
    align : int
        Alignment of the backing in bytes: the largest host page it may be made of.

    Attributes
    ----------
    frames : numpy.ndarray, shape (n, 512), dtype uint64
    words, dwords, bytes : memoryview
        The same memory as 64-, 32- and 8-bit unsigned integers.
    written : numpy.ndarray, shape (n,), dtype uint32
        For each frame, the epoch of the last write to it; see :attr:`epoch`.
    stamp : memoryview of `written`.
    epoch : int
        Number that writes leave in `written`. A checkpoint raises it, so that
        the next one copies only frames written since.
    backing : int
        Frame number of the backing's first page.
    page_level : dict of int to int
        2 MiB runs (frame >> 9) of the backing that the host has split into 4 KiB
        pages (1), or collapsed into a huge one (2), since.
    protection : dict of int to int
        Frames of the backing to which the VMM lacks :data:`ALL_ACCESS`.
    swapped, clean : dict of int to None
        Frames of the backing that are swapped out, and those that have come back to be read: the
        host's page table does not let them be written yet.
    """

    __slots__ = (
        "_free",
        "_next",
        "_table_frames",
        "backing",
        "backing_frames",
        "bytes",
        "clean",
        "dwords",
        "epoch",
        "frames",
        "page_level",
        "protection",
        "stamp",
        "swapped",
        "words",
        "written",
    )

    def __init__(self, backing_bytes: int, *, table_frames: int = 1 << 15, align: int = 1 << 21) -> None:
        if backing_bytes <= 0 or backing_bytes % FRAME_BYTES:
            raise ValueError(f"backing of {backing_bytes:#x} bytes is not a multiple of 4096")
        step = align // FRAME_BYTES
        self.backing = -(-(table_frames + 1) // step) * step
        self.backing_frames = backing_bytes // FRAME_BYTES
        count = self.backing + self.backing_frames
        self.frames: npt.NDArray[np.uint64] = np.zeros((count, FRAME_WORDS), np.uint64)
        self.written: npt.NDArray[np.uint32] = np.zeros(count, np.uint32)
        self.stamp = self.written.data
        flat = self.frames.data.cast("B")
        self.bytes = flat
        self.words = flat.cast("Q")
        self.dwords = flat.cast("I")
        self.epoch = 1
        self.page_level: dict[int, int] = {}
        self.protection: dict[int, int] = {}
        self.swapped: dict[int, None] = {}
        self.clean: dict[int, None] = {}
        self._table_frames = table_frames
        self._next = 1
        self._free: list[int] = []

    def alloc_frame(self, fill: int = 0) -> int:
        """Take a frame from the pool, each word of it `fill`, and return its number.

        The frame freed last is given out first, so a run's frame numbers depend
        only on what it did.

        Raises
        ------
        OutOfFramesError
        """
        if self._free:
            frame = self._free.pop()
            self.frames[frame] = fill
        else:
            if self._next > self._table_frames:
                raise OutOfFramesError(f"all {self._table_frames} table frames are in use")
            frame = self._next
            self._next += 1
            if fill:
                self.frames[frame] = fill
        self.stamp[frame] = self.epoch
        return frame

    def free_frame(self, frame: int) -> None:
        """Give a frame from :meth:`alloc_frame` back."""
        self._free.append(frame)

    def pool(self) -> tuple[int, list[int]]:
        """Return the pool's state: the first frame never handed out, and the freed ones."""
        return self._next, list(self._free)

    def restore_pool(self, first_fresh: int, freed: list[int]) -> None:
        """Put the pool back to what :meth:`pool` returned."""
        self._next, self._free = first_fresh, list(freed)

    def mapping_level(self, frame: int, backing_level: int) -> int:
        """Return the size of the host's page at `frame`: 1 (4 KiB) to 3 (1 GiB).

        `backing_level` is the size the slot's backing was made of.
        """
        return self.page_level.get(frame >> 9, backing_level)

    def access(self, frame: int) -> int:
        """Return what the VMM's mapping of a frame allows: 0, :data:`READ_ACCESS` or :data:`ALL_ACCESS`."""
        return self.protection.get(frame, ALL_ACCESS) if self.protection else ALL_ACCESS

    def is_special(self, frame: int) -> bool:
        """Whether the VMM's mapping of a frame does not simply allow reads and writes at once."""
        return frame in self.protection or frame in self.swapped or frame in self.clean

    def swap_out(self, frame: int) -> None:
        """Take a frame's page away; the frame stands for it until it is back."""
        self.clean.pop(frame, None)
        self.swapped[frame] = None

    def bring_in(self, frame: int, *, writable: bool) -> None:
        """Bring a frame's page back, if it is swapped out."""
        if frame in self.swapped:
            del self.swapped[frame]
            if not writable:
                self.clean[frame] = None

    def make_writable(self, frame: int) -> None:
        """Let a frame's page that is there be written."""
        self.clean.pop(frame, None)

    def protect(self, first: int, end: int, access: int) -> None:
        """Let the VMM's mapping of the frames from `first` to below `end` allow `access`."""
        for frame in range(first, end):
            if access == ALL_ACCESS:
                self.protection.pop(frame, None)
            else:
                self.protection[frame] = access

    def load64(self, hpa: int, level: int = 0) -> int:
        """Read the aligned 64-bit word at `hpa`; usable as a walk's ``load``."""
        return self.words[hpa >> 3]

    def store64(self, hpa: int, value: int) -> None:
        """Write the aligned 64-bit word at `hpa`; usable as a walk's ``store``."""
        self.words[hpa >> 3] = value
        self.stamp[hpa >> 12] = self.epoch

    def read(self, hpa: int, size: int) -> int:
        """Read `size` bytes at `hpa` as a little-endian integer."""
        return int.from_bytes(self.bytes[hpa : hpa + size], "little")

    def write(self, hpa: int, size: int, value: int) -> None:
        """Write `value` as `size` little-endian bytes at `hpa`, within one frame."""
        self.bytes[hpa : hpa + size] = value.to_bytes(size, "little")
        self.stamp[hpa >> 12] = self.epoch

    def words_but(self, frame: int, value: int) -> list[int]:
        """Return the indexes of the words of a frame that are not `value`."""
        words = self.frames[frame]
        found: list[int] = (words != value if value else words).nonzero()[0].tolist()
        return found

    def fill(self, hpa: int, length: int, byte: int) -> None:
        """Set `length` bytes from `hpa` to `byte`."""
        # Not through the memoryview: that needs a second copy of what is filled.
        self.frames.view(np.uint8).reshape(-1)[hpa : hpa + length] = byte
        first, last = hpa >> 12, (hpa + max(length, 1) - 1) >> 12
        self.written[first : last + 1] = self.epoch

    def __repr__(self) -> str:
        used = self._next - 1 - len(self._free)
        return (
            f"HostMemory({len(self.frames)} frames, {used} of {self._table_frames} table frames "
            f"used, backing {self.backing:#x}+{self.backing_frames:#x})"
        )
