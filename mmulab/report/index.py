"""The first page of a report or a sweep: what came of each run, with no network.

A report's page is one to start from: it says the results in the order in which the notebooks
are to be read. A sweep's has a table of its runs, which a script of its own sorts and filters; without
scripts it is read as it is. Whatever comes from a run is escaped, and pictures are
images, in which no script runs.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmulab import files
from mmulab.report import page
from mmulab.report.finished import MANIFEST, STATUS, SWEEP, Finished, Joined, Sweep, joined, read_sweep
from mmulab.report.links import linked
from mmulab.report.provenance import date_of
from mmulab.report.reading import Entry, reading
from mmulab.report.results import is_number
from mmulab.report.tables import PARQUET, read_parquet

__all__ = ["write_index"]

INDEX = "index.html"
_ROWS = 200
"""Rows of a joined table that the page has."""
_PICTURES = 60
"""Pictures that a sweep's page has."""
CONFORMANCE = "conformance"
"""The table that says how many recordings agree; :func:`mmulab.lab.conformance.conformance` makes it."""
_MEASURE = "mmulab conform data/conformance data/conformance-more --level full"
_WHAT = (
    "mmulab runs Linux KVM's shadow and nested MMU as a model. Each page below is a notebook that was run "
    "from its first cell to its last; below its name stand what it is, why to read it there, and its result."
)
_TRACE_LINES = 40
_MESSAGE_LINES = 4


def write_index(folder: Path) -> Path:
    """Write the first page of `folder` from what its runs left, and return its path.

    A page that is as new as all that it is made from stays.

    Raises
    ------
    InputError
        `folder` is of no report or sweep, a file in it is damaged, or the page cannot be written.
    """
    if _is_new(folder):
        return folder / INDEX
    sweep = read_sweep(folder)
    title = sweep.title or sweep.name
    if sweep.is_report:
        html = page.shell(title, linked(_report(folder, sweep)), style=_asset("index.css"))
    else:
        script = _asset("index.js") if sweep.runs else ""
        html = page.shell(title, _sweep(folder, sweep), style=_asset("index.css"), script=script)
    files.write_text(folder / INDEX, html)
    return folder / INDEX


def _is_new(folder: Path) -> bool:
    """Whether the page was written after the sweep and each of its runs.

    Whoever changes what a page looks like changes the package, and then the runs are made again.
    """
    try:
        made = (folder / INDEX).stat().st_mtime_ns
        from_these = [folder / SWEEP, *folder.glob(f"*/{STATUS}")]
        return all(path.stat().st_mtime_ns < made for path in from_these)
    except OSError:  # something is missing: who reads it says what
        return False


def _asset(name: str) -> str:
    return (page.TEMPLATES / "mmulab" / name).read_text("utf-8")


def _summary(sweep: Sweep, what: str) -> str:
    """Return how many runs there are, by what came of them, and the time they took."""
    states = Counter(run.state for run in sweep.runs)
    words = [f"{len(sweep.runs):,} {what}{'' if len(sweep.runs) == 1 else 's'}"]
    words += [
        f'<span class="{state}">{states[state]} {said}</span>'
        for state, said in (("failed", "failed"), ("missing", "not run"))
        if states[state]
    ]
    words.append(_seconds(sum(run.seconds or 0 for run in sweep.runs)))
    return f'<p class="summary">{", ".join(words)}.</p>'


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _report(folder: Path, sweep: Sweep) -> str:
    """Return the page to start from: how far the model can be trusted, and the notebooks in reading order."""
    entries = reading()
    order = list(entries)
    runs = sorted(sweep.runs, key=lambda run: order.index(run.id) if run.id in entries else len(order))
    parts = [f"<h1>{escape(sweep.title or sweep.name)}</h1>", f"<p>{_WHAT}</p>", _summary(sweep, "notebook")]
    parts.append(f'<ul class="facts">{"".join(f"<li>{fact}</li>" for fact in _facts(folder, runs))}</ul>')
    part = None
    for number, run in enumerate(runs, 1):
        entry = entries.get(run.id) or Entry(run.id, "Other notebooks", "", "")
        if entry.part != part:
            parts.append(f'{"</ol>" if part else ""}<h2>{escape(entry.part)}</h2><ol class="order">')
            part = entry.part
        parts.append(_article(folder, run, number, entry))
    return "\n".join([*parts, "</ol>" if part else ""])


