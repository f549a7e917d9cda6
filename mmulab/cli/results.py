"""``mmulab results``: ask the results of a report or a sweep in SQL."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mmulab import files
from mmulab.cli.path import PATH
from mmulab.cli.progress import working
from mmulab.report import query as asked
from mmulab.report.results import Table


@click.command()
@click.argument("folder", type=PATH)
@click.argument("sql", required=False)
@click.option("--csv", "form", flag_value="csv", help="CSV instead of aligned columns.")
@click.option("--json", "form", flag_value="json", help="A JSON list of objects.")
@click.option("--parquet", "out", metavar="OUT", type=PATH, help="Write a parquet file and print nothing.")
def results(folder: Path, sql: str | None, form: str | None, out: Path | None) -> None:
    """Answer SQL, a SELECT in DuckDB's dialect, over the results tables in FOLDER.

    FOLDER is what 'mmulab report' or 'mmulab sweep' wrote. Each results table has the rows of all runs,
    with the columns 'run' and 'p_NAME' for each parameter; the table 'runs' says how each run ended.
    Without SQL the tables are listed, with the types of their columns.
    """
    if form and out:
        raise click.UsageError("--parquet writes a file: leave out --csv and --json")
    if out is not None:
        with working("results"):
            answer = _parquet(folder, sql)
        files.write_bytes(out, answer)
        return
    with working("results"):
        found = asked.query(folder, sql) if sql is not None else asked.listing(folder)
    if form == "csv":
        click.echo(found.csv(), nl=False, color=True)  # as it is, whatever characters a value has
    elif form == "json":
        click.echo(json.dumps([dict(zip(found.columns, map(_json, row), strict=True)) for row in found.rows]))
    else:
        for line in _aligned(found):
            click.echo(line)


def _parquet(folder: Path, sql: str | None) -> bytes:
    """Return the answer as a parquet file; without a query it is the list of tables."""
    from pyarrow import parquet, table

    if sql is not None:
        answer = asked.query_arrow(folder, sql)
    else:
        found = asked.listing(folder)
        answer = table(dict(zip(found.columns, map(list, zip(*found.rows, strict=True)), strict=True)))
    data = io.BytesIO()
    parquet.write_table(answer, data)
    return data.getvalue()


def _json(value: Any) -> Any:
    """Return what JSON can say; it has no NaN and no infinity."""
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _aligned(table: Table) -> Iterator[str]:
    """Yield a header and the rows, numbers to the right, in columns as wide as what they hold."""
    texts = [[_text(value) for value in row] for row in table.rows]
    numeric = [
        all(row[at] is None or type(row[at]) in (int, float) for row in table.rows)
        for at in range(len(table.columns))
    ]
    widths = [max(map(len, column)) for column in zip(table.columns, *texts, strict=True)]
    for row in [list(table.columns), *texts]:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def _text(value: Any) -> str:
    """Return a value in one line, without control characters."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
