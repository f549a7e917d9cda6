"""``mmulab cases``: what KVM builds for each kind of guest and host, and what the old role word breaks."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import click

from mmulab.cli import signals
from mmulab.cli.complete import complete_cases
from mmulab.cli.options import KernelChoice, kernel_options
from mmulab.cli.progress import progress, working
from mmulab.cli.work import on_kernel, read_work
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.sync.counts import sync_counts
from mmulab.lab.cases.kinds import KINDS, kind_of
from mmulab.lab.cases.table import OLD_DESIGN, Row, find_cases, row, totals
from mmulab.scenario.text import format_scenario


@click.command()
@click.argument("names", metavar="[CASE]...", nargs=-1, shell_complete=complete_cases)
@click.option("--text", is_flag=True, help="Print the one CASE's scenario, to keep in a file; run nothing.")
@click.option("--wrong-only", is_flag=True, help="Only cases that are wrong, under either role word.")
@click.option("--wide", is_flag=True, help="Whole lines on a terminal too, as elsewhere.")
@click.option("--details", is_flag=True, help="Also the roles on the way to a page, every role made, events.")
@kernel_options
@click.option("--json", "as_json", is_flag=True, help="A JSON list with one object a case.")
def cases(
    names: tuple[str, ...],
    text: bool,
    wrong_only: bool,
    wide: bool,
    details: bool,
    choice: KernelChoice,
    as_json: bool,
) -> None:
    """Run the cases; show of each the root, the shadow pages, the number of events, and whether it is right.

    CASE is a name; '*' in it stands for anything. Without any, all are run. Each case runs under a role
    design, the default one if none is given, and under the one before Linux 5.19 (pre_fix), with the same
    ops. Pages are counted by level: 4d:1 is a direct one of level 4, 5p:1 a passthrough one, 2q1:1 one of
    quadrant 1. On a terminal a line is cut where the window ends. The last lines count the cases by kind,
    and name first the kinds in which some are wrong.
    """
    if text:
        _show_text(names, choice)
        return
    chosen = choice.over(LINUX_6_1)
    known = find_cases(names)
    made = (row(case, chosen.design, kernel=chosen if choice.given else None) for case in known)
    rows = progress(made, len(known), "case", show=as_json or wrong_only)
    if as_json:
        _show_json(found for found in rows if not wrong_only or found.is_wrong)
        return
    width = None if wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns
    told: list[_Told] = []

    def show(lines: Iterable[str]) -> None:
        for line in lines:
            click.echo(line if width is None else _cut(line, width))

    def end() -> None:
        if wrong_only:
            show(line for one in told if one.is_wrong for line in one.lines)
        if len(known) > 1:
            show(_summary(told))

    with signals.shown(end):
        for found in rows:
            told.append(_tell(found, fitted=width is not None, details=details))
            if not wrong_only:
                show(told[-1].lines)


def _show_text(names: Sequence[str], choice: KernelChoice) -> None:
    if len(names) != 1:
        raise InputError("--text prints the scenario of one CASE; name one")
    with working(names[0]):
        scenario = on_kernel(read_work(names[0]), choice)
    click.echo(format_scenario(scenario), nl=False)


class _Told(NamedTuple):
    """What is said of a case; the machine that it ran on is not kept."""

    kind: str
    verdict: str
    is_wrong: bool
    old_wrong: bool
    lines: list[str]


def _tell(found: Row, *, fitted: bool, details: bool) -> _Told:
    lines = [_fitted(found) if fitted else _line(found), *(_details(found) if details else ())]
    old_wrong = found.old.wrong is not None
    return _Told(kind_of(found.case.name), found.verdict, found.is_wrong, old_wrong, lines)


def _show_json(rows: Iterator[Row]) -> None:
    """Print the list of all rows; interrupted, of those that are finished."""
    records: list[dict[str, Any]] = []
    with signals.shown(lambda: click.echo(json.dumps(records, indent=1))):
        for found in rows:
            records.append(found.record())


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _line(found: Row) -> str:
    name = f"{found.case.name:30} {found.verdict:8}"
    run = found.run
    parts = [found.roots, f"pages {found.pages}", f"events {len(run.events)}", f"{OLD_DESIGN}: {found.old}"]
    wrong = [f"wrong at {run.wrong}"] if run.wrong else []
    note = [f"note: {found.case.note}"] if found.case.note else []
    return f"{name} " + " | ".join([*wrong, *parts, *note])


def _fitted(found: Row) -> str:
    """Return the line whose first characters say what counts: the verdicts, and what is wrong."""
    run, old = found.run, found.old
    before = "WRONG" if old.wrong else "same" if str(old) == "the same" else "differs"
    wrong = [f"at {at}" for at in (run.wrong or old.wrong,) if at]
    more = " | ".join([*wrong, found.roots, f"pages {found.pages}", f"events {len(run.events)}"])
    return f"{found.case.name:30} {found.verdict:8} {OLD_DESIGN} {before:7} {more}"


def _summary(told: Sequence[_Told]) -> Iterator[str]:
    """Yield a line for each kind, those first in which something is wrong, and one for all."""
    kinds = {kind: [one for one in told if one.kind == kind] for kind in KINDS}
    lines = [
        (not any(one.is_wrong for one in found), f"{kind}: {_counted(found)}")
        for kind, found in kinds.items()
        if found
    ]
    yield ""
    yield from (line for _, line in sorted(lines, key=lambda line: line[0]))
    yield f"all: {_cases(told, totals(one.verdict for one in told))}"


def _counted(told: Sequence[_Told]) -> str:
    """Return how many cases there are, by verdict, and in how many the old role word alone is wrong."""
    verdicts = Counter(one.verdict for one in told)
    return _cases(told, ", ".join(f"{number} {verdict}" for verdict, number in verdicts.most_common()))


def _cases(told: Sequence[_Told], said: str) -> str:
    old = sum(one.old_wrong for one in told)
    only = f"; {old} wrong under {OLD_DESIGN} only" if old else ""
    return f"{len(told)} case{'' if len(told) == 1 else 's'}, {said}{only}"


def _details(found: Row) -> Iterator[str]:
    case, run = found.case, found.run
    yield f"    L0 {case.host}; guest {case.guest}" + (f"; L2 {case.l2}" if case.l2 else "")
    yield "    way:    " + " > ".join(
        link.name if link.gfn is None else f"{link.name} (gfn {link.gfn:x})" for link in run.chain
    )
    yield "    made:   " + ", ".join(f"{n} x {role}" for role, n in run.created.items())
    yield f"    {sync_counts(run.machine.kvm)}"
    yield "    events: " + ", ".join(f"{n} {name}" for name, n in run.counts.items())
