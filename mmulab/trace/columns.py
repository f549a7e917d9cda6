"""Logs of small typed records, kept in columns: a million events in a few tens of megabytes.

A :class:`Log` holds records of several types (events, ops, outcomes) in order.
Each type has a table with a column for each of its fields, in the narrowest
unsigned integers that hold its values. Nothing is lost: what does not fit an
integer column is kept beside it.
"""

from __future__ import annotations

import typing
from array import array
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from mmulab.trace.codec import record_fields

Integers = npt.NDArray[np.unsignedinteger[Any]]

_LIMITS = {"B": 1 << 8, "H": 1 << 16, "I": 1 << 32, "Q": 1 << 64}
_DTYPES = {"B": np.uint8, "H": np.uint16, "I": np.uint32, "Q": np.uint64}
SHIFT = 2
"""Stored is value + 2, so that 0 stands for None and 1 for -1."""


class Column:
    """The values of one field.

    Parameters
    ----------
    hint : object
        The field's annotation. Integers and booleans go into the array, strings
        and enumerators as numbers of `words`.

    Attributes
    ----------
    words : list
        Distinct strings or enumerators, in the order in which they came.
    aside : dict of int to object
        Row to value, of what the array cannot hold.
    """

    __slots__ = ("_array", "_numbers", "aside", "boolean", "enum", "worded", "words")

    def __init__(self, hint: Any) -> None:
        types = [t for t in (typing.get_args(hint) or (hint,)) if isinstance(t, type)]
        self.enum = next((t for t in types if issubclass(t, Enum)), None)
        self.boolean = bool in types
        self.worded = str in types or self.enum is not None
        self.words: list[Any] = []
        self.aside: dict[int, Any] = {}
        self._numbers: dict[Any, int] = {}
        self._array = array("B")

    def __len__(self) -> int:
        return len(self._array)

    def extend(self, values: Sequence[Any]) -> None:
        """Append values."""
        if self.worded:
            values = [None if value is None else self._number(value) for value in values]
        try:
            stored = [0 if value is None else value + SHIFT for value in values]
            low, top = min(stored), max(stored)
            plain = low >= 0 and top < _LIMITS["Q"]
        except TypeError:
            plain = False
        if not plain:
            stored = [self._stored(len(self._array) + row, value) for row, value in enumerate(values)]
            top = max(stored)
        code = next(code for code, limit in _LIMITS.items() if top < limit)
        if _LIMITS[code] > _LIMITS[self._array.typecode]:
            self._array = array(code, self._array)
        self._array.extend(stored)

    def _number(self, word: Any) -> int:
        number = self._numbers.setdefault(word, len(self.words))
        if number == len(self.words):
            self.words.append(word)
        return number

    def _stored(self, row: int, value: Any) -> int:
        """Return the array's integer for `value`, which is put aside if it has none."""
        if value is None:
            return 0
        if isinstance(value, int) and 0 <= value + SHIFT < _LIMITS["Q"]:
            return value + SHIFT
        self.aside[row] = value
        return 0

    def __getitem__(self, row: int) -> Any:
        stored = self._array[row]
        if not stored:
            return self.aside.get(row)
        value = stored - SHIFT
        if self.worded:
            return self.words[value]
        return bool(value) if self.boolean else value

    def numbers(self) -> Integers:
        """Return the array: value + 2, 0 for None and for values put aside, words by their number."""
        return np.frombuffer(self._array, _DTYPES[self._array.typecode])

    @property
    def nbytes(self) -> int:
        """Memory of the array, in bytes."""
        return len(self._array) * self._array.itemsize

    def load(self, stored: Integers, words: Iterable[Any], aside: dict[int, Any]) -> None:
        """Take over what a file holds."""
        code = next(code for code, dtype in _DTYPES.items() if dtype == stored.dtype)
        self._array = array(code, stored.tobytes())
        self.words = [self.enum(word) if self.enum else word for word in words]
        self._numbers = {word: number for number, word in enumerate(self.words)}
        self.aside = aside


class Table:
    """All records of one type.

    Attributes
    ----------
    kind : type
        NamedTuple or dataclass.
    columns : dict of str to Column
    """

    __slots__ = ("columns", "is_tuple", "kind")

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.is_tuple = issubclass(kind, tuple)
        self.columns = {name: Column(hint) for name, hint in record_fields(kind).items()}

    def extend(self, records: Sequence[Any]) -> None:
        """Append records."""
        if self.is_tuple:
            rows = zip(*records, strict=True)
            for column, values in zip(self.columns.values(), rows, strict=False):
                column.extend(values)
        else:
            for name, column in self.columns.items():
                column.extend([getattr(record, name) for record in records])

    def __getitem__(self, row: int) -> Any:
        return self.kind(**{name: column[row] for name, column in self.columns.items()})


class Log:
    """Records of several types in the order in which they came.

    Parameters
    ----------
    kinds : iterable of type
        Types that may come; others are added as they come.
    """

    def __init__(self, kinds: Iterable[type] = ()) -> None:
        self.tables: list[Table] = []
        self._numbers: dict[type, int] = {}
        self._kinds = array("B")
        self._rows = array("I")
        self._counts: list[int] = []
        for kind in kinds:
            self._add(kind)

    def _add(self, kind: type) -> int:
        self._numbers[kind] = len(self.tables)
        self.tables.append(Table(kind))
        self._counts.append(0)
        return self._numbers[kind]

    def __len__(self) -> int:
        return len(self._kinds)

    def extend(self, records: Sequence[Any]) -> None:
        """Append records."""
        numbers, counts = self._numbers, self._counts
        batches: dict[type, list[Any]] = {}
        for record in records:
            kind = type(record)
            batch = batches.get(kind)
            if batch is None:
                batch = batches[kind] = []
                if kind not in numbers:
                    self._add(kind)
            number = numbers[kind]
            self._kinds.append(number)
            self._rows.append(counts[number])
            counts[number] += 1
            batch.append(record)
        for kind, batch in batches.items():
            self.tables[numbers[kind]].extend(batch)

    def __getitem__(self, index: int) -> Any:
        return self.tables[self._kinds[index]][self._rows[index]]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def kind(self, index: int) -> type:
        """Return the type of a record without making it."""
        return self.tables[self._kinds[index]].kind

    def kinds(self) -> npt.NDArray[np.uint8]:
        """Return for each record the place of its type in `tables`."""
        return np.frombuffer(self._kinds, np.uint8)

    def rows(self) -> npt.NDArray[np.uint32]:
        """Return for each record its row in its type's table."""
        return np.frombuffer(self._rows, np.uint32)

    def places(self, kind: type) -> npt.NDArray[np.intp]:
        """Return the indices of the records of one type, ascending."""
        number = self._numbers.get(kind)
        if number is None:
            return np.zeros(0, np.intp)
        return np.flatnonzero(self.kinds() == number)

    def column(self, kind: type, name: str) -> Column | None:
        """Return a field's column over :meth:`places` of its type, None if no record is of it."""
        number = self._numbers.get(kind)
        return None if number is None else self.tables[number].columns[name]

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        columns = (column for table in self.tables for column in table.columns.values())
        return 5 * len(self) + sum(column.nbytes for column in columns)

    def load(self, kinds: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint32]) -> None:
        """Take over the order that a file holds; the tables are filled one by one."""
        self._kinds = array("B", kinds.tobytes())
        self._rows = array("I", rows.tobytes())
        self._counts = np.bincount(kinds, minlength=len(self.tables)).tolist()
