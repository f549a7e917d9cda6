"""A sweep: the runs of an experiment, each in a folder that appears whole.

Layout of the output folder::

    sweep.json      the runs in their order
    index.html      the first page
    ID/             a run's files, see :mod:`mmulab.report.run`

A second sweep into the folder runs what is missing, has failed, or was made from
something else: other parameters, inputs, notebook or package. What is finished
stays through interrupts and crashes, and what comes out does not depend on the
order in which runs end.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from mmulab import files
from mmulab.errors import InputError, named
from mmulab.pool import Lost, WorkerError
from mmulab.report import folder, provenance
from mmulab.report.experiment import Experiment, Run
from mmulab.report.finished import MANIFEST, STATUS, SWEEP
from mmulab.report.index import write_index
from mmulab.report.notebook import CELL_TIMEOUT
from mmulab.report.run import Status, basis, execute_run, give_up, input_digest

__all__ = ["Each", "Ended", "pending", "sweep"]


class Ended(NamedTuple):
    """A run that has come to its end; from another machine, its files too, by their paths in its folder."""

    id: str
    status: Status
    files: Mapping[str, bytes] | None = None


class Work(NamedTuple):
    """A run, its seconds, and the folder of the sweep: None if that is not to be seen from there.

    Then `files` says where what the run reads is, by its name: that goes along (:mod:`mmulab.parcel`).
    """

    run: Run
    timeout: int
    out: str | None
    files: Mapping[str, Path] = {}

    @classmethod
    def elsewhere(cls, run: Run, timeout: int) -> Work:
        """Return the work of a machine that has none of this one's files."""
        names = [*run.inputs, *([run.target.name] if run.target.kind == "notebook" else [])]
        return cls(run, timeout, None, {name: provenance.path_of(name) for name in names})


class Each(Protocol):
    """How works are spread: :func:`mmulab.pool.each`, or a cluster's, with all but these set."""

    def __call__(
        self, function: Callable[[Work], Ended], works: Sequence[Work], *, lost: Lost[Work, Ended]
    ) -> Generator[Ended, None, None]:
        """Yield what `function` returns for each of the works, and `lost` for one whose worker died."""


def sweep(
    experiment: Experiment,
    out: Path,
    *,
    each: Each,
    resume: bool = True,
    say: Callable[[str], None] = lambda line: None,
    ended: Callable[[Ended], None] = lambda one: None,
    only: Collection[str] | None = None,
    timeout: int = CELL_TIMEOUT,
    elsewhere: bool = False,
) -> Path:
    """Run an experiment into the folder `out`.

    Parameters
    ----------
    experiment : Experiment
    out : pathlib.Path
        A folder of an earlier sweep of this name, an empty one, or none.
    each : callable
        Spreads the works.
    resume : bool
        Keep finished runs that are made from the same.
    say : callable
        Takes a line about what the sweep does as a whole.
    ended : callable
        Called as each run ends.
    only : collection of str, optional
        Ids of the runs to do; the others stay as they are.
    timeout : int
        Seconds that a cell or a function may take.
    elsewhere : bool
        Works are done where `out` cannot be seen: their files come back with the results.

    Returns
    -------
    pathlib.Path
        The first page.

    Raises
    ------
    InputError
        The folder cannot be written, holds something else, or another sweep is writing it.
    KeyboardInterrupt
        It was interrupted; what is finished is there.
    """
    with _owned(out, experiment.name):
        todo = [run for run, why in pending(experiment, out, resume=resume) if why]
        chosen = [run for run in todo if only is None or run.id in only]
        with files.disk_errors_of(out):
            _write_record(out / SWEEP, experiment)
        if chosen:
            _prepare(chosen)
        count = 0
        here = str(out.resolve())
        works = [Work.elsewhere(run, timeout) if elsewhere else Work(run, timeout, here) for run in chosen]
        try:
            for one in each(perform, works, lost=partial(_died, out)):
                kept = one if one.files is None else _keep(one, out)
                count += 1
                ended(kept)
        except BaseException as error:  # an interrupt above all; the workers are gone
            folder.sweep_killed(out)
            with suppress(InputError), files.disk_errors_of(out):  # the disk is full: the next call writes it
                write_index(out)
            if isinstance(error, KeyboardInterrupt):
                say(f"interrupted: {count} of {len(chosen)} runs ended; the same command goes on")
            raise
        if only is None:
            _drop_others(experiment, out)
        with files.disk_errors_of(out):
            return write_index(out)


def _write_record(path: Path, experiment: Experiment) -> None:
    """Write what the sweep is, if the file says anything else: the first page is as new as the file."""
    text = json.dumps(experiment.record(), indent=1) + "\n"
    if not path.exists() or path.read_bytes() != text.encode():
        files.write_text(path, text)