def _facts(folder: Path, runs: Sequence[Finished]) -> Iterator[str]:
    """Yield what the report rests on: the conformance figure and the package."""
    found = [fact for run in runs if CONFORMANCE in run.tables for fact in _conformance(folder, run)]
    yield from found or [f"Conformance was not measured here: <code>{_MEASURE}</code> measures it."]
    for package in dict.fromkeys(run.package for run in runs if run.package):
        version, *commit = package
        words = f"Run by mmulab {escape(version)}"
        for name in commit:
            words += f", commit <code>{escape(name[:12])}</code>"
            words += f" of {day}" if (day := date_of(name)) else ""
            words += ", with changes" if name.endswith("-modified") else ""
        yield f"{words}."


def _conformance(folder: Path, run: Finished) -> Iterator[str]:
    """Yield for each kernel how many recordings agree, by the table that a notebook of this report made."""
    table = next(found for found in read_parquet(folder / run.id / PARQUET) if found.name == CONFORMANCE)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        total = Counter[str]()
        for row in (row for row in rows if row["kernel"] == kernel):
            total.update({name: value for name, value in row.items() if is_number(value)})
        mark = "" if total["agree"] == total["compared"] else ' class="failed"'
        hosts = ", ".join(row["host"] for row in rows if row["kernel"] == kernel and row["compared"])
        yield (
            f"<strong{mark}>{total['agree']:,} of {total['compared']:,} "
            f"recordings of Linux {escape(kernel)} agree</strong> with the model in every event, outcome and "
            f"statistic: {total['ops agree']:,} of {total['ops']:,} ops, {total['events agree']:,} of "
            f"{total['events']:,} events. Those are the recordings of {escape(hosts)}; there are "
            f"{total['recordings']:,}, and <code>{_MEASURE}</code> compares all. Measured in this report by "
            f'<a href="#{escape(run.id)}">{escape(run.title)}</a>.'
        )


def _article(folder: Path, run: Finished, number: int, entry: Entry) -> str:
    """Return what a report's page says of one notebook."""
    title = f"{number}. {escape(run.title)}"
    if shown := _page_of(run):
        title = f'{number}. <a href="{_link(run, shown)}">{escape(run.title)}</a>'
    lines = [f"<h3>{title}</h3>"]
    if entry.about:
        lines.append(f'<p>{escape(entry.about)} <span class="why">{escape(entry.why)}</span></p>')
    if run.state == "missing":
        lines.append('<p class="missing">Not run.</p>')
    if run.sentence:
        lines.append(f'<p class="result">{escape(run.sentence)}</p>')
    if run.state == "failed":
        lines.append(_failure(run))
    links = " · ".join(_links(run))
    again = f"<p>Again: <code>{escape(run.repeat)}</code></p>" if run.repeat else ""
    time = "" if run.seconds is None else f"{_seconds(run.seconds)} · "
    if links or again:
        lines.append(f"<details><summary>{time}files and command</summary><p>{links}</p>{again}</details>")
    image = _image(folder, run)
    small = f'<div class="small">{image}</div>' if image else ""
    words = "\n".join(lines)
    return f'<li id="{escape(run.id)}"><div class="words">{words}</div>{small}</li>'


