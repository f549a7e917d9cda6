"""The one error that bad input raises, and the most common reason for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Thing = TypeVar("Thing")


class InputError(ValueError):
    """Bad input, said in one line: which file, where in it, and what would be right.

    The command line prints the message and exits with 2; no traceback.
    """


class DesignError(InputError):
    """A user's design failed: the message names the file, the class and the method, and says how.

    In a run that is the design's verdict, as is whatever else it leads the model to.
    """


def find_named(known: Mapping[str, Thing], name: str, what: str, kind: str) -> Thing:
    """Return what is called `name`.

    Parameters
    ----------
    known : mapping of str to object
    name : str
    what : str
        What is looked for, in words.
    kind : str
        What those that there are are called, in the plural.

    Raises
    ------
    InputError
        Nothing is called so.
    """
    if name not in known:
        raise InputError(f"{what} {name!r}: unknown; the {kind} are {', '.join(known)}")
    return known[name]
