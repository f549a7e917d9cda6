"""Experiments: what is run, with which parameters, on which inputs.

An experiment file is YAML::

    name: designs                    # of the folder out/sweeps/NAME
    title: Designs against cases
    notebook: role_designs           # a name, or a path; or:  function: module:function
    parameters: {kernel: "6.1.192"}  # the same in all runs
    grid: {designs: [D0, D4]}        # each combination of these values is a run
    list: [{cases: a}, {cases: b}]   # and each of these, combined with the grid
    seeds: 5                         # values of the parameter 'seed': 0 to 4; or a list
    inputs:                          # files that must be there, and be these
      - {path: data/x.npz, sha256: ...}

Or it has ``parts:``, a list of such mappings, each with a ``name`` of its own, which
opens the ids of its runs. Paths are looked for beside the file, then in the checkout.

Runs stand in one order: the list's entries outermost, then the grid with its last
parameter innermost, then seeds. A run's id tells what varies, ``design=D0,seed=3``;
where that is too long or no name for a file, a digest of the parameters ends it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmulab import limits, paths
from mmulab.errors import InputError, named, quoted
from mmulab.report import provenance
from mmulab.report.document import Document, read
from mmulab.report.finished import SWEEP
from mmulab.report.target import Target

__all__ = ["Experiment", "Run", "of_notebooks", "read_experiment"]

Value = int | float | str | bool
SCHEMA = Path(__file__).with_name("experiment.schema.json")
_LONGEST = 80
"""Characters of a run's id."""
_ODD = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes
    ----------
    id : str
        The name of its folder.
    target : Target
    parameters : mapping of str to int, float, str or bool
        All that the target has.
    seed : int or None
        The parameter ``seed``, if there is one.
    inputs : mapping of str to str
        SHA-256 of each file, by its path, relative to the checkout if it lies inside.
    repeat : str
        The command line that does it again.
    """

    id: str
    target: Target
    parameters: Mapping[str, Value]
    seed: int | None
    inputs: Mapping[str, str]
    repeat: str

    def record(self) -> dict[str, Any]:
        """Return what ``sweep.json`` says of the run."""
        return {
            "id": self.id,
            "kind": self.target.kind,
            "target": self.target.name,
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "inputs": dict(self.inputs),
            "repeat": self.repeat,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Run:
        """Return the run that ``sweep.json`` tells of; raises KeyError or TypeError if it is damaged."""
        target = Target(record["kind"], record["target"])
        return cls(
            record["id"], target, record["parameters"], record["seed"], record["inputs"], record["repeat"]
        )


@dataclass(frozen=True, slots=True)
class Experiment:
    """Runs, in their order.

    Attributes
    ----------
    name, title : str
    runs : tuple of Run
    file : mapping or None
        ``name`` and ``sha256`` of the file that it comes from.
    """

    name: str
    title: str
    runs: tuple[Run, ...]
    file: Mapping[str, str] | None = None

    def record(self) -> dict[str, Any]:
        """Return what ``sweep.json`` holds."""
        runs = [run.record() for run in self.runs]
        return {"name": self.name, "title": self.title, "file": self.file, "runs": runs}

    @classmethod
    def from_folder(cls, folder: Path) -> Experiment:
        """Return the experiment of a sweep's folder.

        Raises
        ------
        InputError
            The folder is no sweep's, or its ``sweep.json`` is damaged.
        """
        path = folder / SWEEP
        try:
            found = json.loads(path.read_text("utf-8"))
            runs = tuple(map(Run.from_record, found["runs"]))
            return cls(found["name"], found["title"], runs, found["file"])
        except OSError as error:
            raise InputError(f"{named(folder)}: not the folder of a sweep (no sweep.json)") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{named(path)}: damaged; run the sweep again") from error


def of_notebooks(notebooks: Iterable[Path], given: Mapping[str, object]) -> Experiment:
    """Return the experiment of a report: one run a notebook, whose id is the notebook's name.

    Raises
    ------
    InputError
        A parameter is unknown in one of the notebooks, or of the wrong type.
    """
    runs = []
    for path in notebooks:
        target = Target.of_notebook(path)
        values = target.resolve(given)
        repeat = provenance.repeat(path.stem, values)
        runs.append(Run(path.stem, target, values, _seed(values), {}, repeat))
    return Experiment("report", "mmulab report", tuple(runs))


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises
    ------
    InputError
        With file, line and mend: it is no experiment, its notebook or function does not exist or has
        no such parameter, or an input is missing or another than it says.
    """
    document = read(path)
    document.check(SCHEMA)
    top = document.value
    file = {"name": provenance.name_of(path), "sha256": provenance.digest(path)}
    if "parts" in top:
        places: list[tuple[str | int, ...]] = [("parts", number) for number in range(len(top["parts"]))]
        names = [part["name"] for part in top["parts"]]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise document.error((*places[number], "name"), f"there are two parts '{name}'; rename one")
        parts = [
            _Part(document, place, part, file["name"], part["name"])
            for place, part in zip(places, top["parts"], strict=True)
        ]
    else:
        parts = [_Part(document, (), top, file["name"], None)]
    runs: dict[str, Run] = {}
    for part in parts:
        for run in part.runs():
            if run.id in runs:
                raise part.error((), f"the run '{run.id}' is there twice; keep one")
            runs[run.id] = run
            if len(runs) > limits.EXPERIMENT_RUNS:
                raise InputError(f"{named(path)}: more than {limits.EXPERIMENT_RUNS} runs, the limit")
    return Experiment(top["name"], top.get("title", top["name"]), tuple(runs.values()), file)


