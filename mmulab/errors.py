"""The one error that bad input raises."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, said in one line: which file, where in it, and what would be right.

    The command line prints the message and exits with 2; no traceback.
    """
