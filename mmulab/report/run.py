"""One run, from its parameters to the files in its folder.

::

    manifest.json             what it was made from, and how to repeat it: no hour, no host
    status.json               what came of it, and the seconds it took
    results.parquet           its results tables, and tables/TABLE.csv
    STEM.ipynb, STEM.html     of a notebook: the executed one and its page
    STEM-NAME.html            a page to which that one links
    picture.svg               of a notebook that declares one

A run that fails has manifest, status, and the notebook as far as it came.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import mmulab
from mmulab import files
from mmulab.digests import digest
from mmulab.errors import InputError, quoted
from mmulab.pool import WorkerError
from mmulab.report import provenance, result, results
from mmulab.report.experiment import Run
from mmulab.report.finished import MANIFEST, PICTURE, STATUS
from mmulab.report.notebook import CELL_TIMEOUT, execute
from mmulab.report.results import Table
from mmulab.report.tables import PARQUET, write_parquet

__all__ = ["Status", "basis", "execute_run", "give_up"]

_MESSAGE = 500
"""Characters of what an error says."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Status:
    """What came of a run.

    Attributes
    ----------
    state : {'done', 'failed'}
    seconds : float or None
        None: whoever could tell died.
    error : mapping or None
        ``type``, ``message``, ``cell`` (which of the executed notebook's, from 0) and ``traceback``.
    title : str
    result : str or None
        The sentence that the notebook declares.
    picture : str or None
        Name of a file.
    """

    state: str
    seconds: float | None
    error: Mapping[str, Any] | None
    title: str
    result: str | None = None
    picture: str | None = None


@dataclass(slots=True)
class _Found:
    """What a run has found so far."""

    title: str
    inputs: dict[str, str]
    packages: dict[str, str] | None = None
    tables: Sequence[Table] = ()
    result: str | None = None
    picture: str | None = None


class _TooLong(BaseException):
    """A function took too long; no ``except Exception`` of its stops it."""


@dataclass(slots=True, eq=False)
class _Failure(Exception):
    """A failure whose words are known already."""

    type: str
    message: str
    cell: int | None = None
    traceback: str | None = None


def execute_run(run: Run, target: Path, *, timeout: int = CELL_TIMEOUT) -> Status:
    """Run one run and write its files into the folder `target`, which exists.

    Parameters
    ----------
    run : Run
    target : pathlib.Path
    timeout : int
        Seconds that a cell may take; for a function, the whole of it, if it runs in the main thread.

    Returns
    -------
    Status
        Failed, if the run did anything wrong; that raises nothing.

    Raises
    ------
    InputError
        Not even the status can be written.
    """
    begin = time.monotonic()
    found = _Found(run.target.stem, dict(run.inputs))
    error: dict[str, Any] | None = None
    try:
        check_inputs(run.inputs)
        if run.target.kind == "notebook":
            _run_notebook(run, target, found, timeout)
        else:
            _run_function(run, found, timeout)
        _write_tables(target, found.tables)
        if run.target.kind == "function":  # writing imports more, which a worker keeps for its next run
            found.packages = provenance.imported()
    except (Exception, SystemExit, _TooLong) as caught:
        error = _described(caught)
        (target / PARQUET).unlink(missing_ok=True)
        shutil.rmtree(target / "tables", ignore_errors=True)
        found.tables = ()
    return _finish(run, target, found, error, round(time.monotonic() - begin, 3))


def give_up(run: Run, target: Path, error: WorkerError) -> Status:
    """Write into the folder `target` that a run ended its process; raises as :func:`execute_run`."""
    return _finish(run, target, _Found(run.target.stem, dict(run.inputs)), _described(error), None)


def _finish(
    run: Run, target: Path, found: _Found, error: dict[str, Any] | None, seconds: float | None
) -> Status:
    state = "done" if error is None else "failed"
    status = Status(state, seconds, error, found.title, found.result, found.picture)
    with files.disk_errors_of(target):
        _write_json(target / MANIFEST, _manifest(run, found))
        _write_json(target / STATUS, asdict(status))
    return status


def check_inputs(inputs: Mapping[str, str]) -> None:
    """Compare files with the digests that they must have.

    Raises
    ------
    InputError
        A file is missing or another.
    """
    for name, wanted in inputs.items():
        is_now = input_digest(name)
        if is_now != wanted:
            raise InputError(f"{name}: the input differs: its SHA-256 is {is_now}, expected {wanted}")


def input_digest(name: str) -> str:
    """Return the SHA-256 of the file that an input's name stands for."""
    return digest(provenance.path_of(name))


def basis(run: Run) -> dict[str, Any]:
    """Return what decides what a run finds: if a manifest says the same, it need not be run again.

    Raises
    ------
    InputError
        The notebook cannot be read.
    """
    notebook = None
    if run.target.kind == "notebook":
        notebook = {"name": run.target.name, "sha256": input_digest(run.target.name)}
    return {
        "target": run.target.name,
        "kind": run.target.kind,
        "parameters": dict(run.parameters),
        "seed": run.seed,
        "notebook": notebook,
        "package": provenance.digest_of_package(),
    }


