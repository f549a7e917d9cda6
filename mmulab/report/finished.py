"""What a sweep or a report left in its folder, run by run, and their tables put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmulab import files
from mmulab.errors import InputError, named
from mmulab.report.tables import PARQUET, Stored, array, read_stored

__all__ = [
    "MANIFEST",
    "PICTURE",
    "STATUS",
    "SWEEP",
    "Error",
    "Finished",
    "Joined",
    "Sweep",
    "joined",
    "read_sweep",
    "unlike",
]

SWEEP = "sweep.json"
"""Names the runs of the folder in their order."""
MANIFEST = "manifest.json"
"""In a run's folder: what it was made from."""
STATUS = "status.json"
"""In a run's folder: what came of it."""
PICTURE = "picture.svg"
"""In a run's folder, if it declares one."""
MISSING = "missing"
"""State of a run that has not been run."""


@dataclass(frozen=True, slots=True)
class Error:
    """Why a run failed; `cell` counts the notebook's cells from 0."""

    type: str
    message: str
    cell: int | None
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Finished:
    """A run of a folder and what it came to.

    Attributes
    ----------
    id : str
        Its folder's name.
    target : str
        The notebook's path, or ``module:function``.
    parameters : mapping of str to value
    seed : int or None
    state : str
        ``done``, ``failed`` or ``missing``.
    seconds : float or None
    title : str
    sentence, picture : str or None
        What the notebook declared as its result; the picture is a file's name.
    error : Error or None
    tables : tuple of str
        Names of its results tables.
    repeat : str
        The command that runs it again; empty if it has not been run.
    package : tuple of str
        The package that ran it: its version, and its commit if that is known.
    files : frozenset of str
        Names in its folder.
    """

    id: str
    target: str
    parameters: Mapping[str, Any]
    seed: int | None
    state: str
    seconds: float | None
    title: str
    sentence: str | None
    picture: str | None
    error: Error | None
    tables: tuple[str, ...]
    repeat: str
    package: tuple[str, ...]
    files: frozenset[str]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A folder's runs in their order."""

    name: str
    title: str
    runs: tuple[Finished, ...]

    @property
    def is_report(self) -> bool:
        """Whether it is one run for each of some notebooks, called as they are."""
        return all(run.target.endswith(".ipynb") and Path(run.target).stem == run.id for run in self.runs)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all runs' parameters, in the order in which they come up."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.parameters))


