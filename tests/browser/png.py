"""Just enough PNG to look at a screenshot's pixels."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

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
    out = np.zeros((height, width * channels), np.uint8)
    above = np.zeros(width * channels, np.uint8)
    for row, line in enumerate(lines):
        out[row] = above = _unfiltered(int(line[0]), line[1:], above, channels)
    return out.reshape(height, width, channels)[:, :, :3]


def _unfiltered(
    kind: int, line: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8], step: int
) -> npt.NDArray[np.uint8]:
    """Undo a line's filter (PNG specification, section 9)."""
    if kind == 0:
        return line
    if kind == 2:
        return line + above
    if kind == 1:
        return np.cumsum(line.reshape(-1, step), axis=0, dtype=np.uint8).ravel()
    done = bytearray(len(line))
    for index, value in enumerate(line.tolist()):
        left = done[index - step] if index >= step else 0
        up = int(above[index])
        corner = int(above[index - step]) if index >= step else 0
        done[index] = (value + ((left + up) // 2 if kind == 3 else _paeth(left, up, corner))) & 0xFF
    return np.frombuffer(bytes(done), np.uint8)


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
