"""``mmulab report``: run the notebooks, write pages."""

from __future__ import annotations

from pathlib import Path

import click

from mmulab import paths
from mmulab.cli.path import PATH
from mmulab.report.notebook import CELL_TIMEOUT
from mmulab.report.write import report as write_report


@click.command()
@click.option(
    "--out",
    type=PATH,
    default=Path("out/report"),
    show_default=True,
    help="Folder to write; an earlier report there is replaced.",
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
@click.option(
    "--timeout",
    type=click.IntRange(1),
    default=CELL_TIMEOUT,
    show_default=True,
    help="Seconds a cell may take.",
)
def report(out: Path, names: tuple[str, ...], given: tuple[tuple[str, str], ...], timeout: int) -> None:
    """Run the project's notebooks and export each to a page that shows everything with no network.

    Each notebook gets a folder with its page, the executed notebook, its results tables, and what
    is needed to run it again. A line names each notebook as it starts; the last line is the path of
    the report's first page. Interrupted (Ctrl-C, SIGTERM), the report has the notebooks that are
    finished, and of the others what an earlier report there had.
    """
    notebooks = [paths.notebook(name) for name in dict.fromkeys(names)] or paths.notebooks()
    click.echo(write_report(notebooks, out, dict(given), timeout=timeout, say=click.echo))
