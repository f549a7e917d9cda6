"""``mmulab report``: run the notebooks, write pages."""

from __future__ import annotations

from pathlib import Path

import click

from mmulab import paths
from mmulab.cli.path import PATH
from mmulab.cli.sweep import JOBS, TIMEOUT, finish, spread
from mmulab.report.experiment import of_notebooks


@click.command()
@click.option(
    "--out",
    type=PATH,
    default=Path("out/report"),
    show_default=True,
    help="Folder to write, or to go on with.",
)
@click.option("--notebook", "names", metavar="NAME", multiple=True, help="Run only this one (repeatable).")
@click.option(
    "-p",
    "given",
    metavar="NAME VALUE",
    nargs=2,
    multiple=True,
    help="Set a parameter of every notebook that runs (repeatable).",
)
@JOBS
@TIMEOUT
@click.pass_context
def report(
    ctx: click.Context,
    out: Path,
    names: tuple[str, ...],
    given: tuple[tuple[str, str], ...],
    jobs: int | None,
    timeout: int,
) -> None:
    """Run the project's notebooks and export each to a page that shows everything with no network.

    Each notebook gets a folder with its page, the executed notebook, its results tables, and what is
    needed to run it again. A second call runs what is missing, has failed
    or has changed since; the folder then has these notebooks and no others. A line names each notebook
    as it ends; the last line is the path of the report's first page. Interrupted (Ctrl-C, SIGTERM),
    finished notebooks stay. One that fails stops no other, and the exit code is 1.
    """
    notebooks = [paths.notebook(name) for name in dict.fromkeys(names)] or paths.notebooks()
    experiment = of_notebooks(notebooks, dict(given))
    finish(ctx, experiment, out, spread(jobs), timeout=timeout, show=True)
