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

from mmulab.trace.known import check, fits, record_fields

Integers = npt.NDArray[np.unsignedinteger[Any]]

_LIMITS = {"B": 1 << 8, "H": 1 << 16, "I": 1 << 32, "Q": 1 << 64}
_DTYPES = {"B": np.uint8, "H": np.uint16, "I": np.uint32, "Q": np.uint64}
_BLOCK = 256
"""Records between two counts of rows."""
SHIFT = 2
"""Stored is value + 2, so that 0 stands for None and 1 for -1."""


class Column:
    """The values of one field; as long as all are the same, only that one is kept.

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

    __slots__ = (
        "_array",
        "_constant",
        "_count",
        "_numbers",
        "aside",
        "boolean",
        "enum",
        "hint",
        "worded",
        "words",
    )

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        types = [t for t in (typing.get_args(hint) or (hint,)) if isinstance(t, type)]
        self.enum = next((t for t in types if issubclass(t, Enum)), None)
        self.boolean = bool in types
        self.worded = str in types or self.enum is not None
        self.words: list[Any] = []
        self.aside: dict[int, Any] = {}
        self._numbers: dict[Any, int] = {}
        self._array: array[int] | None = None
        self._constant = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

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
            stored = [self._stored(self._count + row, value) for row, value in enumerate(values)]
            low, top = min(stored), max(stored)
        if not self._count:
            self._constant = top
        if (self._array is None and low != top) or top != self._constant:
            self._spread(top)
        if self._array is not None:
            self._widen(top)
            self._array.extend(stored)
        self._count += len(stored)

    def _spread(self, top: int) -> None:
        """Begin an array with what was the same so far."""
        if self._array is None:
            code = _code(max(top, self._constant))
            self._array = array(code, [self._constant]) * self._count

    def _widen(self, top: int) -> None:
        assert self._array is not None
        code = _code(top)
        if _LIMITS[code] > _LIMITS[self._array.typecode]:
            self._array = array(code, self._array)

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
        stored = self._constant if self._array is None else self._array[row]
        if not stored:
            return self.aside.get(row)
        value = stored - SHIFT
        if self.worded:
            return self.words[value]
        return bool(value) if self.boolean else value

    def numbers(self) -> Integers:
        """Return value + 2 of each row, 0 for None and for values put aside, words by their number."""
        if self._array is None:
            return np.full(self._count, self._constant, _DTYPES[_code(self._constant)])
        return np.frombuffer(self._array, _DTYPES[self._array.typecode])

    @property
    def nbytes(self) -> int:
        """Memory of the array, in bytes."""
        return 0 if self._array is None else len(self._array) * self._array.itemsize

    def compact(self) -> Integers:
        """Return what a file holds: one number where all are the same, else :meth:`numbers`."""
        return self.numbers() if self._array is not None else self.numbers()[:1]

    def load(self, stored: Integers, count: int, words: Iterable[Any], aside: dict[int, Any]) -> None:
        """Take over what a file holds of `count` rows.

        Raises
        ------
        InputError
            A value that the field's annotation does not allow.
        ValueError
            Of another length; a word that is none of an enumeration.
        """
        if len(stored) != count and len(stored) != min(count, 1):
            raise ValueError(f"{len(stored)} values for {count} rows")
        if len(stored) == count and count > 1:
            code = next(code for code, dtype in _DTYPES.items() if dtype == stored.dtype)
            self._array = array(code, stored.tobytes())
        elif count:
            self._constant = int(stored[0])
        self._count = count
        self.words = [self.enum(word) if self.enum else word for word in words]
        self._numbers = {word: number for number, word in enumerate(self.words)}
        self.aside = aside
        self._check(stored)

    def _check(self, stored: Integers) -> None:
        """Look at what a file holds; with one value for all rows, what is aside stands for that."""
        top = int(stored.max(initial=0))
        if top - SHIFT >= (len(self.words) if self.worded else 2 if self.boolean else _LIMITS["Q"]):
            raise ValueError(f"value {top - SHIFT} of {'a word' if self.worded else 'a boolean'}")
        if (self.worded or self.boolean) and (stored == 1).any():
            raise ValueError("value -1 of a word or a boolean")
        for word in () if self.enum else self.words:
            check(word, str, "a word")
        for row, value in self.aside.items():
            if type(row) is not int or not 0 <= row < self._count:
                raise ValueError(f"row {row!r} of {self._count}")
            check(value, self.hint, "a value")
        none = int(np.count_nonzero(stored == 0)) * (self._count if len(stored) < self._count else 1)
        if none > len(self.aside) and not fits(None, self.hint):
            raise ValueError("nothing where there must be a value")


def _code(top: int) -> str:
    """Return the narrowest array code that holds `top`."""
    return next(code for code, limit in _LIMITS.items() if top < limit)


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
        # Rows before each block of records, by type; made when someone reads.
        self._before: npt.NDArray[np.uint32] | None = None
        for kind in kinds:
            self._add(kind)

    def _add(self, kind: type) -> None:
        self._numbers[kind] = len(self.tables)
        self.tables.append(Table(kind))

    def __len__(self) -> int:
        return len(self._kinds)

    def extend(self, records: Sequence[Any]) -> None:
        """Append records."""
        numbers = self._numbers
        batches: dict[type, list[Any]] = {}
        for record in records:
            kind = type(record)
            batch = batches.get(kind)
            if batch is None:
                batch = batches[kind] = []
                if kind not in numbers:
                    self._add(kind)
            batch.append(record)
        self._kinds.extend([numbers[type(record)] for record in records])
        for kind, batch in batches.items():
            self.tables[numbers[kind]].extend(batch)
        self._before = None

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self._kinds):
            raise IndexError(f"record {index} of {len(self._kinds)}")
        number = self._kinds[index]
        return self.tables[number][self._row(index, number)]

    def _row(self, index: int, number: int) -> int:
        """Return how many records of the type come before."""
        if self._before is None:
            self._before = self._count_blocks()
        block = index // _BLOCK
        return int(self._before[block, number]) + self._kinds[block * _BLOCK : index].count(number)

    def _count_blocks(self) -> npt.NDArray[np.uint32]:
        kinds, width = self.kinds(), len(self.tables)
        blocks = np.arange(len(kinds)) // _BLOCK
        inside = np.bincount(blocks * width + kinds, minlength=width * (len(kinds) // _BLOCK + 1))
        counts = inside.reshape(-1, width)
        return (np.cumsum(counts, axis=0) - counts).astype(np.uint32)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def kind(self, index: int) -> type:
        """Return the type of a record without making it."""
        return self.tables[self._kinds[index]].kind

    def kinds(self) -> npt.NDArray[np.uint8]:
        """Return for each record the place of its type in `tables`."""
        return np.frombuffer(self._kinds, np.uint8)

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
        return len(self) + sum(column.nbytes for column in columns)

    def load(self, kinds: npt.NDArray[np.uint8]) -> None:
        """Take over the order that a file holds; the tables have been filled one by one.

        Raises
        ------
        ValueError
            It is not that of these tables.
        """
        for number, table in enumerate(self.tables):
            rows = int(np.count_nonzero(kinds == number))
            if any(len(column) != rows for column in table.columns.values()):
                raise ValueError(f"{rows} records of {table.kind.__name__}, its columns have another number")
        if len(kinds) and int(kinds.max()) >= len(self.tables):
            raise ValueError(f"a record of type {int(kinds.max())} of {len(self.tables)}")
        self._kinds = array("B", kinds.tobytes())
