"""Results tables in one parquet file: typed, and the same bytes for the same tables.

The file has a row for each row of each table. Column ``table`` names the table,
``row`` counts from 0 in each, and each column of a table has one here, called
``TABLE.COLUMN`` and null in the rows of other tables. Names, captions and the
number of rows stand in the file's metadata too, so a table without rows comes back.

What a column holds decides its type:

==================================  ========================================================
values (None aside)                 type
==================================  ========================================================
bools                               bool
ints from -2**63 to 2**63 - 1       int64
ints from 0 to 2**64 - 1            uint64
floats                              double
ints and floats                     double if it holds each of the ints exactly, else string
strings; anything else; only None   string, each value as the CSV file has it
==================================  ========================================================

So a column of one kind comes back as it was, and a mixed one as its words.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmulab import files
from mmulab.errors import InputError, named
from mmulab.report.results import Table

__all__ = ["PARQUET", "Stored", "array", "read_parquet", "read_stored", "write_parquet"]

PARQUET = "results.parquet"
"""Name of the file in a run's folder."""
_KEY = b"mmulab"


@dataclass(frozen=True, slots=True)
class Stored:
    """A table as the file has it.

    Attributes
    ----------
    name : str
    columns : tuple of str
    arrays : tuple of pyarrow.Array
        One a column.
    caption, fold : str
        As in :class:`mmulab.report.results.Table`.
    """

    name: str
    columns: tuple[str, ...]
    arrays: tuple[Any, ...]
    rows: int
    caption: str
    fold: str

    def table(self) -> Table:
        """Return it with plain values."""
        values = [column.to_pylist() for column in self.arrays]
        rows = list(zip(*values, strict=True)) if values else [()] * self.rows
        return Table(self.name, self.columns, rows, self.caption, self.fold)


def array(values: Sequence[Any]) -> Any:
    """Return `values` as a :class:`pyarrow.Array` of the type that they have in common."""
    import pyarrow

    known = [value for value in values if value is not None]
    kind = _kind(known)
    if kind == "string":
        values = [None if value is None else str(value) for value in values]
    return pyarrow.array(values, getattr(pyarrow, kind)())


def _kind(known: Sequence[Any]) -> str:
    """Return the name of the arrow type for values without None."""
    kinds = {_kind_of(value) for value in known}
    if kinds == {int}:
        low, high = min(known), max(known)
        if low >= -(1 << 63) and high < 1 << 63:
            return "int64"
        return "uint64" if low >= 0 and high < 1 << 64 else "string"
    if kinds == {bool}:
        return "bool_"
    if kinds and kinds <= {int, float} and all(map(_is_a_float, known)):
        return "float64"
    return "string"


def _kind_of(value: object) -> type:
    return next(kind for kind in (bool, int, float, str) if isinstance(value, kind))


def _is_a_float(value: float) -> bool:
    return isinstance(value, float) or (value.bit_length() < 1024 and int(float(value)) == value)


def write_parquet(tables: Iterable[Table], path: Path) -> None:
    """Write `tables` to the file `path`."""
    import pyarrow
    from pyarrow import parquet

    tables = list(tables)
    rows = [len(table.rows) for table in tables]
    names = ["table", "row"]
    columns = [
        pyarrow.array([table.name for table in tables for _ in table.rows], pyarrow.string()),
        pyarrow.array([number for count in rows for number in range(count)], pyarrow.int32()),
    ]
    for at, table in enumerate(tables):
        before, after = sum(rows[:at]), sum(rows[at + 1 :])
        for number, column in enumerate(table.columns):
            own = array([row[number] for row in table.rows])
            gaps = pyarrow.nulls(before, own.type), pyarrow.nulls(after, own.type)
            names.append(f"{table.name}.{column}")
            columns.append(pyarrow.concat_arrays([gaps[0], own, gaps[1]]))
    fields = [pyarrow.field(name, column.type) for name, column in zip(names, columns, strict=True)]
    schema = pyarrow.schema(fields, {_KEY: json.dumps([_described(table) for table in tables])})
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_arrays(columns, schema=schema), data)
    path.write_bytes(data.getvalue())


def _described(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "columns": list(table.columns),
        "rows": len(table.rows),
        "caption": table.caption,
        "fold": table.fold,
    }


def read_parquet(path: Path) -> list[Table]:
    """Return the tables in the file `path`, in the order in which they were written.

    Raises
    ------
    InputError
        It cannot be read, or :func:`write_parquet` did not write it.
    """
    return [stored.table() for stored in read_stored(path)]


def read_stored(path: Path) -> list[Stored]:
    """Return the tables in the file `path` as arrow arrays; raises as :func:`read_parquet` does."""
    import pyarrow
    from pyarrow import parquet

    data = files.read_bytes(path)
    try:
        # Arrow's pools of threads may abort a process that ends while they start; a small file needs none.
        whole = parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False).read(use_threads=False)
        described = json.loads(whole.schema.metadata[_KEY])
        columns = [column.combine_chunks() for column in whole.columns[2:]]
        if sum(item["rows"] for item in described) != whole.num_rows:
            raise ValueError("rows are missing")
        return list(_cut(described, columns))
    except (pyarrow.ArrowException, ValueError, KeyError, TypeError, IndexError) as error:
        mend = "run 'mmulab sweep' or 'mmulab report' again"
        raise InputError(f"{named(path)}: holds no results of mmulab; {mend}") from error


def _cut(described: Sequence[Any], columns: Sequence[Any]) -> Iterable[Stored]:
    """Cut the file's columns up into tables."""
    row = column = 0
    for item in described:
        names = tuple(item["columns"])
        own = columns[column : column + len(names)]
        arrays = tuple(found.slice(row, item["rows"]) for found in own)
        yield Stored(item["name"], names, arrays, item["rows"], item["caption"], item["fold"])
        row, column = row + item["rows"], column + len(names)
