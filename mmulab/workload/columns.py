"""Recorded data as files hold it: columns in an npz archive, a description in JSON beside it.

Everything is checked on reading, and what is wrong is said in one line that
names the file, the place in it and what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from mmulab.archive import Archive, open_archive
from mmulab.errors import InputError, quoted
from mmulab.files import parse_json, read_text

_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19}")
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
    with open_archive(path, COPY_AGAIN) as archive:
        read = {name: _read_column(path, archive, name, column) for name, column in columns.items()}
    rows = {name: len(array) for name, array in read.items()}
    if len(set(rows.values())) > 1:
        raise InputError(f"{path}: columns of different lengths ({_counts(rows)}); {COPY_AGAIN}")
    return read


def _read_column(path: Path, archive: Archive, name: str, column: Column) -> npt.NDArray[Any]:
    if f"{name}.npy" not in archive.names:
        held = quoted(", ".join(part.removesuffix(".npy") for part in archive.names))
        raise InputError(f"{path}: no column '{name}', it has {held}; {COPY_AGAIN}")
    array = archive.array(name, (column.dtype,), ndim=None)
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
        if not path.exists():
            raise InputError(f"{path}: no such file; it belongs beside {path.stem}.npz")
        values = parse_json(read_text(path), str(path))
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
                value = int(value if _NUMBER.fullmatch(value) else "", 0)
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
        shown = quoted(json.dumps(self.values.get(name)), 40)
        return InputError(f"{self.where}: field '{quoted(name)}' is {shown}; it must be {wanted}")