def _failure(run: Finished) -> str:
    """Return where a run failed and why: the first lines, and the traceback folded."""
    error = run.error
    if error is None:
        return '<p class="failed">failed</p>'
    where = "" if error.cell is None else f" in cell {error.cell}"
    message = "\n".join(error.message.splitlines()[:_MESSAGE_LINES])
    head = f'<strong class="failed">failed{where}</strong>: {escape(error.type)}'
    html = f'<div class="error">{head}<pre>{escape(message)}</pre>'
    if error.traceback:
        lines = error.traceback.splitlines()
        cut = f"\n({len(lines) - _TRACE_LINES} more lines)" if len(lines) > _TRACE_LINES else ""
        text = escape("\n".join(lines[:_TRACE_LINES]) + cut)
        html += f"<details><summary>traceback</summary><pre>{text}</pre></details>"
    return html + "</div>"


def _page_of(run: Finished) -> str | None:
    """Return the name of a run's page, if it has one."""
    name = f"{Path(run.target).stem}.html"
    return name if name in run.files else None


def _link(run: Finished, name: str) -> str:
    return escape(quote(f"{run.id}/{name}"))


def _links(run: Finished) -> Iterator[str]:
    """Yield links to the files of a run."""
    known = [
        ("page", _page_of(run)),
        ("executed notebook", f"{Path(run.target).stem}.ipynb"),
        ("manifest", MANIFEST),
        (PARQUET, PARQUET if run.tables else None),
    ]
    for words, name in known:
        if name in run.files:
            yield f'<a href="{_link(run, name)}">{words}</a>'
    if "tables" in run.files:
        for table in run.tables:
            yield f'<a href="{_link(run, f"tables/{table}.csv")}">{escape(table)}.csv</a>'


def _image(folder: Path, run: Finished) -> str:
    """Return a run's picture as an image that the page holds, empty if it has none."""
    if run.picture is None or run.picture not in run.files:
        return ""
    data = base64.b64encode(files.read_bytes(folder / run.id / run.picture)).decode("ascii")
    words = escape(f"Picture of the result: {run.sentence or run.title}")
    return f'<img class="picture" alt="{words}" src="data:image/svg+xml;base64,{data}">'


def _sweep(folder: Path, sweep: Sweep) -> str:
    parts = [f"<h1>{escape(sweep.title or sweep.name)}</h1>", _summary(sweep, "run")]
    values = {name: [run.parameters.get(name) for run in sweep.runs] for name in sweep.parameters}
    varied = [name for name, own in values.items() if any(value != own[0] for value in own)]
    same = [name for name in values if name not in varied]
    if same:
        words = ", ".join(f"{escape(name)} = <code>{escape(str(values[name][0]))}</code>" for name in same)
        parts.append(f"<p>The same in all runs: {words}.</p>")
    parts.append('<div class="controls"></div>')
    parts.append(f'<div class="wide">{_runs_table(sweep.runs, varied)}</div>')
    failed = [run for run in sweep.runs if run.state == "failed"]
    if failed:
        parts.append("<h2>What failed</h2>")
        parts += [f'<h3 id="failed-{escape(run.id)}">{escape(run.id)}</h3>{_failure(run)}' for run in failed]
    parts += _pictures(folder, sweep.runs)
    tables = joined(folder, sweep)
    if tables:
        asked = f"mmulab results FOLDER 'select * from {tables[0].name}'"
        parts.append(f"<h2>Results of all runs</h2>\n<p>To ask them: <code>{escape(asked)}</code></p>")
        parts += map(_joined_table, tables)
    return "\n".join(parts)