def read_sweep(folder: Path) -> Sweep:
    """Return what is in the folder of a sweep or a report.

    Raises
    ------
    InputError
        It is no such folder, or a file of it is damaged.
    """
    path = folder / SWEEP
    if not path.exists():
        what = "no sweep or report of mmulab (no sweep.json)" if folder.is_dir() else "no such folder"
        raise InputError(f"{named(folder)}: {what}; name what 'mmulab sweep' or 'mmulab report' wrote")
    sweep = _read_json(path)
    try:
        return Sweep(sweep["name"], sweep["title"], tuple(_run(folder, run) for run in sweep["runs"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{named(path)}: damaged ({error!r}); run the sweep again") from error


def _read_json(path: Path) -> Any:
    return files.parse_json(files.read_text(path), named(path))


def _run(folder: Path, run: Mapping[str, Any]) -> Finished:
    own = folder / run["id"]
    if not (own / STATUS).exists():
        status: Mapping[str, Any] = {"state": MISSING}
        manifest: Mapping[str, Any] = {}
    else:
        status, manifest = _read_json(own / STATUS), _read_json(own / MANIFEST)
    error = status.get("error")
    return Finished(
        id=run["id"],
        target=run["target"],
        parameters=manifest.get("parameters", run["parameters"]),
        seed=run["seed"],
        state=status["state"],
        seconds=status.get("seconds"),
        title=status.get("title") or Path(run["target"]).stem,
        sentence=status.get("result"),
        picture=status.get("picture"),
        error=error and Error(error["type"], error["message"], error.get("cell"), error.get("traceback")),
        tables=tuple(manifest.get("tables", ())),
        repeat=manifest.get("repeat", ""),
        package=_package(manifest.get("package", {})),
        files=frozenset(path.name for path in own.iterdir()) if own.is_dir() else frozenset(),
    )


def _package(package: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(package[key] for key in ("version", "commit") if package.get(key))


@dataclass(frozen=True, slots=True)
class Joined:
    """The tables of one name of all runs, one below the other.

    Attributes
    ----------
    name, caption : str
        The caption is the one of the first run.
    columns : mapping of str to pyarrow.Array
        First ``run``; then ``p_NAME`` for each parameter that one of these runs has; then the
        tables' own. What a run does not have is null. A name that is taken gets a number, see
        :func:`unlike`.
    runs : tuple of str
        The runs that have the table.
    """

    name: str
    caption: str
    columns: Mapping[str, Any]
    runs: tuple[str, ...]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.columns["run"])


def unlike(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Return `names` made different from each other and from those taken, as SQL compares names.

    Examples
    --------
    >>> unlike(["gva", "GVA", "gva"])
    ['gva', 'GVA_2', 'gva_3']
    """
    used = {name.casefold() for name in taken}
    found = []
    for name in names:
        tries = (f"{name}_{number}" if number > 1 else name for number in range(1, len(used) + 2))
        free = next(candidate for candidate in tries if candidate.casefold() not in used)
        used.add(free.casefold())
        found.append(free)
    return found


def joined(folder: Path, sweep: Sweep) -> list[Joined]:
    """Return the results tables of all runs, each name once, in the order in which they come up.

    Raises
    ------
    InputError
        A file of results is damaged.
    """
    by_name: dict[str, list[tuple[Finished, Stored]]] = {}
    for run in sweep.runs:
        if PARQUET in run.files:
            for stored in read_stored(folder / run.id / PARQUET):
                by_name.setdefault(stored.name, []).append((run, stored))
    return [_join(name, parts) for name, parts in by_name.items()]


def _join(name: str, parts: Sequence[tuple[Finished, Stored]]) -> Joined:
    parameters = dict.fromkeys(key for run, _ in parts for key in run.parameters)
    own = dict.fromkeys(column for _, stored in parts for column in stored.columns)
    lengths = [stored.rows for _, stored in parts]

    def spread(values: Sequence[Any]) -> Any:
        return array([value for value, length in zip(values, lengths, strict=True) for _ in range(length)])

    columns = [spread([run.id for run, _ in parts])]
    columns += [spread([run.parameters.get(key) for run, _ in parts]) for key in parameters]
    columns += [_stacked(column, [stored for _, stored in parts]) for column in own]
    # The tables' own names are those that a reader knows: the others give way.
    added = unlike(["run", *(f"p_{key}" for key in parameters)])
    names = added + unlike(own, added)
    runs = tuple(run.id for run, _ in parts)
    return Joined(name, parts[0][1].caption, dict(zip(names, columns, strict=True)), runs)


def _stacked(column: str, parts: Sequence[Stored]) -> Any:
    """Return a column of several tables as one array, null where a table lacks it."""
    import pyarrow

    chunks = [
        part.arrays[part.columns.index(column)] if column in part.columns else pyarrow.nulls(part.rows)
        for part in parts
    ]
    types = {chunk.type for chunk in chunks if chunk.null_count < len(chunk)}
    if len(types) > 1:
        return array([value for chunk in chunks for value in chunk.to_pylist()])
    kind = types.pop() if types else pyarrow.string()
    return pyarrow.concat_arrays([_typed(chunk, kind) for chunk in chunks])


def _typed(chunk: Any, kind: Any) -> Any:
    """Return a column of this type; one of another type has nothing but nulls."""
    import pyarrow

    return chunk if chunk.type == kind else pyarrow.nulls(len(chunk), kind)
