"""Two sets of recordings: which file of one belongs to which of the other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mmulab.conform.recording import find_recordings, scenario_name
from mmulab.errors import InputError, named

__all__ = ["Couple", "find_couples", "find_set"]


class Couple(NamedTuple):
    """A scenario, and its recordings.

    Attributes
    ----------
    name : str
        Its path in the folders, without the suffixes of a recording.
    ours, theirs : Path or None
        None: that side has none.
    """

    name: str
    ours: Path | None
    theirs: Path | None


def find_set(path: str) -> dict[str, Path]:
    """Return the recordings that a file or folder is, by their names in it.

    Raises
    ------
    InputError
        It is neither, or has a scenario twice.
    """
    found: dict[str, Path] = {}
    folder = Path(path)
    for file in find_recordings([path]):
        name = scenario_name(file)
        if folder.is_dir():
            name = str(file.relative_to(folder).with_name(name))
        if name in found:
            raise InputError(f"{named(found[name])}: the scenario is also in {named(file)}; keep one of them")
        found[name] = file
    return found


def find_couples(ours: str, theirs: str) -> list[Couple]:
    """Return each scenario of two files or folders, in the order of their names.

    Two files belong together whatever their names; a file and a folder: with the file of its name there.

    Raises
    ------
    InputError
        One of them is no recording and no folder of any, or the folder has no file of the name.
    """
    a, b = find_set(ours), find_set(theirs)
    folders = Path(ours).is_dir(), Path(theirs).is_dir()
    if folders == (False, False):
        return [Couple(name, *a.values(), *b.values()) for name in a]
    if folders != (True, True):
        (name,), folder, where = (b, a, ours) if folders[0] else (a, b, theirs)
        if name not in folder:
            raise InputError(f"{named(where)}: no recording '{name}' in this folder; name the other file too")
        return [Couple(name, a[name], b[name])]
    return [Couple(name, a.get(name), b.get(name)) for name in sorted(a | b)]
