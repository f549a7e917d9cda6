"""Files in and out: read whole below a limit, written whole or not at all.

Only regular files are read. What else a path may be (a folder, a FIFO, a
device, a loop of links) is said as what it is, so that no read waits or goes
on without end. A file is written under a temporary name in the same folder and
renamed, so that an earlier one stays until its successor is complete. Whoever
writes holds a lock on what is temporary; the kernel drops it with the process,
so what is not locked was left by one that was killed, and is swept away.

Source: flock(2)
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import json
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from mmulab import limits
from mmulab.errors import InputError, named

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
_REASONS = {
    errno.ENOENT: "no such file",
    errno.ELOOP: "a loop of symbolic links",
    errno.EACCES: "may not be read; change its permissions",
    errno.ENAMETOOLONG: "the name is too long",
}
_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
    errno.EIO: "use another disk",
}
DISK_ERRORS = frozenset(_REMEDIES)
"""What a disk answers that is full or broken: no fault of the program that writes."""
_CHUNK = 1 << 20
_UNPACKERS: dict[str, Callable[[bytes], IO[bytes]]] = {
    ".xz": lambda data: cast("IO[bytes]", lzma.LZMAFile(io.BytesIO(data))),  # noqa: SIM115 - closed where it is read
    ".gz": lambda data: cast("IO[bytes]", gzip.GzipFile(fileobj=io.BytesIO(data))),
}


def reason(error: OSError) -> str:
    """Return what went wrong, in words."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error)


def remedy(error: BaseException, kind: str) -> str:
    """Return what helps where a file or folder, `kind`, cannot be written.

    >>> remedy(OSError(errno.ENOSPC, "No space left on device"), "file")
    'make room there'
    >>> remedy(OSError(errno.EROFS, "Read-only file system"), "folder")
    'name another folder'
    """
    code = error.errno if isinstance(error, OSError) else None
    return _REMEDIES.get(code or 0, f"name another {kind}")


def check_named(path: str | Path) -> None:
    """Refuse an empty name, which as a path would stand for the current folder.

    Raises
    ------
    InputError
    """
    if not os.fspath(path):
        raise InputError("the file's name is empty; name a file")


def check_file(path: str | Path, limit: int = limits.RECORDING_BYTES) -> int:
    """Return the size of the regular file `path` in bytes, without opening it.

    Raises
    ------
    InputError
        There is none, it is something else, or has more than `limit` bytes.
    """
    check_named(path)
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"{named(path)}: {reason(error)}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{named(path)}: {error}; name a file") from error
    kind = _kind(found.st_mode)
    if kind is not None:
        raise InputError(f"{named(path)}: {kind}, expected a file")
    if found.st_size > limit:
        raise InputError(f"{named(path)}: {found.st_size} bytes; the limit is {limit}")
    return found.st_size


def _kind(mode: int) -> str | None:
    """Return what a path is, in words, if it is no regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((words for test, words in _KINDS if test(mode)), "no regular file")


def read_bytes(path: str | Path, limit: int = limits.RECORDING_BYTES) -> bytes:
    """Return the whole content of a regular file of at most `limit` bytes.

    Raises
    ------
    InputError
    """
    check_file(path, limit)
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{named(path)}: {reason(error)}") from error
    if len(data) > limit:
        raise InputError(f"{named(path)}: more than {limit} bytes, the limit")
    return data


def read_text(path: str | Path, limit: int = limits.TEXT_BYTES) -> str:
    """Return the whole content of a text file in UTF-8.

    Raises
    ------
    InputError
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{named(path)}: byte {error.start}: not text in UTF-8; copy it again") from error


