"""A report: notebooks run in order, each in a folder that says how to repeat it.

Layout of the output folder::

    index.html                    links to every page
    NAME/NAME.html                the page, opened with no network
    NAME/NAME.ipynb               the executed notebook
    NAME/parameters.json          the value of every parameter
    NAME/provenance.json          command, seed, versions, digests of notebook and inputs
    NAME/tables/TABLE.csv         the results tables
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmulab.lab import folder, page, provenance, results
from mmulab.lab.notebook import CELL_TIMEOUT, execute
from mmulab.lab.parameters import resolve

__all__ = ["report"]


def report(
    notebooks: Sequence[Path],
    out: Path,
    given: Mapping[str, object],
    *,
    timeout: int = CELL_TIMEOUT,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Run `notebooks` and write the report; it appears whole or not at all.

    Parameters
    ----------
    notebooks : sequence of pathlib.Path
    out : pathlib.Path
        Folder of the report; an earlier report there is replaced.
    given : mapping of str to object
        Parameters for every one of the notebooks.
    timeout : int
        Seconds that one cell may take.
    say : callable
        Takes one line of progress.

    Returns
    -------
    pathlib.Path
        The report's ``index.html``.

    Raises
    ------
    InputError
        If the folder cannot be written or a parameter is refused. Folder, names and types are
        looked at before the first notebook runs.
    """
    for path in notebooks:
        resolve(path, given)
    with folder.whole(out) as building:
        entries = []
        for number, path in enumerate(notebooks, 1):
            say(f"[{number}/{len(notebooks)}] {path.stem}")
            entries.append(_run(path, building / path.stem, given, timeout))
        (building / "index.html").write_text(page.shell("mmulab report", _index(entries)), "utf-8")
    return out / "index.html"


def _run(path: Path, target: Path, given: Mapping[str, object], timeout: int) -> dict[str, Any]:
    """Run one notebook into the folder `target` and return what the index says about it."""
    parameters = resolve(path, given)
    target.mkdir()
    executed = execute(path, target / path.name, given, timeout=timeout)
    tables = results.harvest(executed)
    run = provenance.Run(path, parameters, provenance.harvest(executed))
    _write_json(target / "parameters.json", parameters)
    _write_json(target / "provenance.json", provenance.record(run))
    if tables:
        (target / "tables").mkdir()
    for table in tables:
        (target / "tables" / f"{table.name}.csv").write_text(table.csv(), "utf-8", newline="")
    (target / f"{path.stem}.html").write_text(page.export(executed, path.stem), "utf-8")
    return {
        "name": path.stem,
        "title": _title(executed) or path.stem,
        "parameters": parameters,
        "tables": [table.name for table in tables],
        "repeat": provenance.repeat(path.stem, parameters),
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _title(notebook: Any) -> str:
    """Return the first heading of the notebook, or an empty string."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return str(cell.source.splitlines()[0][2:].strip())
    return ""


def _index(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the body of the index page."""
    sections = ["<h1>mmulab report</h1>"]
    for entry in entries:
        name = escape(entry["name"])
        links = [f'<a href="{name}/{name}.ipynb">executed notebook</a>']
        links += [f'<a href="{name}/provenance.json">provenance</a>']
        links += [f'<a href="{name}/tables/{table}.csv">{table}.csv</a>' for table in entry["tables"]]
        sections.append(
            f'<h2><a href="{name}/{name}.html">{escape(entry["title"])}</a></h2>\n'
            f"<p>{' · '.join(links)}</p>\n<p>Again: <code>{escape(entry['repeat'])}</code></p>"
        )
    return "\n".join(sections)
