"""One thing that a machine may lack: whether it is there, and what to do if not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mmulab.errors import InputError

__all__ = ["Check", "checked"]


class Check(NamedTuple):
    """One thing: what it is, whether all is well with it, and what was found or what to do."""

    name: str
    ok: bool
    says: str
    needed: bool = True
    """False: whoever asks can do without it."""


def checked(name: str, look: Callable[[], str], needed: bool = True) -> Check:
    """Look at one thing: `look` returns what there is, or raises InputError that says what to do."""
    try:
        return Check(name, True, look(), needed)
    except InputError as error:
        return Check(name, False, str(error), needed)
