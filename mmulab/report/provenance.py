"""What a run depends on, written down so that it can be repeated."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import mmulab
from mmulab import paths
from mmulab.errors import InputError

__all__ = ["INPUTS_MIME", "Inputs", "Run", "commit", "digest", "harvest", "packages", "record", "repeat"]

INPUTS_MIME = "application/vnd.mmulab.inputs+json"


def digest(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, in hex.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def packages() -> dict[str, str]:
    """Return the version of every installed package, by name, in the order of names."""
    found = {item.name.lower(): item.version for item in importlib.metadata.distributions()}
    return dict(sorted(found.items()))


def commit() -> dict[str, Any] | None:
    """Return the checkout's commit and whether tracked files differ from it; None outside git."""

    def git(*command: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *command], cwd=paths.checkout(), capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if head is None:
        return None
    return {"hash": head, "modified": bool(git("status", "--porcelain", "--untracked-files=no"))}


class Inputs:
    """The files a notebook reads, with their digests: show it in a cell and the run keeps it.

    Parameters
    ----------
    *files : pathlib.Path
        Inside the checkout they are named relative to it, elsewhere by file name.
    """

    def __init__(self, *files: Path) -> None:
        self.digests = {_name(path): digest(path) for path in files}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td><code>{value}</code></td></tr>"
            for name, value in self.digests.items()
        )
        head = '<thead><tr><th scope="col">input</th><th scope="col">SHA-256</th></tr></thead>'
        return f"<table>{head}<tbody>{rows}</tbody></table>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        text = "\n".join(f"{value}  {name}" for name, value in self.digests.items())
        return {INPUTS_MIME: self.digests, "text/html": self._repr_html_(), "text/plain": text}


def _name(path: Path) -> str:
    path, top = path.resolve(), paths.checkout()
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else path.name


def harvest(notebook: Any) -> dict[str, str]:
    """Return name -> SHA-256 of all :class:`Inputs` shown by an executed notebook."""
    found: dict[str, str] = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            found |= output.get("data", {}).get(INPUTS_MIME, {})
    return found


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a notebook: the file, the values of all its parameters, and the inputs it read."""

    notebook: Path
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]


def record(run: Run) -> dict[str, Any]:
    """Return what is needed to repeat `run`, ready for JSON; no hour, no host, no path of this machine."""
    return {
        "repeat": repeat(run.notebook.stem, run.parameters),
        "notebook": {"name": _name(run.notebook), "sha256": digest(run.notebook)},
        "seed": run.parameters.get("seed"),
        "inputs": dict(run.inputs),
        "mmulab": {"version": mmulab.__version__, "commit": commit()},
        "python": platform.python_version(),
        "packages": packages(),
    }


def repeat(name: str, parameters: Mapping[str, Any]) -> str:
    """Return the command line that runs the notebook `name` with these `parameters` again."""
    given = [f" -p {key} {shlex.quote(str(value))}" for key, value in parameters.items()]
    return f"mmulab report --notebook {name}" + "".join(given)
