"""What ``mmulab diff`` shows: tables of kinds and of changes, the smallest examples, JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import click

from mmulab.conform.tally import Diff, Example
from mmulab.kvm.behaviours import CHANGES
from mmulab.lab.drift.causes import Causes

__all__ = ["Report", "Side", "show_json", "show_text"]

MOST_KINDS = 3
"""Kinds that are named beside a change, those of the most ops."""


@dataclass(slots=True)
class Side:
    """One of the two sets.

    Attributes
    ----------
    name : str
        As it was given.
    kernels : Counter of str
        Scenarios that were compared, by kernel.
    alone : list of str
        Scenarios that the other set lacks.
    """

    name: str
    kernels: Counter[str] = field(default_factory=Counter)
    alone: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{count} of {kernel}" for kernel, count in self.kernels.items())])

    def record(self) -> dict[str, Any]:
        """Return the side as plain values."""
        return {"name": self.name, "kernels": self.kernels, "alone": self.alone}


class Report(NamedTuple):
    """All that was found.

    Attributes
    ----------
    level : str
    sides : list of Side
    diff : Diff
    causes : Causes or None
        None: nobody asked.
    not_run : int
        Scenarios that an interrupt left out.
    """

    level: str
    sides: list[Side]
    diff: Diff
    causes: Causes | None
    not_run: int


def show_text(report: Report) -> None:
    """Print the tables, the examples and a last line with the counts."""
    for line in _lines(report):
        click.echo(line)


def _lines(report: Report) -> Iterator[str]:
    diff, causes = report.diff, report.causes
    for letter, side in zip("AB", report.sides, strict=True):
        yield f"{letter}: {side}"
    for letter, side in zip("AB", report.sides, strict=True):
        yield from (f"only in {letter}: {name}" for name in side.alone)
    if diff.tallies:
        rows = [(str(kind), tally.scenarios, tally.ops, str(tally.times)) for kind, tally in diff.kinds]
        yield from _table(("kind", "scenarios", "ops", "times"), rows)
        yield from _examples((str(kind), tally.examples) for kind, tally in diff.kinds)
    if causes is not None:
        yield from _changes(causes)
    if diff.tallies:
        yield ""
    yield _last_line(report)


def _table(heads: tuple[str, str, str, str], rows: list[tuple[str, int, int, str]]) -> Iterator[str]:
    width = max(len(name) for name in (heads[0], *(row[0] for row in rows)))
    yield ""
    yield f"{heads[0]:{width}}  {heads[1]:>9}  {heads[2]:>6}  {heads[3]}"
    for name, scenarios, ops, more in rows:
        yield f"{name:{width}}  {scenarios:9}  {ops:6}  {more}".rstrip()


def _examples(named: Iterable[tuple[str, list[Example]]]) -> Iterator[str]:
    """Yield the examples; one that several kinds have, once."""
    names: dict[Example, list[str]] = {}
    for name, examples in named:
        for example in examples:
            names.setdefault(example, []).append(name)
    for example, kinds in names.items():
        size = f" ({example.size} events)" if example.size else ""
        yield ""
        yield f"{', '.join(kinds)}: {example.place}{size}"
        yield from (f"  {line}" for line in example.lines)
        if example.left_out:
            yield f"  and {example.left_out} more differences"


def _changes(causes: Causes) -> Iterator[str]:
    """Yield which change explains how many ops."""
    shown = [(name, diff) for name, diff in causes.changes.items() if diff.ops_differ]
    rows = [(name, diff.scenarios_differ, diff.ops_differ, _most(diff)) for name, diff in shown]
    yield from _table(("change", "scenarios", "ops", "kinds, with their ops"), rows)
    yield from _examples(
        (f"{name} ({CHANGES[name].commit})" if name in CHANGES else name, _smallest(diff))
        for name, diff in shown
    )
    hidden = [name for name, diff in causes.changes.items() if not diff.ops_differ]
    yield ""
    if hidden:
        yield f"nowhere here: {', '.join(hidden)}"
    for what, diff in (
        ("differ whichever change is left out", causes.unexplained),
        ("of B are not the model's", causes.not_modelled),
    ):
        yield f"{diff.ops_differ} ops {what}{_where(diff)}"


def _most(diff: Diff) -> str:
    most = ", ".join(f"{kind} {tally.ops}" for kind, tally in diff.kinds[:MOST_KINDS])
    return most + (", .." if diff.kinds[MOST_KINDS:] else "")


def _smallest(diff: Diff) -> list[Example]:
    return [] if diff.smallest is None else [diff.smallest]


def _where(diff: Diff) -> str:
    return "" if diff.smallest is None else f", the smallest {diff.smallest.place}"


def _last_line(report: Report) -> str:
    diff = report.diff
    missing = f"; interrupted: {report.not_run} scenarios not compared" if report.not_run else ""
    return (
        f"diff: {diff.scenarios_differ} of {diff.scenarios} scenarios differ,"
        f" {diff.ops_differ} ops of {diff.ops}, {len(diff.tallies)} kinds{missing}"
    )


def show_json(report: Report) -> None:
    """Print everything as one JSON object."""
    record: dict[str, Any] = {
        "level": report.level,
        "a": report.sides[0].record(),
        "b": report.sides[1].record(),
        **_record(report.diff),
    }
    if report.causes is not None:
        record["causes"] = {
            "changes": [{"change": name, **_record(diff)} for name, diff in report.causes.changes.items()],
            "unexplained": _record(report.causes.unexplained),
            "not_modelled": _record(report.causes.not_modelled),
        }
    if report.not_run:
        record |= {"interrupted": True, "not_run": report.not_run}
    click.echo(json.dumps(record))


def _record(diff: Diff) -> dict[str, Any]:
    return {
        "scenarios": {"differ": diff.scenarios_differ, "total": diff.scenarios},
        "ops": {"differ": diff.ops_differ, "total": diff.ops},
        "kinds": [
            {
                "kind": str(kind),
                "what": kind.what,
                "field": kind.field,
                "how": str(kind.how),
                "scenarios": tally.scenarios,
                "ops": tally.ops,
                "times": tally.times,
                "examples": [example.record() for example in tally.examples],
            }
            for kind, tally in diff.kinds
        ],
    }
