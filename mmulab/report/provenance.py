"""What a run depends on, written down so that it can be repeated."""

from __future__ import annotations

import importlib.metadata
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from mmulab import paths
from mmulab.digests import digest_of_package, sha256
from mmulab.errors import InputError
from mmulab.paths import name_of
from mmulab.report.outputs import shown

__all__ = [
    "INPUTS_MIME",
    "Inputs",
    "commit",
    "date_of",
    "digest",
    "digest_of_package",
    "harvest",
    "imported",
    "name_of",
    "owners",
    "packages",
    "path_of",
    "repeat",
]

INPUTS_MIME = "application/vnd.mmulab.inputs+json"
_INPUTS_AT_ONCE = 5
"""Inputs that a page shows; a longer list is folded."""


def digest(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, in hex.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def packages() -> dict[str, str]:
    """Return the version of every installed package, by name, in the order of names."""
    found = {item.name.lower(): item.version for item in importlib.metadata.distributions()}
    return dict(sorted(found.items()))


@cache
def owners() -> dict[str, list[tuple[str, str]]]:
    """Return name and version of the packages that each top-level module comes from."""
    versions = packages()
    return {
        module: [(name.lower(), versions[name.lower()]) for name in names]
        for module, names in importlib.metadata.packages_distributions().items()
    }


def imported(modules: Iterable[str] | None = None) -> dict[str, str]:
    """Return the version of every package that `modules` come from, in the order of names.

    Parameters
    ----------
    modules : iterable of str, optional
        By default all that this process has imported.
    """
    known = owners()
    tops = {name.partition(".")[0] for name in (sys.modules if modules is None else modules)}
    return dict(sorted({found for top in tops for found in known.get(top, [])}))


@cache
def commit() -> str | None:
    """Return the checkout's commit, with ``-modified`` if tracked files differ; None outside git."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return f"{head}-modified" if _git("status", "--porcelain", "--untracked-files=no") else head


def date_of(commit: str) -> str | None:
    """Return the day of a commit of the checkout, year first; None where git does not know it."""
    return _git("show", "--no-patch", "--format=%cs", commit.removesuffix("-modified"), "--")


def _git(*command: str) -> str | None:
    """Return what git says in the checkout, None if it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", *command], cwd=paths.checkout(), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class Inputs:
    """The files a notebook reads, with their digests: show it in a cell and the run keeps it.

    Parameters
    ----------
    *files : pathlib.Path
        Inside the checkout they are named relative to it, elsewhere by file name.
    """

    def __init__(self, *files: Path) -> None:
        self.digests = {paths.short_name(path): digest(path) for path in files}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td><code>{value}</code></td></tr>"
            for name, value in self.digests.items()
        )
        head = '<thead><tr><th scope="col">input</th><th scope="col">SHA-256</th></tr></thead>'
        table = f"<table>{head}<tbody>{rows}</tbody></table>"
        if len(self.digests) <= _INPUTS_AT_ONCE:
            return table
        return f"<details><summary>{len(self.digests)} inputs</summary>{table}</details>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        text = "\n".join(f"{value}  {name}" for name, value in self.digests.items())
        return {INPUTS_MIME: self.digests, "text/html": self._repr_html_(), "text/plain": text}


def path_of(name: str) -> Path:
    """Return where the file is that :func:`name_of` has named, or what stands in for it."""
    return _STANDS_IN.get(name) or paths.checkout() / name


_STANDS_IN: dict[str, Path] = {}
"""By name: files that came from another machine for the run that is under way."""


@contextmanager
def standing_in(files: Mapping[str, Path]) -> Iterator[None]:
    """Let files stand in for those of these names while the block runs."""
    _STANDS_IN.update(files)
    try:
        yield
    finally:
        _STANDS_IN.clear()


def harvest(notebook: Any) -> dict[str, str]:
    """Return name -> SHA-256 of all :class:`Inputs` shown by an executed notebook."""
    found: dict[str, str] = {}
    for digests in shown(notebook, INPUTS_MIME):
        found |= digests
    return found


def repeat(name: str, parameters: Mapping[str, Any]) -> str:
    """Return the command line that runs the notebook `name` with these `parameters` again."""
    given = [f" -p {key} {shlex.quote(str(value))}" for key, value in parameters.items()]
    return f"mmulab report --notebook {name}" + "".join(given)
