"""The first page of a sweep or a report."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from mmulab import files
from mmulab.report import page

__all__ = ["write_index"]


def write_index(folder: Path) -> Path:
    """Write ``index.html`` of the runs in a sweep's folder and return its path."""
    found = json.loads((folder / "sweep.json").read_bytes())
    lines = [f"<h1>{escape(found['title'])}</h1>"]
    for run in found["runs"]:
        name = escape(run["id"])
        status = folder / run["id"] / "status.json"
        state = json.loads(status.read_bytes())["state"] if status.exists() else "not run"
        lines.append(f'<p><a href="{name}/">{name}</a>: {state}</p>')
    files.write_text(folder / "index.html", page.shell(escape(found["title"]), "\n".join(lines)))
    return folder / "index.html"
