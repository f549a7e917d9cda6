"""SHA-256 of files and of folders, in hex.

A file that has not changed since is not read again.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache, lru_cache
from pathlib import Path

import mmulab
from mmulab import files
from mmulab.errors import InputError, named

__all__ = ["digest", "digest_of_package", "sha256", "tree"]

_SKIPPED = "__pycache__"


def digest(path: Path) -> str:
    """Return the SHA-256 of the file at `path`.

    Raises
    ------
    InputError
        It cannot be read.
    """
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"{named(path)}: {files.reason(error)}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`; raises OSError if it cannot be read."""
    found = path.stat()
    return _digest(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1 << 14)
def _digest(path: Path, _inode: int, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree(top: Path) -> str:
    """Return the SHA-256 of all files below a folder but compiled and hidden ones."""
    whole = hashlib.sha256()
    for folder, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if name != _SKIPPED and not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            whole.update(f"{path.relative_to(top).as_posix()}\0{digest(path)}\n".encode())
    return whole.hexdigest()


@cache
def digest_of_package() -> str:
    """Return the SHA-256 of the package's files; looked at once."""
    return tree(Path(mmulab.__file__).parent)