def read_unpacked(path: str | Path, limit: int = limits.UNPACKED_BYTES) -> bytes:
    """Return the content of a file, unpacked if its name ends in ``.xz`` or ``.gz``.

    Raises
    ------
    InputError
        Also if it is cut or damaged, or unpacks to more than `limit` bytes.
    """
    data = read_bytes(path)
    suffix = Path(path).suffix
    if suffix not in _UNPACKERS:
        return data
    parts, total = [], 0
    try:
        with _UNPACKERS[suffix](data) as stream:
            while part := stream.read(_CHUNK):
                total += len(part)
                if total > limit:
                    raise InputError(f"{named(path)}: unpacks to more than {limit} bytes, the limit")
                parts.append(part)
    except MemoryError as error:  # a damaged size of xz's dictionary asks for up to 4 GiB
        raise InputError(f"{named(path)}: asks for more memory than there is; copy it again") from error
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise InputError(f"{named(path)}: not a whole {suffix} file ({error}); copy it again") from error
    return b"".join(parts)


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the value of JSON text; `where` names file and place in messages.

    ``NaN`` and ``Infinity``, which are no JSON, are refused, and so is nesting
    beyond :data:`mmulab.limits.JSON_DEPTH`.

    Raises
    ------
    InputError
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise InputError(f"{where}: JSON nested deeper than {limits.JSON_DEPTH}, the limit") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not text in UTF-8; copy it again") from error
    except ValueError as error:
        raise InputError(f"{where}: cut, or no JSON ({error}); copy it again") from error
    if _deeper(value, limits.JSON_DEPTH):
        raise InputError(f"{where}: JSON nested deeper than {limits.JSON_DEPTH}, the limit")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects nest deeper than `depth`."""
    layer = [value]
    for _ in range(depth):
        layer = [
            part
            for item in layer
            if isinstance(item, (list, dict))
            for part in (item.values() if isinstance(item, dict) else item)
            if isinstance(part, (list, dict))
        ]
        if not layer:
            return False
    return True


@contextmanager
def writing(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file to be written whole: it takes its name when the block ends without an error.

    Raises
    ------
    InputError
        It cannot be written: no such folder, no permission, a full disk. An
        earlier file of this name is as it was.
    """
    check_named(path)
    path = Path(path)
    if not path.name:
        raise InputError(f"{named(path)}: a folder, expected the name of a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _check_replaceable(path)
        sweep(path.parent, re.escape(f".{path.name}.") + "[0-9]+", lambda left: left.unlink())
        with _open_locked(temporary) as file:
            yield file
            file.flush()
            os.replace(temporary, path)
    except BaseException as error:
        _discard(temporary)
        if not isinstance(error, (OSError, ValueError)) or isinstance(error, InputError):
            raise
        why = reason(error) if isinstance(error, OSError) else error
        raise InputError(f"{named(path)}: cannot be written ({why}); {remedy(error, 'file')}") from error


def _check_replaceable(path: Path) -> None:
    """See to it that no device, FIFO or folder is taken for an earlier file, and a file put in its place."""
    with suppress(FileNotFoundError):
        kind = _kind(os.stat(path).st_mode)
        if kind is not None:
            raise InputError(f"{named(path)}: {kind}, expected the name of a file")


def _open_locked(path: Path) -> IO[bytes]:
    """Open an empty file that is locked while it is open, and has its name in spite of sweepers."""
    while True:
        file = open(path, "wb", opener=_open_as_it_is)  # noqa: SIM115 - closed by the caller
        if lock(file.fileno(), path):
            file.truncate(0)
            return file
        file.close()


def _open_as_it_is(path: str, flags: int) -> int:
    """Open without truncation: what is there may be locked, and another's."""
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def lock(descriptor: int, path: Path) -> bool:
    """Lock an open file or folder for as long as it is open; False if it has lost its name meanwhile.

    A file system without locks counts as locked, for nothing is swept there.
    """
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    return False


def sweep(folder: Path, pattern: str, remove: Callable[[Path], object]) -> None:
    """Remove what killed writers left in a folder: what `pattern` matches whole and nobody has locked."""
    try:
        names = os.listdir(folder)
    except OSError:  # there is none, or it may be written and not read
        return
    for name in names:
        if re.fullmatch(pattern, name):
            with suppress(OSError):  # locked: it is being written; or another process sweeps too
                _sweep_one(folder / name, remove)


def _sweep_one(path: Path, remove: Callable[[Path], object]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(path)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors_of(path: Path) -> Iterator[None]:
    """Say what a full or broken disk does to `path` in one line.

    Raises
    ------
    InputError
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        why = f"cannot be written ({reason(error)}); {remedy(error, 'folder')}"
        raise InputError(f"{named(path)}: {why}") from error


def _discard(temporary: Path) -> None:
    with suppress(OSError, ValueError):  # it was never made, or its folder went away
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all; raises as :func:`writing`."""
    with writing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 whole or not at all; raises as :func:`writing`."""
    write_bytes(path, text.encode("utf-8"))
