"""``mmulab assertions``: what the kernel asserts, what of it the model has, and how often that is reached."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click

from mmulab.check.assertions import Counts, SourceDifference, count_recording, differences
from mmulab.check.kernel_source import Place
from mmulab.cli.each import each_answer
from mmulab.cli.path import PATH
from mmulab.conform.recording import find_recordings
from mmulab.errors import InputError
from mmulab.kvm.assertions import Assertion
from mmulab.kvm.assertions import assertions as table

NARROW, WIDE = 60, 110
"""Columns that the text has at least and at most, whatever the terminal has."""
NUMBERS = 22
"""Columns of the two counts."""
INDENT = " " * 6


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--jobs", type=click.IntRange(1), default=None, help="Processes; all processors if left out.")
@click.option("--out", type=PATH, default=None, help="Write the counts as a CSV file.")
@click.option("--source", type=PATH, default=None, help="Compare the table with a kernel's sources instead.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.pass_context
def assertions(
    ctx: click.Context,
    paths: tuple[str, ...],
    jobs: int | None,
    out: Path | None,
    source: Path | None,
    as_json: bool,
) -> None:
    """Show the kernel's assertions about the MMU and nested guests, and whether the model has each.

    Of each in the model: how often the recordings reach it, and how often its condition held, so that
    the kernel warned or died. Of each other: why the model lacks it. PATH, recordings or folders of them,
    counts anew; interrupted, it shows what is counted so far and does not write --out. --source compares
    the table, which is 6.1.192's, with another kernel's sources by file, function and macro: '+' is new
    there, '-' is gone, '~' has another macro; exit code 1 if anything differs.
    """
    if source is not None:
        if paths or out is not None:
            raise InputError("--source compares sources, and counts nothing; leave out PATH and --out")
        ctx.exit(_show_source(source, as_json=as_json))
    if not paths:
        if out is not None:
            raise InputError("--out writes what is counted; name the recordings")
        _show(Counts.shipped(), as_json=as_json)
        return
    _count(paths, jobs, out, as_json=as_json)


def _count(paths: tuple[str, ...], jobs: int | None, out: Path | None, *, as_json: bool) -> None:
    """Count recordings anew, show what came of it, and write it if all were counted."""
    total = Counts()

    def show(answers: list[Counts], of: int) -> None:
        for answer in answers:
            total.add(answer)
        _show(total, as_json=as_json, not_run=of - len(answers))

    found = find_recordings(paths)
    each_answer(count_recording, found, show, jobs=jobs, what="files", bar=not as_json)
    if out is not None:
        total.write(out)


# The table ------------------------------------------------------------------------------


def _show(counts: Counts, *, as_json: bool, not_run: int = 0) -> None:
    if as_json:
        click.echo(json.dumps(_record(counts, not_run)))
        return
    for file, rows in groupby(table().values(), key=lambda row: row.file):
        click.echo(f"{file:{_width() - NUMBERS}}{'reached':>{NUMBERS // 2}}{'held':>{NUMBERS // 2}}")
        for row in rows:
            for line in _lines(row, counts):
                click.echo(line)
    click.echo(_last_line(counts) + (f" interrupted: {not_run} recordings not counted" if not_run else ""))


def _lines(row: Assertion, counts: Counts) -> Iterator[str]:
    name = f"  {row.name.partition(':')[2]} {row.severity}"
    if row.modelled:
        room, (reached, held, _) = _width() - NUMBERS, counts.of(row.name)
        if len(name) > room:
            yield name
            name = ""
        yield f"{name:{room}}{reached:>{NUMBERS // 2}}{held:>{NUMBERS // 2}}"
    else:
        yield name
    yield from _wrapped(row.condition)
    if row.note:
        yield from _wrapped(f"{'but' if row.modelled else 'not modelled'}: {row.note}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), initial_indent=INDENT, subsequent_indent=INDENT + "  ")


def _width() -> int:
    return max(NARROW, min(WIDE, shutil.get_terminal_size((WIDE, 0)).columns))


def _last_line(counts: Counts) -> str:
    modelled = [row.name for row in table().values() if row.modelled]
    reached = [name for name in modelled if counts.of(name).reached]
    held = [name for name in modelled if counts.of(name).held]
    return (
        f"assertions: {len(table())}, modelled {len(modelled)}, reached {len(reached)}, held {len(held)}"
        f" in {counts.recordings} recordings of {counts.ops} ops"
    )


def _record(counts: Counts, not_run: int) -> dict[str, object]:
    rows = []
    for row in table().values():
        record: dict[str, object] = {
            "name": row.name,
            "file": row.file,
            "function": row.function,
            "line": row.line,
            "severity": str(row.severity),
            "condition": row.condition,
            "modelled": row.modelled,
            "note": row.note,
        }
        rows.append(record | (counts.of(row.name)._asdict() if row.modelled else {}))
    whole: dict[str, object] = {"recordings": counts.recordings, "ops": counts.ops, "assertions": rows}
    return whole | ({"interrupted": True, "not_run": not_run} if not_run else {})


# Another kernel -------------------------------------------------------------------------


def _show_source(source: Path, *, as_json: bool) -> int:
    """Show what a kernel's sources have alone, and what they lack; return the exit code."""
    new, gone, changed = found = differences(source)
    if as_json:
        click.echo(json.dumps(_source_record(found)))
    else:
        rows = [(f"+ {_place(place)}", number) for place, number in new.items()]
        rows += [(f"- {_place(place)}", number) for place, number in gone.items()]
        rows += [(f"~ {_place(was)} is {macro}", number) for (was, macro), number in changed.items()]
        for text, number in rows:
            click.echo(text + (f" *{number}" if number > 1 else ""))
        total = f"new {new.total()}, gone {gone.total()}, changed {changed.total()}"
        click.echo(f"assertions: {source}: {total}")
    return 1 if any(found) else 0


def _source_record(found: SourceDifference) -> dict[str, list[dict[str, object]]]:
    return {
        "new": [{**place._asdict(), "count": number} for place, number in found.new.items()],
        "gone": [{**place._asdict(), "count": number} for place, number in found.gone.items()],
        "changed": [
            {**was._asdict(), "now": macro, "count": number} for (was, macro), number in found.changed.items()
        ],
    }


def _place(place: Place) -> str:
    return f"{place.file}:{place.function} {place.macro}"
