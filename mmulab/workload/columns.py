"""Recorded data as files hold it: columns in an npz archive, a description in JSON beside it.

Everything is checked on reading, and what is wrong is said in one line that
names the file, the place in it and the mend.
"""

from __future__ import annotations

import json
import lzma
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab import files, limits
from mmulab.errors import InputError, named, quoted

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    TokenError,
    RecursionError,
    NotImplementedError,  # a way of packing that zipfile does not know
    RuntimeError,  # an encrypted part
)
"""What reading a damaged npz archive raises."""
COPY_AGAIN = "copy it again from where it came"


class Column(NamedTuple):
    """What a column must be.

    Attributes
    ----------
    dtype : str
        Name of a numpy dtype.
    width : int or None
        Length of the second axis; None for a column of one axis.
    """

    dtype: str
    width: int | None = None


def read_columns(path: Path, columns: Mapping[str, Column]) -> dict[str, npt.NDArray[Any]]:
    """Read the named columns of an npz archive; all must have the same number of rows.

    Raises
    ------
    InputError
        No such file, a truncated or damaged one, a missing column, a wrong
        dtype or shape.
    """
    size = files.check_file(path)
    try:
        archive = zipfile.ZipFile(path)
    except (*_DAMAGE, OSError) as error:
        raise InputError(f"{named(path)}: truncated, or no npz archive; {COPY_AGAIN}") from error
    with archive:
        _check_claims(path, archive, size)
        read = {name: _read_column(path, archive, name, column) for name, column in columns.items()}
    rows = {name: len(array) for name, array in read.items()}
    if len(set(rows.values())) > 1:
        raise InputError(f"{named(path)}: columns of different lengths ({_counts(rows)}); {COPY_AGAIN}")
    return read


def _check_claims(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    """Refuse what is more than a file may unpack to, before anything is unpacked."""
    members = archive.infolist()
    if len(members) > limits.ARCHIVE_MEMBERS:
        raise InputError(f"{named(path)}: {len(members)} parts; the limit is {limits.ARCHIVE_MEMBERS}")
    total = sum(member.file_size for member in members)
    if total > limits.UNPACKED_BYTES:
        raise InputError(f"{named(path)}: unpacks to {total} bytes; the limit is {limits.UNPACKED_BYTES}")
    if any(member.compress_size > size for member in members):
        raise InputError(f"{named(path)}: truncated, or no npz archive; {COPY_AGAIN}")


def _read_column(path: Path, archive: zipfile.ZipFile, name: str, column: Column) -> npt.NDArray[Any]:
    if f"{name}.npy" not in archive.namelist():
        has = quoted(", ".join(part.removesuffix(".npy") for part in archive.namelist()))
        raise InputError(f"{named(path)}: no column '{name}', it has {has}; {COPY_AGAIN}")
    claimed = archive.getinfo(f"{name}.npy").file_size
    try:
        with archive.open(f"{name}.npy") as member:
            shape, fortran, dtype = _read_header(member)
            _check_column(path, name, column, shape, dtype)
            if claimed - member.tell() != dtype.itemsize * math.prod(shape):
                raise ValueError("the header claims another size than the archive")
            data = member.read()
    except InputError:
        raise
    except (*_DAMAGE, OSError) as error:
        raise InputError(
            f"{named(path)}: column '{name}' is truncated or damaged ({quoted(error)}); {COPY_AGAIN}"
        ) from error
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read what numpy writes before an array: shape, order and dtype."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(member)
    raise ValueError(f"npy version {version}, expected 1.0 or 2.0")


def _check_column(
    path: Path, name: str, column: Column, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    if dtype != np.dtype(column.dtype):
        raise InputError(f"{named(path)}: column '{name}' is {quoted(dtype)}; write it as {column.dtype}")
    fits = len(shape) == (1 if column.width is None else 2) and shape[1:] in ((), (column.width,))
    if not fits or shape[0] < 0:
        wanted = "(n,)" if column.width is None else f"(n, {column.width})"
        raise InputError(f"{named(path)}: column '{name}' has shape {quoted(shape)}; write it as {wanted}")


def _counts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in rows.items())


class Fields:
    """The fields of a JSON object, checked when asked for.

    Parameters
    ----------
    where : str
        File and place, for messages.
    values : mapping
    """

    __slots__ = ("values", "where")

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where = where
        self.values = values

    @classmethod
    def of_file(cls, path: Path) -> Fields:
        """Read the JSON object in `path`.

        Raises
        ------
        InputError
        """
        if not path.exists():
            raise InputError(f"{named(path)}: no such file; it belongs beside {quoted(path.stem)}.npz")
        values = files.parse_json(files.read_bytes(path, limits.TEXT_BYTES), named(path))
        if not isinstance(values, dict):
            raise InputError(f"{named(path)}: no JSON object; {COPY_AGAIN}")
        return cls(named(path), values)

    def get(self, name: str) -> Any:
        """Return the value of a field that must be there."""
        if name not in self.values:
            raise InputError(f"{self.where}: no field '{name}'; {COPY_AGAIN}")
        return self.values[name]

    def text(self, name: str) -> str:
        """Return a text."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def number(self, name: str, bits: int = 64) -> int:
        """Return an unsigned number of at most `bits` bits, in JSON's form or as text (``0x1f``)."""
        value = self.get(name)
        if isinstance(value, str):
            try:
                value = int(value, 0)
            except ValueError:
                raise self.wrong(name, "a number such as 31 or '0x1f'") from None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
            raise self.wrong(name, f"an unsigned number of {bits} bits")
        return value

    def records(self, name: str) -> list[Fields]:
        """Return the objects of a list."""
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(name, "a list of objects")
        return [Fields(f"{self.where}: {name}[{i}]", item) for i, item in enumerate(value)]

    def wrong(self, name: str, wanted: str) -> InputError:
        """Return the error of a field that is not what it must be."""
        value = json.dumps(self.values.get(name))
        return InputError(f"{self.where}: field '{quoted(name)}' is {quoted(value, 40)}; it must be {wanted}")
