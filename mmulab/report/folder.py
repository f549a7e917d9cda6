"""Output folders that appear whole or not at all.

A folder is built under a temporary name beside its target, with a lock on it,
and takes the target's place in one step: the kernel exchanges the two names.
Where it cannot (another system, some network file systems) the earlier folder
stands for a moment under a name of its own, from which the next run puts it
back if this one is killed there.

Source: renameat2(2), flock(2)
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmulab import files
from mmulab.errors import InputError, named

__all__ = ["MARKER", "clear", "sweep_killed", "whole"]

MARKER = ".mmulab"
"""Empty file in every folder made here: only a folder that has it is ever replaced."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RANDOM = "[a-z0-9_]{8}"
"""What :func:`tempfile.mkdtemp` puts behind a prefix."""


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Build a folder beside `target` and move it there when the block ends without an error.

    What killed runs left beside `target` is swept away first, and a target that
    one of them had taken aside is put back.

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
    # A link stays one: what it leads to is replaced.
    target = Path(os.path.realpath(target))
    _recover(target)
    if target.exists() and not (target / MARKER).exists() and not _is_empty_folder(target):
        raise InputError(f"{named(target)}: exists and is no earlier output of mmulab; name another folder")
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building, descriptor = _make_locked(target)
    except OSError as error:
        why = f"the folder cannot be written ({files.reason(error)}); {files.remedy(error, 'folder')}"
        raise InputError(f"{named(target)}: {why}") from error
    try:
        with files.disk_errors_of(target):
            building.chmod(0o755)
            (building / MARKER).touch()
        yield building
        with files.disk_errors_of(target):
            _replace(target, building)
    finally:
        clear(building)
        os.close(descriptor)
        with suppress(OSError):  # they hold the output now
            for parent in made:
                parent.rmdir()


def _make_locked(target: Path) -> tuple[Path, int]:
    """Make a temporary folder and return it with a descriptor that has it locked."""
    while True:
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        descriptor = os.open(building, os.O_RDONLY)
        if files.lock(descriptor, building):
            return building, descriptor
        os.close(descriptor)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _aside(target: Path) -> Path:
    """Return where the earlier folder stands between two renames, if the kernel cannot exchange names."""
    return target.with_name(f".{target.name}.earlier")


def _recover(target: Path) -> None:
    """Put an earlier output back and sweep temporary folders, if a killed run left such."""
    earlier = _aside(target)
    if (earlier / MARKER).exists():
        if target.exists():
            clear(earlier)
        else:
            earlier.rename(target)
    files.sweep(target.parent, re.escape(f".{target.name}.") + _RANDOM, _remove)


def sweep_killed(parent: Path) -> None:
    """Sweep away what killed runs left of any folder in `parent`."""
    files.sweep(parent, r"\..+\." + _RANDOM, _remove)


def _remove(path: Path) -> None:
    """Remove a temporary folder: one made here has the marker, unless it is still empty."""
    if (path / MARKER).exists() or _is_empty_folder(path):
        clear(path)


def clear(path: Path) -> None:
    """Remove a folder made here, its marker last: killed on the way, it is still known for ours."""
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != MARKER:
                os.unlink(entry)
    shutil.rmtree(path, ignore_errors=True)


def _replace(target: Path, building: Path) -> None:
    """Put `building` in the place of `target`, and let `building` be the earlier one, if there was one."""
    if not target.exists():
        building.rename(target)
    elif not _exchange(building, target):
        earlier = _aside(target)
        target.rename(earlier)
        try:
            building.rename(target)
        except BaseException:
            if not target.exists():
                earlier.rename(target)
            raise
        clear(earlier)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
