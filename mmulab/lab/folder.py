"""Output folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmulab.errors import InputError

__all__ = ["MARKER", "whole"]

MARKER = ".mmulab"
"""Empty file in every folder made here: only a folder that has it is ever replaced."""


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Build a folder beside `target` and move it there when the block ends without an error.

    Yields
    ------
    pathlib.Path
        The folder to build in; after an error it is removed and `target` is as before.

    Raises
    ------
    InputError
        If `target` cannot be written, or holds something else than an earlier output. Both are
        found out before the block runs.
    """
    target = target.absolute()
    if target.exists() and not (target / MARKER).exists() and not _is_empty_folder(target):
        raise InputError(f"{target}: exists and is no earlier output of mmulab; name another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        reason = f"the folder cannot be written ({error.strerror})"
        raise InputError(f"{target}: {reason}; name another one") from error
    try:
        building.chmod(0o755)
        (building / MARKER).touch()
        yield building
        _replace(target, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _replace(target: Path, building: Path) -> None:
    """Put `building` in the place of `target`; a folder cannot be replaced in one step if it has files."""
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(old / "old")
        building.rename(target)
        shutil.rmtree(old)
    else:
        building.rename(target)
