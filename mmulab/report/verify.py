"""A sweep repeated and compared with what its folder holds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmulab.errors import InputError, named
from mmulab.report.experiment import Experiment, Run
from mmulab.report.finished import MANIFEST, PICTURE, STATUS
from mmulab.report.normal import normal
from mmulab.report.notebook import CELL_TIMEOUT
from mmulab.report.sweep import Each, sweep
from mmulab.report.tables import PARQUET

__all__ = ["Verified", "verify"]

_SAME = ("target", "kind", "parameters", "seed", "inputs", "notebook", "tables")
"""What a manifest says of the run itself."""
_AROUND = ("python", "platform")


@dataclass(frozen=True, slots=True)
class Verified:
    """How runs and their repetitions compare.

    Attributes
    ----------
    total, equal : int
        Runs.
    differences : tuple of str
        A line each, in the order of the runs.
    notes : tuple of str
        What the repetition was made with that the runs were not; that alone makes no run differ.
    """

    total: int
    equal: int
    differences: tuple[str, ...]
    notes: tuple[str, ...]


def verify(folder: Path, *, each: Each, timeout: int = CELL_TIMEOUT, elsewhere: bool = False) -> Verified:
    """Repeat the runs of a sweep's folder and compare.

    Result tables and pictures must be equal to the byte, executed notebooks after
    :func:`mmulab.report.normal.normal`, and failures in kind, message and cell.

    Parameters
    ----------
    folder : pathlib.Path
        It is only read.
    each, timeout, elsewhere
        As :func:`mmulab.report.sweep.sweep` takes them.

    Raises
    ------
    InputError
        The folder is no sweep's.
    """
    experiment = Experiment.from_folder(folder)
    differences: list[str] = []
    notes: dict[str, None] = {}
    equal = 0
    with tempfile.TemporaryDirectory(prefix="mmulab-verify-") as name:
        again = Path(name) / "again"
        sweep(experiment, again, each=each, timeout=timeout, elsewhere=elsewhere)
        for run in experiment.runs:
            try:
                found = list(_differences(run, folder / run.id, again / run.id))
                notes |= dict.fromkeys(_notes(folder / run.id, again / run.id))
            except FileNotFoundError as error:
                missing = Path(error.filename)
                which = "there" if missing.is_relative_to(folder) else "made again"
                found = [f"{missing.name} is not {which}"]
            equal += not found
            differences += [f"{run.id}: {line}" for line in found]
    return Verified(len(experiment.runs), equal, tuple(differences), tuple(notes))


def _differences(run: Run, then: Path, now: Path) -> Iterator[str]:
    """Yield a line for each difference."""
    states = [_json(at / STATUS) for at in (then, now)]
    outcomes = [_outcome(state) for state in states]
    if outcomes[0] != outcomes[1]:
        yield f"{outcomes[0]} then, {outcomes[1]} now"
        return
    manifests = [_json(at / MANIFEST) for at in (then, now)]
    for key in _SAME:
        if manifests[0].get(key) != manifests[1].get(key):
            yield f"{MANIFEST}: {key}: {manifests[0].get(key)} then, {manifests[1].get(key)} now"
    done = states[0]["state"] == "done"
    if done and (then / PARQUET).read_bytes() != (now / PARQUET).read_bytes():
        yield _which_table(then, now, manifests[0]["tables"])
    if states[0].get("picture") and (then / PICTURE).read_bytes() != (now / PICTURE).read_bytes():
        yield f"{PICTURE} differs"
    if run.target.kind == "notebook":
        name = f"{run.target.stem}.ipynb"
        parts = [normal(_json(at / name), run.target.name) for at in (then, now)]
        for number, (one, other) in enumerate(zip_longest(*parts)):
            if one != other:
                where = f"cell {number}" if number < len(parts[0]) - 1 else "the widgets"
                yield f"{name}: {where} differs"
                break


def _outcome(status: Mapping[str, Any]) -> str:
    error = status["error"]
    if error is None:
        return str(status["state"])
    return f"failed ({error['type']}: {error['message']}, cell {error['cell']})"


def _which_table(then: Path, now: Path, tables: list[str]) -> str:
    files = [Path("tables") / f"{name}.csv" for name in tables]
    differ = [path.stem for path in files if (then / path).read_bytes() != (now / path).read_bytes()]
    return f"{PARQUET} differs in {', '.join(differ) or 'its types'}"


def _notes(then: Path, now: Path) -> Iterator[str]:
    """Yield what the repetition is made with that is another than then; only what both used can differ."""
    one, other = (_json(at / MANIFEST) for at in (then, now))
    if one["package"]["sha256"] != other["package"]["sha256"]:
        yield f"note: mmulab: {one['package']['sha256'][:12]} then, {other['package']['sha256'][:12]} now"
    for key in _AROUND:
        if one[key] != other[key]:
            yield f"note: {key}: {one[key]} then, {other[key]} now"
    for name, version in one["packages"].items():
        if other["packages"].get(name, version) != version:
            yield f"note: {name}: {version} then, {other['packages'][name]} now"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{named(path)}: damaged; run the sweep again") from error
