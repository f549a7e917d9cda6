"""Notebooks that are run once, with small parameters, for all the tests that look at them."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mmulab import pool
from mmulab.report.experiment import of_notebooks
from mmulab.report.results import Table, harvest
from mmulab.report.sweep import Ended, sweep

ROOT = Path(__file__).resolve().parent.parent

GIVEN: dict[str, dict[str, object]] = {
    "first_fault": {},
    # B17 shows in the first op of this scope, B28 in none of it.
    "known_bugs": {
        "bug": "B17",
        "places": "paths-32",
        "sequence": "found",
        "switches": "B17,B28",
        "switch_places": "paths-32",
        "switch_budget": 10.0,
    },
    "real_boot": {"limit": 20_000},
    "record_and_compare": {"record": "never"},
    "role_designs": {
        "designs": f"{ROOT / 'tests/notebooks/mine.py'}:Mine,D5,D8",
        "cases": "la57-switch-*,nonpt-shadow-32-l2-np-l0-4",
        "seed": 3,
    },
    "role_validity": {},
    "small": {},
    "step_a_fault": {"seed": 2},
    "sync_policies": {
        "workloads": "fork-exec,text-patching",
        "boots": "-",
        "variations": "inuse,on_change",
        "asked_of": "fuzz-32-mix-00,write-flooding-64",
        "resyncs": 2,
    },
}
"""Every such notebook and its parameters."""


@dataclass
class Reported:
    """The report on one notebook."""

    name: str
    index: Path

    @property
    def folder(self) -> Path:
        """What the report has of the notebook."""
        return self.index.parent / self.name

    @property
    def page(self) -> Path:
        """The exported page."""
        return self.folder / f"{self.name}.html"

    @cached_property
    def html(self) -> str:
        """The page's text."""
        return self.page.read_text("utf-8")

    @cached_property
    def notebook(self) -> Any:
        """The notebook with its outputs."""
        import nbformat

        return nbformat.read(self.folder / f"{self.name}.ipynb", as_version=4)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Its results tables by name, in their order."""
        return {table.name: table for table in harvest(self.notebook)}

    @property
    def last_line(self) -> str:
        """The last line that it printed."""
        return str(self.notebook.cells[-1].outputs[0]["text"].splitlines()[-1])


class Reports:
    """Reports by notebook, made when first asked for; the tests' processes share the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, Reported] = {}
        folder.mkdir(exist_ok=True)

    def __call__(self, name: str) -> Reported:
        """Return the report on a notebook of :data:`GIVEN`."""
        if name not in self.known:
            self.known[name] = Reported(name, self._made(name))
        return self.known[name]

    def _made(self, name: str) -> Path:
        where = "tests/report/notebooks" if name == "small" else "notebooks"
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return report([ROOT / where / f"{name}.ipynb"], self.folder / name, GIVEN[name])


def report(notebooks: Sequence[Path], out: Path, given: Mapping[str, object]) -> Path:
    """Run the notebooks that a report does not have yet, none of which may fail; return its first page."""
    ended: list[Ended] = []
    page = sweep(of_notebooks(notebooks, given), out, each=partial(pool.each, jobs=1), ended=ended.append)
    assert [one.status.error for one in ended if one.status.error] == []
    return page
