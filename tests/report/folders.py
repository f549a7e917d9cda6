"""Folders as a sweep leaves them, made without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmulab.report import folder as folders
from mmulab.report.results import Table
from mmulab.report.tables import write_parquet


@dataclass(frozen=True)
class Made:
    """A run as a test wants it to have ended; state ``missing`` leaves no folder."""

    id: str
    tables: Sequence[Table] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    target: str = "notebooks/small.ipynb"
    state: str = "done"
    seconds: float = 1.5
    title: str = ""
    result: str | None = None
    picture: str | None = None
    error: Mapping[str, Any] | None = None
    seed: int | None = None
    package: Mapping[str, str] = field(default_factory=dict)


def make_folder(out: Path, *runs: Made, name: str = "made", title: str = "A made sweep") -> Path:
    """Write the folder of a sweep of these runs."""
    out.mkdir(parents=True, exist_ok=True)
    (out / folders.MARKER).touch()
    listed = [
        {"id": run.id, "target": run.target, "parameters": dict(run.parameters), "seed": run.seed}
        for run in runs
    ]
    (out / "sweep.json").write_text(json.dumps({"name": name, "title": title, "runs": listed}), "utf-8")
    for run in runs:
        if run.state != "missing":
            _make_run(out / run.id, run)
    return out


def _make_run(own: Path, run: Made) -> None:
    own.mkdir()
    notebook = run.target.endswith(".ipynb")
    status = {
        "state": run.state,
        "seconds": run.seconds,
        "error": run.error,
        "title": run.title,
        "result": run.result,
        "picture": "picture.svg" if run.picture else None,
    }
    manifest = {
        "id": run.id,
        "target": run.target,
        "kind": "notebook" if notebook else "function",
        "parameters": dict(run.parameters),
        "seed": run.seed,
        "package": dict(run.package),
        "repeat": f"mmulab report --notebook {run.id}",
        "tables": [table.name for table in run.tables],
    }
    (own / "status.json").write_text(json.dumps(status), "utf-8")
    (own / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    write_parquet(run.tables, own / "results.parquet")
    if run.tables:
        (own / "tables").mkdir()
    for table in run.tables:
        (own / "tables" / f"{table.name}.csv").write_text(table.csv(), "utf-8")
    if run.picture:
        (own / "picture.svg").write_text(run.picture, "utf-8")
    if notebook:
        stem = Path(run.target).stem
        (own / f"{stem}.ipynb").write_text("{}", "utf-8")
        if run.state == "done":
            (own / f"{stem}.html").write_text("<!doctype html><title>page</title>", "utf-8")
