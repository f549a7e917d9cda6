"""``mmulab trace``: traces of real kernels, as a developer has them in hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from mmulab.cli.group import Group
from mmulab.errors import InputError, named
from mmulab.ftrace.notes import has_kvm, notes
from mmulab.ftrace.reader import read_text, read_trace
from mmulab.ftrace.roles import Guess, guess_kernel
from mmulab.ftrace.source import STDIN
from mmulab.ftrace.statistics import GROUPS, Row, statistics
from mmulab.ftrace.trace import UNKNOWN_TIME, Trace
from mmulab.ftrace.writer import TEXTS, format_line, format_recording
from mmulab.scenario.record import record
from mmulab.scenario.text import read_scenario
from mmulab.trace.file import open_recording
from mmulab.trace.recording import Recording

_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")


@click.group(cls=Group)
def trace() -> None:
    """Read traces that trace_pipe, 'trace-cmd report' or 'perf script' print; FILE may be - for a pipe.

    A file may be packed with gzip, xz or bzip2, quoted in a mail, wrapped, or cut; what cannot be read is
    counted and said on standard error. A scenario (.mmu) or a recording of the stepper (.mmr) is read as the
    trace of it.
    """


@trace.command()
@click.argument("file", metavar="FILE")
@click.option("--from", "begin", type=click.IntRange(0), default=0, help="The first event that is listed.")
@click.option("--list", "count", type=click.IntRange(0), default=0, help="How many events are listed.")
@click.option("--only", "names", multiple=True, metavar="NAME", help="List events of this name only.")
@click.option("--text", type=click.Choice(TEXTS), default="trace", help="The text in which they are listed.")
@_JSON
def show(file: str, begin: int, count: int, names: tuple[str, ...], text: str, as_json: bool) -> None:
    """Say what is in a trace, and list events of it in the kernel's words."""
    read = _read(file)
    unknown = [name for name in names if name not in read.event_counts]
    if unknown:
        raise InputError(
            f"--only {named(unknown[0])}: no such event; there are {', '.join(read.event_counts)}"
        )
    if as_json:
        about: dict[str, Any] = _about(file, read)
        about["listed"] = [
            {"event": number, "time": event.time, **event.place._asdict(), "name": event.name, **event.fields}
            for number, event in _listed(read, begin, count, names)
        ]
        click.echo(json.dumps(about, indent=1))
        return
    for line in _heading(file, read):
        click.echo(line)
    for number, event in _listed(read, begin, count, names):
        said = format_line(event, text) if event.fields else f"{event.name}: not read"
        click.echo(f"{number:>8} {said}")


def _listed(read: Trace, begin: int, count: int, names: tuple[str, ...]) -> Iterator[tuple[int, Any]]:
    numbers = (
        number for number in range(begin, len(read)) if not names or read.names[read.kind[number]] in names
    )
    return ((number, read.event(number)) for number in islice(numbers, count))


def _heading(file: str, read: Trace) -> Iterator[str]:
    guess = guess_kernel(read)
    yield f"{_title(file)}: {len(read)} events in {read.counts.lines} lines"
    known = read.time[read.time >= 0]
    if len(known):
        yield f"time: {(known[-1] - known[0]) / 1e9:.6f} s from the first to the last"
    yield f"kernel: {guess}" + (f" (by {', '.join(guess.told_by[:3])})" if guess.told_by else "")
    if guess.roles:
        yield f"roles: as printed since {guess.roles[0].since}" + _until(guess)
    if read.vcpu_threads:
        said = (f"{vcpu} in {' and '.join(map(str, pids))}" for vcpu, pids in read.vcpu_threads.items())
        yield f"vCPUs by their threads: {', '.join(said)}"
    for name, number in read.event_counts.items():
        yield f"{number:>10} {name}"


def _until(guess: Guess) -> str:
    last = guess.roles[-1].since
    return "" if last == guess.roles[0].since else f", the last such layout of {last}"


def _about(file: str, read: Trace) -> dict[str, Any]:
    guess = guess_kernel(read)
    return {
        "file": file,
        "events": len(read),
        "event_counts": read.event_counts,
        "kernel": {"since": guess.since, "before": guess.before, "told_by": guess.told_by},
        "role_layouts": [version.since for version in guess.roles],
        "vcpu_threads": read.vcpu_threads,
        "lost": [gap._asdict() for gap in read.lost],
        "notes": list(notes(read)),
    }


@trace.command()
@click.argument("files", metavar="FILE [FILE..]", nargs=-1, required=True)
@_JSON
def stats(files: tuple[str, ...], as_json: bool) -> None:
    """Count exits, faults, shadow pages, zaps, lifetimes, sptes and root switches, file beside file."""
    if files.count(STDIN) > 1:
        raise InputError("- stands for standard input and can be read once; name files")
    tables = [statistics(_read(file)) for file in files]
    if as_json:
        found = [
            {"file": f, "rows": [row._asdict() for row in t]} for f, t in zip(files, tables, strict=True)
        ]
        click.echo(json.dumps(found, indent=1))
        return
    for line in _beside(files, tables):
        click.echo(line)


def _beside(files: tuple[str, ...], tables: list[list[Row]]) -> Iterator[str]:
    """Yield the tables' rows side by side; '-' where a file has no such row."""
    keys = {(row.group, row.name): None for table in tables for row in table}
    values = [{(row.group, row.name): row.value for row in table} for table in tables]
    order: dict[str, list[str]] = {}
    for group, name in sorted(keys, key=lambda key: GROUPS.index(key[0])):
        order.setdefault(group, []).append(name)
    width = max([len(name) for _, name in keys] + [10]) + 2
    if len(files) > 1:
        yield " " * (width + 2) + "".join(f"{Path(file).name[-24:]:>26}" for file in files)
    for group, names in order.items():
        yield group
        for name in names:
            cells = "".join(
                f"{_cell(found.get((group, name))):>{26 if len(files) > 1 else 12}}" for found in values
            )
            yield f"  {name:{width}}{cells}"


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6f}"


def _title(file: str) -> str:
    return "standard input" if file == STDIN else named(file)


def _read(file: str) -> Trace:
    """Read a trace, or the trace of a scenario or recording, and say what was not read."""
    if file.endswith(".mmr"):
        read = _of_model(open_recording(file))
    elif file.endswith(".mmu"):
        read = _of_model(record(read_scenario(file)))
    else:
        read = read_trace(file)
    if not has_kvm(read):
        most = ", ".join(islice(read.event_counts, 4))
        raise InputError(
            f"{_title(file)}: {len(read)} events and none of KVM's ({most}); record with -e kvmmmu -e kvm"
        )
    for note in notes(read):
        click.echo(f"mmulab: {_title(file)}: {note}", err=True)
    return read


def _of_model(recording: Recording) -> Trace:
    """Return the trace of a model's run, which has an order and no times."""
    read = read_text("\n".join(format_recording(recording)))
    return replace(read, time=np.full(len(read), UNKNOWN_TIME))
