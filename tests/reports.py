"""Reports made by tests in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mmulab import pool
from mmulab.report.experiment import of_notebooks
from mmulab.report.sweep import Ended, sweep


def report(notebooks: Sequence[Path], out: Path, given: Mapping[str, object]) -> Path:
    """Run notebooks, none of which may fail, and return the report's first page."""
    ended: list[Ended] = []
    each = partial(pool.each, jobs=1)
    page = sweep(of_notebooks(notebooks, given), out, each=each, ended=ended.append)
    assert [one.status.error for one in ended] == [None] * len(notebooks)
    return page