def pending(experiment: Experiment, out: Path, *, resume: bool = True) -> Iterator[tuple[Run, str]]:
    """Yield each run and why it is to be run; an empty string if it need not."""
    for run in experiment.runs:
        yield run, _why(run, out / run.id) if resume else "asked for"


def _why(run: Run, target: Path) -> str:
    """Return why a run is to be run, an empty string if it is done and from the same."""
    try:
        status = json.loads((target / STATUS).read_bytes())
        manifest = json.loads((target / MANIFEST).read_bytes())
        manifest["package"] = manifest["package"]["sha256"]
        if status["state"] != "done":
            return "failed"
        inputs = manifest["inputs"] | run.inputs
        now = basis(run)
    except FileNotFoundError:
        return "missing"
    except InputError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, OSError):
        return "damaged"
    for key, value in now.items():
        if manifest.get(key) != value:
            return f"another {key}"
    for name, digest in inputs.items():
        if manifest["inputs"].get(name) != digest or _differs(name, digest):
            return f"another input {name}"
    return ""


def _differs(name: str, digest: str) -> bool:
    """Whether an input is another now; what a notebook named in short cannot be found and counts as same."""
    if "/" not in name and not provenance.path_of(name).exists():
        return False
    try:
        return input_digest(name) != digest
    except InputError:
        return True


def perform(work: Work) -> Ended:
    """Do one run, in a worker: its folder appears whole, whatever comes of it."""
    run = work.run
    try:
        if work.out is not None:
            with folder.whole(Path(work.out) / run.id) as building:
                return Ended(run.id, execute_run(run, building, timeout=work.timeout))
        with (
            provenance.standing_in(work.files),
            tempfile.TemporaryDirectory(prefix="mmulab-run-") as name,
        ):
            status = execute_run(run, Path(name), timeout=work.timeout)
            found = sorted(path for path in Path(name).rglob("*") if path.is_file())
            carried = {path.relative_to(name).as_posix(): path.read_bytes() for path in found}
            return Ended(run.id, status, carried)
    except InputError as error:  # a full disk: the run is as good as not run
        return _unwritten(run.id, run.target.stem, error)


def _died(out: Path, work: Work, error: WorkerError) -> Ended:
    """Note in a run's folder, which its worker has left half-made, that this died of it."""
    run = work.run
    try:
        with folder.whole(out / run.id) as building:
            return Ended(run.id, give_up(run, building, error))
    except InputError as full:
        return _unwritten(run.id, run.target.stem, full)


def _unwritten(identity: str, title: str, error: InputError) -> Ended:
    about = {"type": "InputError", "message": str(error), "cell": None, "traceback": None}
    return Ended(identity, Status("failed", None, about, title))


def _keep(one: Ended, out: Path) -> Ended:
    """Write the files of a run that was done elsewhere."""
    assert one.files is not None
    try:
        with folder.whole(out / one.id) as building, files.disk_errors_of(out):
            for name, content in one.files.items():
                path = building / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    except InputError as error:
        return _unwritten(one.id, one.status.title, error)
    return Ended(one.id, one.status)


def _prepare(runs: Sequence[Run]) -> None:
    """Load before the workers are forked what all of them need."""
    provenance.digest_of_package()
    provenance.commit()
    provenance.owners()
    import pyarrow.parquet  # noqa: F401

    if any(run.target.kind == "notebook" for run in runs):
        from mmulab.report import engine, page  # noqa: F401


@contextmanager
def _owned(out: Path, name: str) -> Iterator[None]:
    """Have the folder for this sweep alone.

    Raises
    ------
    InputError
        It cannot be written, holds something else, or another sweep has it.
    """
    _check_ours(out, name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        marker = os.open(out / folder.MARKER, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        why = f"the folder cannot be written ({files.reason(error)}); {files.remedy(error, 'folder')}"
        raise InputError(f"{named(out)}: {why}") from error
    try:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            mend = "wait for it, or name another folder"
            raise InputError(f"{named(out)}: another sweep is writing this folder; {mend}") from error
        yield
    finally:
        os.close(marker)


def _check_ours(out: Path, name: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    mine = out.is_dir() and (out / folder.MARKER).exists()
    others = mine and [path.name for path in out.iterdir() if path.name != folder.MARKER]
    if not mine or (others and not (out / SWEEP).exists()):
        raise InputError(f"{named(out)}: exists and is no earlier output of a sweep; name another folder")
    if (out / SWEEP).exists():
        there = Experiment.from_folder(out).name
        if there != name:
            raise InputError(f"{named(out)}: holds the sweep '{there}', not '{name}'; name another folder")


def _drop_others(experiment: Experiment, out: Path) -> None:
    """Remove runs that the experiment no longer has."""
    wanted = {run.id for run in experiment.runs}
    for path in out.iterdir():
        if path.name not in wanted and (path / folder.MARKER).exists():
            folder.clear(path)
