"""Works that tests have done by workers elsewhere, in a module that these import fast."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import NamedTuple

from mmulab.errors import InputError
from mmulab.report.provenance import path_of
from mmulab.report.results import Table


class Piece(NamedTuple):
    """A work with a file."""

    name: str
    file: Path


def squared(number: int) -> int:
    """Return the square; refuse a negative number."""
    if number < 0:
        raise InputError(f"{number}: negative")
    return number**2


def locked(_number: int) -> object:
    """Return what cannot be pickled."""
    return threading.Lock()


def text_and_place(piece: Piece) -> tuple[str, str, str, str]:
    """Return what a file holds, its name, where it is, and who says so."""
    from distributed import get_worker

    return piece.file.read_text(), piece.file.name, str(piece.file), get_worker().address


def deadly(number: int) -> int:
    """Return the number; kill the process at 2."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def mortal(number: int) -> Table:
    """Return a table of the number; kill the process at 2."""
    return Table("mortal", ("number",), [(deadly(number),)])


def counted(name: str, times: int) -> Table:
    """Count a file's words, times a number."""
    words = len(path_of(name).read_text().split())
    return Table("counted", ("times", "words"), [(times, words * times)])