def _manifest(run: Run, found: _Found) -> dict[str, Any]:
    try:
        known = basis(run)
    except InputError:  # the notebook went away: the status says so
        known = {"notebook": None, "package": provenance.digest_of_package()}
    all_installed = found.packages is None
    return {
        "id": run.id,
        "target": run.target.name,
        "kind": run.target.kind,
        "parameters": dict(run.parameters),
        "seed": run.seed,
        "inputs": found.inputs,
        "notebook": known["notebook"],
        "package": {
            "version": mmulab.__version__,
            "sha256": known["package"],
            "commit": provenance.commit(),
        },
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": provenance.packages() if found.packages is None else found.packages,
        "packages_are": "all that is installed" if all_installed else "imported by the run's process",
        "repeat": run.repeat,
        "tables": [table.name for table in found.tables],
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _write_tables(target: Path, tables: Sequence[Table]) -> None:
    write_parquet(tables, target / PARQUET)
    if tables:
        (target / "tables").mkdir()
    for table in tables:
        (target / "tables" / f"{table.name}.csv").write_text(table.csv(), "utf-8", newline="")


# A function -------------------------------------------------------------------


def _run_function(run: Run, found: _Found, timeout: int) -> None:
    function = run.target.function()
    found.title = (function.__doc__ or "").strip().partition("\n")[0].rstrip(".") or found.title
    with _limited(timeout):
        made = function(**run.parameters)
    tables = [made] if isinstance(made, Table) else made
    if not isinstance(tables, Sequence) or not all(isinstance(table, Table) for table in tables):
        raise TypeError(f"{run.target.name} returns {quoted(repr(made))}, not a Table or a list of such")
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        raise ValueError(f"{run.target.name} returns two tables of one name")
    found.tables = tables


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Raise in the block after so many seconds; only the main thread can be reached."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong(f"it took longer than {seconds} s; give smaller parameters or more time")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# A notebook -------------------------------------------------------------------


def _run_notebook(run: Run, target: Path, found: _Found, timeout: int) -> None:
    """Run it; only parameters that differ from the notebook's own are put in, so its defaults stay plain."""
    stem = run.target.stem
    output = target / f"{stem}.ipynb"
    known = run.target.parameters()
    given = {name: value for name, value in run.parameters.items() if value != known[name].default}
    try:
        executed = execute(run.target.path, output, given, timeout=timeout)
    except Exception as error:
        if output.exists():
            import nbformat

            left = nbformat.read(output, 4)
            _take(left, found)
            _write_page(target / f"{stem}.html", left, stem)
            raise _failure(error, left) from error
        raise
    _take(executed, found)
    found.tables = results.harvest(executed)
    declared = result.harvest(executed)
    if declared is not None:
        found.result = declared.sentence
        if declared.picture is not None:
            (target / PICTURE).write_text(declared.picture, "utf-8")
            found.picture = PICTURE
    _write_page(target / f"{stem}.html", executed, stem)


def _write_page(path: Path, notebook: Any, title: str) -> None:
    from mmulab.report import beside, page

    path.write_text(page.export(notebook, title), "utf-8")
    for name, text in beside.pages_of(notebook, title):
        path.with_name(name).write_text(text, "utf-8")


def _take(notebook: Any, found: _Found) -> None:
    """Take what a notebook says of itself, however far it came."""
    found.title = _title(notebook) or found.title
    found.packages = notebook.metadata.get("mmulab", {}).get("packages")
    found.inputs |= provenance.harvest(notebook)


def _title(notebook: Any) -> str:
    """Return the first heading of the notebook, or an empty string."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return str(cell.source.splitlines()[0][2:].strip())
    return ""


def _failure(error: Exception, notebook: Any) -> _Failure:
    """Return what went wrong in a notebook, with the cell where it stopped."""
    described = _described(error)
    cause = error.__cause__ if isinstance(error, InputError) and error.__cause__ else error
    kind = getattr(cause, "ename", None) or type(cause).__name__
    message = described["message"]
    trace = described["traceback"]
    if hasattr(error, "ename"):  # papermill's own, which quotes the cell's error
        message = quoted(f"{error.evalue}", _MESSAGE)  # type: ignore[attr-defined]
        trace = _COLOURS.sub("", "\n".join(error.traceback))  # type: ignore[attr-defined]
    return _Failure(kind, message, _failed_cell(notebook), trace)


def _failed_cell(notebook: Any) -> int | None:
    """Return which cell raised, or else the last that was begun."""
    begun = None
    for number, cell in enumerate(notebook.cells):
        about = cell.metadata.get("papermill", {})
        if about.get("exception"):
            return number
        if cell.cell_type == "code" and about.get("start_time"):
            begun = number
    return begun


def _described(error: BaseException) -> dict[str, Any]:
    if isinstance(error, _Failure):
        return asdict(error)
    kind = "TimeoutError" if isinstance(error, _TooLong) else type(error).__name__
    message = quoted(str(error).strip() or kind, _MESSAGE)
    told = isinstance(error, (InputError, _TooLong, OSError))
    trace = None if told else "".join(traceback.format_exception(error))
    return {"type": kind, "message": message, "cell": None, "traceback": trace}
