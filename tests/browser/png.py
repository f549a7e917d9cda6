"""Just enough PNG to look at a screenshot's pixels."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt
from numba import njit

_CHANNELS = {2: 3, 6: 4}


def pixels(png: bytes) -> npt.NDArray[np.uint8]:
    """Return the pixels of an 8-bit RGB or RGBA image without interlacing.

    Returns
    -------
    numpy.ndarray, shape (height, width, 3), dtype uint8
    """
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    packed, at, header = b"", 8, b""
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        chunk = png[at + 8 : at + 8 + length]
        header = chunk if kind == b"IHDR" else header
        packed += chunk if kind == b"IDAT" else b""
        at += 12 + length
    width, height, depth, color, *_, interlace = struct.unpack(">IIBBBBB", header)
    assert (depth, interlace) == (8, 0)
    channels = _CHANNELS[color]
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    return _unfiltered(lines, channels).reshape(height, width, channels)[:, :, :3]


@njit
def _unfiltered(lines: npt.NDArray[np.uint8], step: int) -> npt.NDArray[np.uint8]:
    """Undo each line's filter (PNG specification, section 9)."""
    height, width = lines.shape[0], lines.shape[1] - 1
    out = np.zeros((height, width), np.uint8)
    for row in range(height):
        kind = lines[row, 0]
        for index in range(width):
            left = int(out[row, index - step]) if index >= step else 0
            up = int(out[row - 1, index]) if row else 0
            corner = int(out[row - 1, index - step]) if row and index >= step else 0
            guess = 0
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = up
            elif kind == 3:
                guess = (left + up) // 2
            elif kind == 4:
                far_left, far_up = abs(up - corner), abs(left - corner)
                far_corner = abs(left + up - 2 * corner)
                guess = corner
                if far_left <= far_up and far_left <= far_corner:
                    guess = left
                elif far_up <= far_corner:
                    guess = up
            out[row, index] = (int(lines[row, index + 1]) + guess) & 0xFF
    return out
