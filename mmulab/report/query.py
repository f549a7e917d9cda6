"""Results of a sweep or a report, asked in SQL.

Each results table is a view with the rows of all runs, in the order of the runs:
column ``run``, a column ``p_NAME`` for each parameter, then the table's own. The
view ``runs`` has a row for each run, ``missing`` ones too. Names that SQL cannot
tell apart get a number: ``gva``, ``GVA_2``.

The views are in memory and the database can do nothing but answer: no file is
read or written by a query, no extension loaded, nothing changed. One thread
answers, so a query without an order gives the same order again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from mmulab.errors import InputError, quoted
from mmulab.limits import MESSAGE
from mmulab.report.finished import Joined, Sweep, joined, read_sweep, unlike
from mmulab.report.results import Table
from mmulab.report.tables import array

__all__ = ["RUNS", "connect", "frame", "listing", "query", "query_arrow"]

RUNS = "runs"
"""Name of the view that has the runs."""
_SETTINGS: dict[str, Any] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "memory_limit": "2GB",
    "threads": "1",
}


def connect(folder: Path) -> Any:
    """Return a DuckDB connection with the views of the results in `folder`.

    Raises
    ------
    InputError
        `folder` has no results, or they are damaged.
    """
    import duckdb
    import pyarrow

    connection = duckdb.connect(":memory:", config=_SETTINGS)
    for name, columns in _views(*_read(folder)).items():
        arrays = list(columns.values())
        connection.register(name, pyarrow.Table.from_arrays(arrays, names=list(columns)))
    connection.execute("SET lock_configuration = true")
    return connection


def _read(folder: Path) -> tuple[Sweep, list[Joined]]:
    sweep = read_sweep(folder)
    return sweep, joined(folder, sweep)


def _views(sweep: Sweep, tables: Sequence[Joined]) -> dict[str, Mapping[str, Any]]:
    """Return the columns of each view by its name; the runs' one is the last."""
    names = unlike([table.name for table in tables] + [RUNS])
    return dict(zip(names, [*(table.columns for table in tables), _run_columns(sweep)], strict=True))


def _run_columns(sweep: Sweep) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {
        "run": [run.id for run in sweep.runs],
        "target": [run.target for run in sweep.runs],
        "state": [run.state for run in sweep.runs],
        "seconds": [run.seconds for run in sweep.runs],
        "seed": [run.seed for run in sweep.runs],
        "result": [run.sentence for run in sweep.runs],
        "error": [run.error and f"{run.error.type}: {run.error.message}" for run in sweep.runs],
    }
    own = {f"p_{name}": [run.parameters.get(name) for run in sweep.runs] for name in sweep.parameters}
    names = unlike([*columns, *own])
    return dict(zip(names, map(array, [*columns.values(), *own.values()]), strict=True))


def listing(folder: Path) -> Table:
    """Return what there is to ask: each view with its columns and their types, its runs and rows.

    Raises
    ------
    InputError
        As :func:`connect` does.
    """
    sweep, tables = _read(folder)
    runs = [len(table.runs) for table in tables] + [len(sweep.runs)]
    rows = []
    for (name, columns), count in zip(_views(sweep, tables).items(), runs, strict=True):
        described = ", ".join(f"{column} {values.type}" for column, values in columns.items())
        rows.append([name, count, len(columns["run"]), described])
    return Table("tables", ["table", "runs", "rows", "columns"], rows)


def query(folder: Path, sql: str) -> Table:
    """Return the answer to one SELECT over the views of `folder`; see the module for their columns.

    Numbers with a fixed count of decimals become floats; what is no number, string, bool or NULL becomes
    its text.

    Raises
    ------
    InputError
        `folder` has no results, or DuckDB refuses the query: with its first line.
    """
    answer = _ask(connect(folder), sql)
    names = unlike(column[0] for column in answer.description)
    with _first_line(sql):
        rows = answer.fetchall()
    return Table("query", names, [[_plain(value) for value in row] for row in rows])


def query_arrow(folder: Path, sql: str) -> Any:
    """Return the answer to one SELECT as a :class:`pyarrow.Table`, with DuckDB's types."""
    connection = connect(folder)
    with _first_line(sql):
        return connection.sql(_checked(connection, sql)).to_arrow_table()


def frame(folder: Path | str, sql: str) -> Any:
    """Return the answer to one SELECT as a :class:`pandas.DataFrame`, for notebooks.

    Parameters
    ----------
    folder : pathlib.Path or str
        Of a sweep or a report.
    sql : str
        As :func:`query` takes it, and with the same errors.
    """
    answer = _ask(connect(Path(folder)), sql)
    with _first_line(sql):
        return answer.df()


def _ask(connection: Any, sql: str) -> Any:
    with _first_line(sql):
        return connection.execute(_checked(connection, sql))


def _checked(connection: Any, sql: str) -> str:
    """Return `sql` if it is one SELECT."""
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise InputError(f"query '{quoted(sql)}': {len(statements)} statements, expected one SELECT")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise InputError(f"query '{quoted(sql)}': only SELECT is answered; results are not changed")
    return sql


@contextmanager
def _first_line(sql: str) -> Iterator[None]:
    """Say in one line what DuckDB says of a query."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        line = quoted(str(error).splitlines()[0], MESSAGE)
        raise InputError(f"query '{quoted(sql)}': {line}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return value if value is None or isinstance(value, int | float | str | bool) else str(value)
