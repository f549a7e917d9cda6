"""What goes from one machine to another to be worked on there: a function, its work, and the files in it.

A :class:`~pathlib.Path` of a file in a work goes as the file's name and SHA-256.
Where it arrives it stands for a file with that digest: the receiver's own in its
checkout, if that has it, or the copy in its store, which :func:`keep` fills.

Source: the library reference of Python 3.11, pickle, "Persistence of External Objects"
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mmulab
from mmulab import files, paths
from mmulab.digests import digest, digest_of_package, tree
from mmulab.errors import InputError

__all__ = ["Parcel", "Side", "find", "keep", "opened", "packed", "side"]


class Parcel(NamedTuple):
    """A pickle, and the files that it names.

    Attributes
    ----------
    data : bytes
    files : dict of str to str
        SHA-256 of each file: its name below the sender's checkout, or its bare name if it lies elsewhere.
    """

    data: bytes
    files: dict[str, str]


class Side(NamedTuple):
    """What two machines must have in common, so that one's results are the other's.

    Attributes
    ----------
    version : str
    package : str
        SHA-256 of the package's files.
    python : str
        ``3.11``: works are pickled with it.
    data : str
        SHA-256 of what lies below ``data/``.
    """

    version: str
    package: str
    python: str
    data: str

    def differs(self, other: Side) -> str:
        """Return how `other` differs from this side, in words; "" if it does not."""
        if other.python != self.python:
            return f"it runs Python {other.python}, here is {self.python}"
        if other.package != self.package:
            theirs, ours = (f"{side.version} ({side.package[:12]})" for side in (other, self))
            return f"its mmulab is {theirs}, here is {ours}"
        if other.data != self.data:
            return f"its folder data/ is another ({other.data[:12]}, here is {self.data[:12]})"
        return ""


@cache
def side() -> Side:
    """Return what this process has; looked at once."""
    python = ".".join(map(str, sys.version_info[:2]))
    return Side(mmulab.__version__, digest_of_package(), python, tree(paths.checkout() / "data"))


def packed(thing: object) -> tuple[Parcel, dict[str, Path]]:
    """Return `thing` ready to be sent, and where the files are that it names, by SHA-256.

    Raises
    ------
    InputError
        It, or a part of it, cannot be sent.
    """
    import cloudpickle

    class Packer(cloudpickle.Pickler):  # type: ignore[misc, name-defined, unused-ignore]
        """Gives files by name and digest."""

        def persistent_id(self, part: object) -> str | None:
            if not isinstance(part, Path) or not part.is_file():
                return None
            value = digest(part)
            found[value] = part
            return value

    found: dict[str, Path] = {}
    text = io.BytesIO()
    try:
        Packer(text).dump(thing)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"what is to be worked on cannot be sent to another machine: {error}") from error
    return Parcel(text.getvalue(), {value: paths.short_name(path) for value, path in found.items()}), found


def opened(parcel: Parcel, places: Mapping[str, Path]) -> Any:
    """Return what was packed, with the paths of `places`, by SHA-256, for its files."""

    class Opener(pickle.Unpickler):
        """Takes files by their digests."""

        def persistent_load(self, value: str) -> Path:
            return places[value]

    return Opener(io.BytesIO(parcel.data)).load()


def find(parcel: Parcel, store: Path) -> tuple[dict[str, Path], list[str]]:
    """Return where the files of a parcel are on this machine, by SHA-256, and those that it lacks."""
    places: dict[str, Path] = {}
    for value, name in parcel.files.items():
        for path in (paths.checkout() / name, _kept(store, value, name)):
            if path.is_file() and digest(path) == value:
                places[value] = path
                break
    return places, [value for value in parcel.files if value not in places]


def keep(store: Path, value: str, name: str, data: bytes) -> None:
    """Put a file that was sent where :func:`find` looks.

    Raises
    ------
    InputError
        It is not what was sent, or cannot be written.
    """
    arrived = hashlib.sha256(data).hexdigest()
    if arrived != value:
        raise InputError(f"{name}: arrived with SHA-256 {arrived[:12]}, sent was {value[:12]}; send it again")
    path = _kept(store, value, name)
    with files.disk_errors_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, data)


def _kept(store: Path, value: str, name: str) -> Path:
    return store / value / Path(name).name
