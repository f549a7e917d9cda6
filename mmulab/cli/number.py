"""Words given on the command line: role words and shadow entries."""

from __future__ import annotations

LONGEST = 80
"""Characters of a number: 64 bits in binary, and some to spare."""


def read_number(text: str) -> int | None:
    """Return the number that `text` says, None if it says none that a word could hold.

    >>> read_number("0x20712"), read_number("132882"), read_number("20712g")
    (132882, 132882, None)
    """
    try:
        return int(text, 0) if len(text) <= LONGEST else None
    except ValueError:
        return None


def read_hex(text: str) -> int | None:
    """Return the word that `text` says in hexadecimal, as traces and scenarios do; None if it says none.

    >>> read_hex("20712") == read_hex("0x20712"), read_hex("20712g")
    (True, None)
    """
    try:
        return int(text, 16) if len(text) <= LONGEST else None
    except ValueError:
        return None


def short(text: str) -> str:
    """Return what the user wrote, quoted; of a very long text the beginning."""
    return repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r}..."
