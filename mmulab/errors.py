"""The one error that bad input raises, how it quotes the input, and its most common reason."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

from mmulab.limits import PATH, QUOTED

Thing = TypeVar("Thing")


_ALIKE = 0.66  # one wrong letter of three
"""How alike names must be, of 1, for one to be a misspelling of the other."""


class InputError(ValueError):
    """Bad input, said in one line: which file, where in it, and what would be right.

    The command line prints the message and exits with 2; no traceback.
    """


class DesignError(InputError):
    """A user's design failed: the message names the file, the class and the method, and says how.

    In a run that is the design's verdict, as is whatever else it leads the model to.
    """


def error_str(error: int) -> str:
    """Print an errno as the caller of a system call reads it, negated or not.

    >>> error_str(-22), error_str(28), error_str(0), error_str(-999)
    ('-22 EINVAL', '28 ENOSPC', '0', '-999')
    """
    return f"{error} {errno.errorcode.get(abs(error), '')}".rstrip()


def quoted(text: object, limit: int = QUOTED) -> str:
    """Return what a message repeats of the input: one short line, without control characters.

    Parameters
    ----------
    text : object
        Its ``str`` is taken, ``repr`` if it is bytes.
    limit : int
        Characters; what is longer ends in ``...``.

    Examples
    --------
    >>> quoted("rd u 4\\n\\x1b[31m")
    'rd u 4\\\\n\\\\x1b[31m'
    """
    whole = repr(text)[2:-1] if isinstance(text, bytes) else str(text)
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in whole[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: max(limit - 3, 0)] + "..."


def named(path: object) -> str:
    """Return a path as a message names it: whole, without control characters."""
    return quoted(path, PATH)


def near(name: str, known: Iterable[str]) -> str:
    """Return a question after the known name that is most like a misspelt one; empty if none is like it.

    >>> near("passthru", ["glevel", "passthrough"]), near("b", ["B1", "B2"]), near("b2", ["B1", "B2"])
    ("did you mean 'passthrough'? ", '', "did you mean 'B2'? ")
    """
    lower = {one.lower(): one for one in reversed(list(known)) if one}
    is_id = len(name) < 2 or (len(name) < 5 and any(map(str.isdigit, name)))  # as B9: one letter is much
    alike = 1 if is_id else _ALIKE
    found = get_close_matches(name[:QUOTED].lower(), lower, 1, alike)
    return f"did you mean '{lower[found[0]]}'? " if found else ""


def find_named(known: Mapping[str, Thing], name: str, what: str, kind: str) -> Thing:
    """Return what is called `name`.

    Parameters
    ----------
    known : mapping of str to object
    name : str
    what : str
        What is looked for, in words.
    kind : str
        Plural noun for the known names.

    Raises
    ------
    InputError
        The name is unknown.
    """
    if name not in known:
        hint = near(name, known)
        raise InputError(f"{what} '{quoted(name)}': unknown; {hint}the {kind} are {', '.join(known)}")
    return known[name]
