"""Tables in parquet: what comes back, what type each column gets, the same bytes again."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mmulab.errors import InputError
from mmulab.report.results import Table, Value
from mmulab.report.tables import array, read_parquet, read_stored, write_parquet

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
COLUMN_KINDS = (
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**64 - 1),
    st.floats(allow_nan=False),
    TEXT,
)
NAMES = st.text("abAB_-1", min_size=1, max_size=3).filter(lambda name: name.strip("-_"))


@st.composite
def some_tables(draw: st.DrawFn) -> list[Table]:
    """Tables of which each column has values of one kind, or None."""
    found = []
    for name in draw(st.lists(NAMES, unique=True, max_size=3)):
        columns = draw(st.lists(TEXT, unique=True, max_size=3))
        count = draw(st.integers(0, 4))
        kinds = [st.none() | draw(st.sampled_from(COLUMN_KINDS)) for _ in columns]
        rows = [[draw(kind) for kind in kinds] for _ in range(count)]
        found.append(Table(name, columns, rows, draw(TEXT), draw(st.sampled_from(["", *columns]))))
    return found


@given(some_tables())
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, tables: list[Table]) -> None:
    path = tmp_path_factory.mktemp("tables") / "results.parquet"
    write_parquet(tables, path)
    read = read_parquet(path)
    assert read == tables
    assert [table.csv() for table in read] == [table.csv() for table in tables], "a kind changed"
    first = path.read_bytes()
    write_parquet(read, path)
    assert path.read_bytes() == first


@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT))
def test_mixed_column_loses_nothing(values: list[Value]) -> None:
    column = array(values)
    read = column.to_pylist()
    assert [value is None for value in read] == [value is None for value in values]
    pairs = [(a, b) for a, b in zip(values, read, strict=True) if a is not None]
    if pyarrow.types.is_string(column.type):
        assert all(b == str(a) for a, b in pairs)
    else:
        assert all(a == b for a, b in pairs)
        assert len({type(a) is bool for a, _ in pairs}) <= 1, "a bool became a number"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, None], "bool"),
        ([1, -(2**63), 2**63 - 1], "int64"),
        ([0, 2**64 - 1], "uint64"),
        ([-1, 2**63], "string"),
        ([2**64], "string"),
        ([1.5, math.inf], "double"),
        ([1, 2.5, None], "double"),
        ([2**53, 0.5], "double"),
        ([2**53 + 1, 0.5], "string"),
        ([10**400, 0.5], "string"),
        ([True, 1], "string"),
        (["a", 1], "string"),
        ([None], "string"),
        ([], "string"),
    ],
)
def test_types(values: list[Value], kind: str) -> None:
    assert str(array(values).type) == kind


def test_nan_stays_and_is_not_null(tmp_path: Path) -> None:
    write_parquet([Table("t", ["a"], [[math.nan], [None]])], tmp_path / "f")
    (table,) = read_parquet(tmp_path / "f")
    assert math.isnan(table.rows[0][0])
    assert table.rows[1] == (None,)


def test_layout_that_others_read(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    write_parquet([Table("one", ["a"], [[1], [2]]), Table("two", ["a.b", "c"], [["x", None]])], path)
    seen = parquet.read_table(path)
    assert seen.column_names == ["table", "row", "one.a", "two.a.b", "two.c"]
    assert seen.to_pydict() == {
        "table": ["one", "one", "two"],
        "row": [0, 1, 0],
        "one.a": [1, 2, None],
        "two.a.b": [None, None, "x"],
        "two.c": [None, None, None],
    }
    assert seen.schema.field("row").type == pyarrow.int32()
    assert [str(column.type) for stored in read_stored(path) for column in stored.arrays] == [
        "int64",
        "string",
        "string",
    ]


@pytest.mark.parametrize("tables", [[], [Table("t", [], [])], [Table("t", [], [[], []])]])
def test_nothing_in_it(tmp_path: Path, tables: list[Table]) -> None:
    write_parquet(tables, tmp_path / "f")
    assert read_parquet(tmp_path / "f") == tables


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(InputError, match=re.escape(f"{path}: holds no results of mmulab")):
        read_parquet(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="holds no results of mmulab"):
        read_parquet(path)
    with pytest.raises(InputError, match="no such file"):
        read_parquet(tmp_path / "none")


def test_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    write_parquet([Table("t", ["a"], [[1], [2]])], path)
    parquet.write_table(parquet.read_table(path).slice(0, 1), path)
    with pytest.raises(InputError, match="holds no results of mmulab"):
        read_parquet(path)
