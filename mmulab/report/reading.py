"""The order in which the project's notebooks are to be read, and what each is: ``notebooks/reading.yaml``."""

from __future__ import annotations

from typing import NamedTuple

from mmulab import paths
from mmulab.report.document import read

__all__ = ["Entry", "reading"]


class Entry(NamedTuple):
    """A notebook's place: the part that it stands in, what it is, and why it stands there."""

    name: str
    part: str
    about: str
    why: str


def reading() -> dict[str, Entry]:
    """Return the notebooks by name, in the order in which they are to be read.

    Raises
    ------
    InputError
        The file is not there or is no YAML.
    """
    parts = read(paths.checkout() / "notebooks" / "reading.yaml").value
    entries = [
        Entry(found["name"], part["part"], found["about"], found["why"])
        for part in parts
        for found in part["notebooks"]
    ]
    return {entry.name: entry for entry in entries}
