"""Zip archives of numpy arrays, as ``npz`` files and recordings are, read with nothing taken on trust.

What an archive claims is compared with what it holds before memory is taken
for it, arrays hold plain numbers, and damage of any kind is one line that names
the file and the part.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmulab import limits
from mmulab.errors import InputError, named, quoted
from mmulab.files import check_file, reason

Array = npt.NDArray[Any]

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,  # a way of compression that zipfile does not know
    RuntimeError,  # an encrypted part
    ValueError,
)
_MOST_AXES = 8
_HEADER_DAMAGE = (
    EOFError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)
"""What numpy raises of a header, which is the text of a Python dictionary."""


class Archive:
    """A zip archive, opened by :func:`open_archive`.

    Attributes
    ----------
    path : pathlib.Path
    again : str
        How a file that is damaged is mended, for messages.
    names : list of str
        Its parts.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, again: str) -> None:
        self.path = path
        self.again = again
        self._archive = archive
        members = archive.infolist()
        self.names = [member.filename for member in members]
        if len(members) > limits.ARCHIVE_MEMBERS:
            raise self.wrong(f"{len(members)} parts; the limit is {limits.ARCHIVE_MEMBERS}")
        if len(set(self.names)) < len(self.names):
            raise self.wrong("two parts of one name")
        total = sum(member.file_size for member in members)
        if total > limits.UNPACKED_BYTES:
            raise self.wrong(f"unpacks to {total} bytes; the limit is {limits.UNPACKED_BYTES}")

    def wrong(self, what: str) -> InputError:
        """Return the error of a file in which `what` is wrong."""
        return InputError(f"{named(self.path)}: {what}; {self.again}")

    def read(self, name: str) -> bytes:
        """Return the content of one part.

        Raises
        ------
        InputError
            It is missing or damaged.
        """
        if name not in self.names:
            raise self.wrong(f"{quoted(name)} is missing from the file")
        try:
            return self._archive.read(name)
        except (*_DAMAGE, OSError) as error:
            raise self.wrong(f"{quoted(name)} is cut or damaged") from error

    def array(self, name: str, dtypes: Collection[str], ndim: int | None = 1) -> Array:
        """Return the array in the part ``NAME.npy``; it may be written to.

        Parameters
        ----------
        name : str
        dtypes : collection of str
            Names of the dtypes that it may have.
        ndim : int or None
            Axes that it must have; None for any number.

        Raises
        ------
        InputError
            The part is missing or damaged, of another dtype or shape, or does
            not hold as many numbers as it says.
        """
        data = self.read(f"{name}.npy")
        buffer = io.BytesIO(data)
        try:
            shape, fortran, dtype = _header(buffer)
        except _HEADER_DAMAGE as error:
            raise self.wrong(f"{quoted(name)} is no array") from error
        if dtype.name not in dtypes or dtype.hasobject or not dtype.isnative:
            raise self.wrong(f"{quoted(name)} is {quoted(dtype)}, expected {' or '.join(dtypes)}")
        if ndim is not None and len(shape) != ndim:
            raise self.wrong(f"{quoted(name)} has {len(shape)} axes, expected {ndim}")
        held = data[buffer.tell() :]
        if math.prod(shape) * dtype.itemsize != len(held):
            raise self.wrong(
                f"{quoted(name)} says that its shape is {quoted(shape)}, and holds {len(held)} bytes"
            )
        flat = np.frombuffer(held, dtype).copy()
        return flat.reshape(shape, order="F" if fortran else "C")


def _header(buffer: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return what the header of numpy's format says: shape, order, dtype."""
    version = np.lib.format.read_magic(buffer)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of numpy's format")
    shape, fortran, dtype = readers[version](buffer)
    if len(shape) > _MOST_AXES or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"shape {shape}")  # numpy lets True and -1 pass
    return shape, fortran, dtype


@contextmanager
def open_archive(path: Path, again: str, limit: int = limits.RECORDING_BYTES) -> Iterator[Archive]:
    """Open a zip archive of at most `limit` bytes.

    Raises
    ------
    InputError
        No such file; no archive; more than the limits allow.
    """
    check_file(path, limit)
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise InputError(f"{named(path)}: {reason(error)}") from error
    except _DAMAGE as error:
        raise InputError(f"{named(path)}: cut or damaged, or no archive; {again}") from error
    with archive:
        yield Archive(path, archive, again)
