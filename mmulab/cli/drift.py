"""``mmulab compare --kernels``: the same work on two kernels, and what each change between them does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import click

from mmulab.cli import signals
from mmulab.cli.options import kernel_name
from mmulab.cli.progress import progress
from mmulab.errors import InputError
from mmulab.kvm.behaviours import CHANGES
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.cases.table import Case
from mmulab.lab.drift.drift import ALL, Drift, Effect, drift_each, parts
from mmulab.lab.drift.track import Effects
from mmulab.pool import Jobs

_COLUMNS = [*Effects._fields]


def compare_kernels(names: str, works: Sequence[Case], *, jobs: Jobs, details: bool, as_json: bool) -> None:
    """Show the effects of each change from the first kernel to each other one.

    Raises
    ------
    InputError
        A kernel is unknown or the only one, or two are the same.
    """
    base, *others = [find_kernel(kernel_name(name.strip())) for name in names.split(",")]
    if not others:
        raise InputError(f"--kernels '{names}': one kernel; name two or more with a comma between")
    for other in others:
        parts(base, other)
    rows: list[list[list[Effect]]] = [[] for _ in others]

    def show() -> None:
        found = [Drift.of(base, other, kept) for other, kept in zip(others, rows, strict=True)]
        _show(found, details=details, as_json=as_json)

    with signals.shown(show):
        for other, kept in zip(others, rows, strict=True):
            effects = drift_each(base, other, works, jobs=jobs)
            for row in progress(effects, len(works), "case", desc=str(other)):
                kept.append(row)


def _show(found: Sequence[Drift], *, details: bool, as_json: bool) -> None:
    if as_json:
        records = [
            {"base": str(drift.base), "other": str(drift.other), **record}
            for drift in found
            for record in drift.records()
        ]
        click.echo(json.dumps(records, indent=1))
        return
    for drift in found:
        for line in [*_table(drift), "", *_firsts(drift)]:
            click.echo(line)
        if details:
            click.echo()
            for effect in drift.effects:
                click.echo(_line(effect))


def _table(drift: Drift) -> Iterator[str]:
    width = max(map(len, [*drift.changes, ALL]))
    yield f"{drift.other} beside {drift.base}, {len(drift.works)} pieces of work"
    alone, left_out = f"alone, on {drift.base}", f"left out, on {drift.other}"
    yield f"{'':{width}}  {'works':>5}  {alone:<54}  {left_out}"
    heads = " ".join(f"{name:>10}" for name in _COLUMNS)
    yield f"{'change':{width}}  {'':>5}  {heads}  {heads}"
    for change in drift.shown:
        added, left = drift.total(change), drift.total(change, added=False)
        yield f"{change:{width}}  {drift.count(change):5}  {_numbers(added)}  {_numbers(left)}"
    yield f"{'sum':{width}}  {'':>5}  {_numbers(drift.sum())}  {_numbers(drift.sum(added=False))}"
    yield f"{ALL:{width}}  {len(drift.seen(ALL)):5}  {_numbers(drift.total(ALL))}"


def _numbers(effects: Effects) -> str:
    return " ".join(f"{value:+10}" if value else f"{'0':>10}" for value in effects)


def _firsts(drift: Drift) -> Iterator[str]:
    """Say where each change first shows, and how to step there on both sides."""
    for change in drift.shown:
        known = CHANGES.get(change)
        commit = "" if known is None else f" ({known.release}, {known.commit})"
        first = drift.first(change)
        assert first is not None
        yield f"{change}{commit}: {first.place}"
    hidden = [change for change in drift.changes if change not in drift.shown]
    if hidden:
        yield f"nowhere here: {', '.join(hidden)}"
    yield "step there on both sides: mmulab step WORK --kernel NAME, or mmulab replay --record of a boot"


def _line(effect: Effect) -> str:
    side = "" if effect.change == ALL else ", alone" if effect.added else ", left out"
    where = "the same" if effect.first is None else f"from {effect.place}"
    end = f"; ends: {effect.end}" if effect.end else ""
    return f"{effect.work} {effect.change}{side}: {effect.effects}; {where}{end}"
