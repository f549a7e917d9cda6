"""Where what is made once is kept: ``$XDG_CACHE_HOME/mmulab``, or ``~/.cache/mmulab``."""

from __future__ import annotations

import os
from pathlib import Path

from mmulab.errors import InputError, named
from mmulab.files import reason

__all__ = ["cache_folder"]


def cache_folder(*parts: str) -> Path:
    """Return a folder in the cache; it is made.

    Raises
    ------
    InputError
    """
    top = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(top, "mmulab", *parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{named(path)}: {reason(error)}; set XDG_CACHE_HOME to a folder of yours"
        ) from error
    return path
