"""``mmulab sweep``: the runs of an experiment file, and their repetition."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import click

from mmulab import pool
from mmulab.cli.options import SCHEDULER, workers
from mmulab.cli.path import PATH
from mmulab.cli.progress import progress
from mmulab.errors import InputError, quoted
from mmulab.pool import Lost
from mmulab.report.experiment import Experiment, read_experiment
from mmulab.report.notebook import CELL_TIMEOUT
from mmulab.report.sweep import Each, Ended, Work, pending
from mmulab.report.sweep import sweep as run_sweep

__all__ = ["JOBS", "TIMEOUT", "finish", "spread", "sweep"]

JOBS = click.option(
    "--jobs", type=click.IntRange(1), show_default="one a processor", help="Runs at the same time."
)
TIMEOUT = click.option(
    "--timeout",
    type=click.IntRange(1),
    default=CELL_TIMEOUT,
    show_default=True,
    help="Seconds a cell may take; of a function, the whole of it.",
)


@click.command()
@click.argument("file", type=PATH)
@click.option("--out", type=PATH, show_default="out/sweeps/NAME", help="Folder to write, or to go on with.")
@JOBS
@TIMEOUT
@SCHEDULER
@click.option("--only", metavar="ID", multiple=True, help="Only runs of this id, or pattern (repeatable).")
@click.option("--dry-run", is_flag=True, help="Say what would be run and why, and run nothing.")
@click.option("--verify", is_flag=True, help="FILE is a sweep's folder: repeat its runs and compare.")
@click.pass_context
def sweep(
    ctx: click.Context,
    file: Path,
    out: Path | None,
    jobs: int | None,
    timeout: int,
    scheduler: str | None,
    only: tuple[str, ...],
    dry_run: bool,
    verify: bool,
) -> None:
    """Run the experiment FILE: each run leaves a folder with its tables and what it was made from.

    A second call runs what is missing, has failed, or was made from other parameters, inputs, notebook
    or package. Interrupted (Ctrl-C, SIGTERM), finished runs stay. A run that fails stops no other: it is
    named, and the exit code is 1. The last line is the path of the first page.
    """
    if verify:
        if out or only or dry_run:
            raise InputError("--verify takes a folder and goes with --jobs, --timeout and --scheduler alone")
        _verify(ctx, file, spread(jobs, scheduler), timeout, elsewhere=scheduler is not None)
        return
    experiment = read_experiment(file)
    out = out or Path("out/sweeps") / experiment.name
    chosen = _chosen(experiment, only)
    if dry_run:
        for run, why in pending(experiment, out):
            if chosen is None or run.id in chosen:
                click.echo(f"{run.id}: {why or 'done'}")
        return
    each = spread(jobs, scheduler)
    finish(ctx, experiment, out, each, only=chosen, timeout=timeout, elsewhere=scheduler is not None)


def spread(jobs: int | None, scheduler: str | None = None) -> Each:
    """Return how works are spread over this machine's processors or a scheduler's workers, with a bar."""
    by = workers(jobs or os.cpu_count() or 1, scheduler, in_order=False)

    def each(
        function: Callable[[Work], Ended], works: Sequence[Work], *, lost: Lost[Work, Ended]
    ) -> Generator[Ended, None, None]:
        found = pool.each(function, works, by, lost=lost)
        yield from progress(found, len(works), "run")

    return each


def finish(
    ctx: click.Context,
    experiment: Experiment,
    out: Path,
    each: Each,
    *,
    only: frozenset[str] | None = None,
    timeout: int,
    show: bool = False,
    elsewhere: bool = False,
) -> None:
    """Sweep, name the runs that fail (with `show` all that end), and leave with the exit code."""
    ended: list[Ended] = []

    def note(one: Ended) -> None:
        ended.append(one)
        if show or one.status.state != "done":
            click.echo(_line(one))

    page = run_sweep(
        experiment,
        out,
        each=each,
        say=click.echo,
        ended=note,
        only=only,
        timeout=timeout,
        elsewhere=elsewhere,
    )
    total = len(experiment.runs if only is None else only)
    failed = sum(one.status.state != "done" for one in ended)
    before = f", {total - len(ended)} as before" if total > len(ended) else ""
    click.echo(f"{experiment.name}: {len(ended) - failed} of {total} runs done, {failed} failed{before}")
    click.echo(page)
    ctx.exit(1 if failed else 0)


def _line(one: Ended) -> str:
    status = one.status
    if status.error is None:
        return f"{one.id}: done in {status.seconds:.1f} s"
    cell = status.error["cell"]
    where = "" if cell is None else f" in cell {cell}"
    return f"{one.id}: failed{where}: {status.error['type']}: {status.error['message']}"


def _chosen(experiment: Experiment, only: Sequence[str]) -> frozenset[str] | None:
    """Return the ids that the patterns name; a comma parts patterns where the whole matches nothing."""
    if not only:
        return None
    ids = [run.id for run in experiment.runs]
    found: set[str] = set()
    for pattern in only:
        whole = {name for name in ids if fnmatchcase(name, pattern)}
        for part in [pattern] if whole else pattern.split(","):
            matches = {name for name in ids if fnmatchcase(name, part)}
            if not matches:
                some = ", ".join(ids[:5]) + (", ..." if ids[5:] else "")
                raise InputError(f"--only '{quoted(pattern)}': no such run; there are {some}")
            found |= matches
    return frozenset(found)


def _verify(ctx: click.Context, folder: Path, each: Each, timeout: int, *, elsewhere: bool) -> None:
    from mmulab.report.verify import verify

    found = verify(folder, each=each, timeout=timeout, elsewhere=elsewhere)
    for line in (*found.notes, *found.differences):
        click.echo(line)
    click.echo(f"verify: {found.equal} of {found.total} runs equal")
    ctx.exit(0 if found.equal == found.total else 1)
