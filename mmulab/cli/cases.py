"""``mmulab cases``: what KVM builds for each kind of guest and host, and what the old role word breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from mmulab.cli import signals
from mmulab.cli.options import KernelChoice, kernel_options
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.sync.counts import sync_counts
from mmulab.lab.cases.table import OLD_DESIGN, Row, find_cases, row, totals


@click.command()
@click.argument("names", metavar="[CASE]...", nargs=-1)
@click.option("--details", is_flag=True, help="Also the roles on the way to a page, every role made, events.")
@kernel_options
@click.option("--json", "as_json", is_flag=True, help="A JSON list with one object a case.")
def cases(
    names: tuple[str, ...],
    details: bool,
    choice: KernelChoice,
    as_json: bool,
) -> None:
    """Run the cases; show of each the root, the shadow pages, the number of events, and whether it is right.

    CASE is a name; '*' in it stands for anything. Without any, all are run. Each case runs under a role
    design, the default one if none is given, and under the one before Linux 5.19 (pre_fix), with the same
    ops. Pages are counted by level: 4d:1 is a direct one of level 4, 5p:1 a passthrough one, 2q1:1 one of
    quadrant 1.
    """
    chosen = choice.over(LINUX_6_1)
    rows = (row(case, chosen.design, kernel=chosen if choice.given else None) for case in find_cases(names))
    if as_json:
        _show_json(rows)
        return
    verdicts = []
    for found in rows:
        verdicts.append(found.verdict)
        for line in [_line(found), *(_details(found) if details else ())]:
            click.echo(line)
    click.echo(totals(verdicts))


def _show_json(rows: Iterator[Row]) -> None:
    """Print the list of all rows; interrupted, of those that are finished."""
    records: list[dict[str, Any]] = []
    with signals.shown(lambda: click.echo(json.dumps(records, indent=1))):
        for found in rows:
            records.append(found.record())


def _line(found: Row) -> str:
    name = f"{found.case.name:30} {found.verdict:8}"
    run = found.run
    parts = [found.roots, f"pages {found.pages}", f"events {len(run.events)}", f"{OLD_DESIGN}: {found.old}"]
    wrong = [f"wrong at {run.wrong}"] if run.wrong else []
    note = [f"note: {found.case.note}"] if found.case.note else []
    return f"{name} " + " | ".join([*wrong, *parts, *note])


def _details(found: Row) -> Iterator[str]:
    case, run = found.case, found.run
    yield f"    L0 {case.host}; guest {case.guest}" + (f"; L2 {case.l2}" if case.l2 else "")
    yield "    way:    " + " > ".join(
        link.name if link.gfn is None else f"{link.name} (gfn {link.gfn:x})" for link in run.chain
    )
    yield "    made:   " + ", ".join(f"{n} x {role}" for role, n in run.created.items())
    yield f"    {sync_counts(run.machine.kvm)}"
    yield "    events: " + ", ".join(f"{n} {name}" for name, n in run.counts.items())
