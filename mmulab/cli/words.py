"""Words that come as lines of standard input."""

from __future__ import annotations

import sys

from mmulab.errors import InputError
from mmulab.limits import TEXT_BYTES

STDIN = "-"
"""The argument that stands for lines of standard input."""


def stdin_lines() -> list[str]:
    """Return the lines of standard input that are not blank.

    Raises
    ------
    InputError
        It is no text, or too much of it.
    """
    try:
        text = sys.stdin.read(TEXT_BYTES + 1)
    except UnicodeDecodeError as error:
        raise InputError("standard input: no text; give words, or lines of a trace") from error
    if len(text) > TEXT_BYTES:
        raise InputError(f"standard input: more than {TEXT_BYTES} characters; give an extract")
    return [line.strip() for line in text.splitlines() if line.strip()]
