"""Recorded data as files hold it: columns in an npz archive, a description in JSON beside it.

Everything is checked on reading, and what is wrong is said in one line that
names the file, the place in it and the mend.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.errors import InputError

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
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        archive = np.load(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: truncated, or no npz archive; {COPY_AGAIN}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{path}: one array and no npz archive; {COPY_AGAIN}")
    with archive:
        read = {name: _read_column(path, archive, name, column) for name, column in columns.items()}
    rows = {name: len(array) for name, array in read.items()}
    if len(set(rows.values())) > 1:
        raise InputError(f"{path}: columns of different lengths ({_counts(rows)}); {COPY_AGAIN}")
    return read


def _read_column(path: Path, archive: np.lib.npyio.NpzFile, name: str, column: Column) -> npt.NDArray[Any]:
    if name not in archive:
        raise InputError(f"{path}: no column '{name}', it has {', '.join(archive.files)}; {COPY_AGAIN}")
    try:
        array = archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: column '{name}' is truncated or damaged; {COPY_AGAIN}") from error
    if array.dtype != np.dtype(column.dtype):
        raise InputError(f"{path}: column '{name}' is {array.dtype}; write it as {column.dtype}")
    if array.ndim != (1 if column.width is None else 2) or array.shape[1:] not in ((), (column.width,)):
        wanted = "(n,)" if column.width is None else f"(n, {column.width})"
        raise InputError(f"{path}: column '{name}' has shape {array.shape}; write it as {wanted}")
    return array


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
        try:
            values = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; it belongs beside {path.stem}.npz") from error
        except ValueError as error:
            raise InputError(f"{path}: truncated, or no JSON ({error}); {COPY_AGAIN}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: no JSON object; {COPY_AGAIN}")
        return cls(str(path), values)

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
        shown = value if len(value) <= 40 else value[:37] + "..."
        return InputError(f"{self.where}: field '{name}' is {shown}; it must be {wanted}")