class _Part:
    """One target with its parameters, as it stands in the file at `place`."""

    def __init__(
        self,
        document: Document,
        place: tuple[str | int, ...],
        part: Mapping[str, Any],
        file: str,
        prefix: str | None,
    ) -> None:
        self._document = document
        self._place = place
        self._part = part
        self._file = file
        self._prefix = prefix
        self._target = self._find_target()
        with self._said_at("notebook" if "notebook" in part else "function"):
            self._known = self._target.parameters()

    def error(self, place: Sequence[str | int], message: str) -> InputError:
        """Return the error that says `message` of what is at `place` within the part."""
        return self._document.error((*self._place, *place), message)

    def _said_at(self, *place: str | int) -> _SaidAt:
        return _SaidAt(self, place)

    def _find_target(self) -> Target:
        if "function" in self._part:
            return Target("function", self._part["function"])
        name = self._part["notebook"]
        if "/" in name or name.endswith(".ipynb"):
            return Target.of_notebook(self._find(name, "notebook"))
        with self._said_at("notebook"):
            return Target.of_notebook(paths.notebook(name))

    def _find(self, name: str, *place: str | int) -> Path:
        """Return the file `name`, beside the experiment's or in the checkout."""
        for folder in (self._document.path.parent, paths.checkout()):
            if (folder / name).is_file():
                return folder / name
        raise self.error(place, f"'{quoted(name)}': no such file beside this one or in the checkout")

    def runs(self) -> Iterator[Run]:
        """Yield the runs in their order."""
        part = self._part
        fixed = self._accepted(part.get("parameters", {}), "parameters")
        entries = [
            self._accepted(entry, "list", number) for number, entry in enumerate(part.get("list", [{}]))
        ]
        grid = {
            name: [self._value(name, value, "grid", name, at) for at, value in enumerate(values)]
            for name, values in part.get("grid", {}).items()
        }
        seeds = part.get("seeds", [])
        if seeds:
            seeds = range(seeds) if isinstance(seeds, int) else seeds
            grid["seed"] = self._seeds(grid, list(seeds))
        self._check_once(fixed, entries, grid)
        inputs = self._inputs()
        for entry in entries:
            for values in itertools.product(*grid.values()):
                varied = entry | dict(zip(grid, values, strict=True))
                with self._said_at():
                    yield self._run(varied, self._target.resolve(fixed | varied), inputs)

    def _run(self, varied: Mapping[str, Value], values: dict[str, Value], inputs: Mapping[str, str]) -> Run:
        identity = _identity(self._prefix, varied, values) or self._target.stem
        repeat = f"mmulab sweep {self._file} --only '{identity}'"
        return Run(identity, self._target, values, _seed(values), inputs, repeat)

    def _seeds(self, grid: Mapping[str, Any], seeds: list[int]) -> list[Value]:
        if "seed" in grid:
            raise self.error(("seeds",), "the grid sets 'seed' too; keep one")
        if "seed" not in self._known:
            raise self.error(("seeds",), f"{self._target.name} has no parameter 'seed'")
        return [self._value("seed", seed, "seeds") for seed in seeds]

    def _check_once(
        self, fixed: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], grid: Mapping[str, Any]
    ) -> None:
        listed = {name for entry in entries for name in entry}
        for name in (*grid, *listed):
            if name in fixed or (name in grid and name in listed):
                raise self.error((), f"the parameter '{name}' is set in two places; keep one")

    def _accepted(self, values: Mapping[str, Any], *place: str | int) -> dict[str, Value]:
        return {name: self._value(name, value, *place, name) for name, value in values.items()}

    def _value(self, name: str, value: object, *place: str | int) -> Any:
        if name not in self._known:
            has = ", ".join(self._known) or "none"
            where = place[: place.index(name) + 1]
            raise self.error(where, f"unknown parameter '{quoted(name)}'; {self._target.name} has {has}")
        with self._said_at(*place):
            return self._known[name].accept(value)

    def _inputs(self) -> dict[str, str]:
        found = {}
        for number, entry in enumerate(self._part.get("inputs", [])):
            path = self._find(entry["path"], "inputs", number, "path")
            with self._said_at("inputs", number):
                is_now = provenance.digest(path)
            if is_now != entry["sha256"]:
                why = f"its SHA-256 is {is_now}; it is another file, or has changed"
                raise self.error(("inputs", number, "sha256"), why)
            found[provenance.name_of(path)] = is_now
        return found


class _SaidAt:
    """Puts file and line before what an InputError says."""

    def __init__(self, part: _Part, place: tuple[str | int, ...]) -> None:
        self._part = part
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            raise self._part.error(self._place, str(error)) from error


def _seed(values: Mapping[str, Any]) -> int | None:
    seed = values.get("seed")
    return seed if type(seed) is int else None


def _identity(prefix: str | None, varied: Mapping[str, Value], values: Mapping[str, Value]) -> str:
    """Return a run's id: what varies, in words that can name a folder."""
    words = [] if prefix is None else [prefix]
    words += [f"{name}={value}" for name, value in varied.items()]
    told = ["=".join(_ODD.sub("-", half) for half in word.split("=", 1)) for word in words]
    whole = ",".join(told)
    if told == words and len(whole) <= _LONGEST:
        return whole
    text = json.dumps(values, sort_keys=True)
    return f"{whole[: _LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