def _runs_table(runs: Sequence[Finished], varied: Sequence[str]) -> str:
    """Return the table of runs: what differs between them, what came of each, and its files."""
    targets = len({run.target for run in runs}) > 1
    seeds = any(run.seed is not None and "seed" not in run.parameters for run in runs)
    columns = [
        ("run", "data-sort"),
        *[("target", "data-sort data-choose")] * targets,
        *((name, "data-sort data-choose") for name in varied),
        *[("seed", "data-sort")] * seeds,
        ("state", "data-sort data-choose"),
        ("seconds", "data-sort"),
        ("result", "data-sort"),
        ("files", ""),
    ]
    head = "".join(f'<th scope="col" {marks}>{escape(name)}</th>' for name, marks in columns)
    names = [name for name, _ in columns]
    body = ""
    for run in runs:
        name = escape(run.id)
        if shown := _page_of(run):
            name = f'<a href="{_link(run, shown)}">{name}</a>'
        state = {"missing": "not run"}.get(run.state, run.state)
        if run.state == "failed":
            state = f'<a class="failed" href="#failed-{escape(quote(run.id))}">failed</a>'
        cells = [
            (run.id, name),
            *[(run.target, escape(run.target))] * targets,
            *((run.parameters.get(key), _shown(run.parameters.get(key))) for key in varied),
            *[(run.seed, _shown(run.seed))] * seeds,
            (run.state, state),
            (run.seconds, "" if run.seconds is None else f"{run.seconds:.1f}"),
            (run.sentence, escape(run.sentence or "")),
            ("", " · ".join(_links(run))),
        ]
        body += f"<tr>{''.join(map(_run_cell, names, cells))}</tr>\n"
    return f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>'


def _run_cell(column: str, cell: tuple[Any, str]) -> str:
    """Return one cell, with the value that it sorts by and its column's name for narrow windows."""
    value, html = cell
    text = "" if value is None else escape(str(value))
    number = ' class="number"' if is_number(value) else ""
    return f'<td{number} data-name="{escape(column)}" data-value="{text}">{html}</td>'


def _shown(value: object) -> str:
    return "" if value is None else escape(str(value))


def _pictures(folder: Path, runs: Sequence[Finished]) -> Iterator[str]:
    """Yield the runs' pictures, each with its run."""
    having = [run for run in runs if run.picture is not None and run.picture in run.files]
    if not having:
        return
    yield "<h2>Pictures</h2>"
    if len(having) > _PICTURES:
        yield f"<p>The first {_PICTURES} of {len(having)}; the others lie in the runs' folders.</p>"
    yield '<div class="pictures">'
    for run in having[:_PICTURES]:
        words = escape(run.id) + (f": {escape(run.sentence)}" if run.sentence else "")
        yield f"<figure>{_image(folder, run)}<figcaption>{words}</figcaption></figure>"
    yield "</div>"


def _joined_table(table: Joined) -> str:
    """Return the first rows of a joined table, folded; each row's run leads to its own file."""
    shown = min(table.rows, _ROWS)
    rows = f"{table.rows:,} row{'' if table.rows == 1 else 's'} of {len(table.runs)} runs"
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    lists = [column.slice(0, shown).to_pylist() for column in table.columns.values()]
    body = "\n".join(f"<tr>{_joined_cells(table.name, row)}</tr>" for row in zip(*lists, strict=True))
    cut = ""
    if shown < table.rows:
        asked = f"mmulab results FOLDER 'select * from \"{table.name}\"' --csv"
        files_of = ", ".join(
            f'<a href="{escape(quote(f"{run}/{PARQUET}"))}">{escape(run)}</a>'
            for run in islice(table.runs, 20)
        )
        more = f" and {len(table.runs) - 20} more" if len(table.runs) > 20 else ""
        cut = (
            f"<p>The first {shown:,} of {table.rows:,} rows. All: <code>{escape(asked)}</code>, "
            f"or {PARQUET} of {files_of}{more}.</p>"
        )
    caption = f"<p>{escape(table.caption)}</p>" if table.caption else ""
    return (
        f"<details><summary>{escape(table.name)}: {rows}</summary>{caption}{cut}"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        "</details>"
    )


def _joined_cells(name: str, row: Sequence[Any]) -> str:
    link = escape(quote(f"{row[0]}/tables/{name}.csv"))
    cells = [f'<td><a href="{link}">{escape(row[0])}</a></td>']
    for value in row[1:]:
        number = ' class="number"' if is_number(value) else ""
        cells.append(f"<td{number}>{_shown(value)}</td>")
    return "".join(cells)
