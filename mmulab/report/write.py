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
import shutil
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmulab import files
from mmulab.report import folder, page, provenance, results
from mmulab.report.notebook import CELL_TIMEOUT, execute
from mmulab.report.parameters import resolve

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

    Interrupted, it has the notebooks that are finished, says which are missing,
    and keeps what an earlier report had of the others; if none is finished, the
    earlier report stays as it is.

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
    KeyboardInterrupt
        It was interrupted; what is finished is written.
    """
    for path in notebooks:
        resolve(path, given)
    entries: list[dict[str, Any]] = []
    interrupt = None
    with folder.whole(out) as building:
        try:
            for number, path in enumerate(notebooks, 1):
                say(f"[{number}/{len(notebooks)}] {path.stem}")
                with files.disk_errors_of(out):
                    entries.append(_run(path, building / path.stem, given, timeout))
        except KeyboardInterrupt as error:
            if not entries:
                raise
            interrupt = error
        with files.disk_errors_of(out):
            missing = [path.stem for path in notebooks[len(entries) :]]
            kept = _keep(out, building, [entry["name"] for entry in entries]) if missing else []
            index = _index(entries) + _index_missing(missing, kept)
            (building / "index.html").write_text(page.shell("mmulab report", index), "utf-8")
    if interrupt is not None:
        say(f"interrupted: {len(entries)} of {len(notebooks)} notebooks are in {out / 'index.html'}")
        raise interrupt
    return out / "index.html"


def _keep(out: Path, building: Path, finished: Sequence[str]) -> list[str]:
    """Take over from the earlier report what an interrupted one has not; return the notebooks' names."""
    names = [path.stem for path in out.glob("*/*.html") if path.stem == path.parent.name]
    kept = sorted(set(names) - set(finished))
    for path in building.iterdir():
        if path.is_dir() and path.name not in finished:  # the notebook that was running
            shutil.rmtree(path)
    for name in kept:
        shutil.copytree(out / name, building / name)
    return kept


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


def _index_missing(missing: Sequence[str], kept: Sequence[str]) -> str:
    """Return what the index page of an interrupted report says of the other notebooks."""
    lines = [f"<p>{escape(name)}: not run, the report was interrupted</p>" for name in missing]
    lines += [
        f'<p>From an earlier report: <a href="{escape(name)}/{escape(name)}.html">{escape(name)}</a></p>'
        for name in kept
    ]
    return "".join(f"\n{line}" for line in lines)
