"""Role words as the user has them: hexadecimal numbers, or lines of a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import click

from mmulab.cli.number import short
from mmulab.errors import InputError
from mmulab.kvm.roles.history import HISTORY
from mmulab.kvm.roles.trace_text import TracedRole, read_trace
from mmulab.kvm.roles.word import RoleLayout
from mmulab.kvm.roles.wording import Wording

STDIN = "-"
"""The argument that stands for lines of standard input."""


class Reading(NamedTuple):
    """How words are read.

    Attributes
    ----------
    title : str
        Who reads them.
    layout : RoleLayout
    wording : Wording or None
        How the reader prints a word in a trace.
    number : callable
        Reads a word that is given as a number.
    """

    title: str
    layout: RoleLayout
    wording: Wording | None
    number: Callable[[str], int]


def read_roles(words: tuple[str, ...], reading: Reading) -> list[TracedRole]:
    """Return the roles that the arguments tell.

    Parameters
    ----------
    words : tuple of str
        Hexadecimal numbers; a line of a trace, in one argument or in many; or ``-``.
    reading : Reading

    Raises
    ------
    InputError
        An argument is neither, or no line of standard input tells a role.
    """
    if words == (STDIN,):
        return _of_lines(reading)
    line = read_trace(" ".join(words), reading.layout, reading.wording)
    return [line] if line is not None else [_of_argument(word, reading) for word in words]


def _of_argument(text: str, reading: Reading) -> TracedRole:
    if " " not in text.strip():
        return TracedRole(reading.number(text), (), "")
    found = read_trace(text, reading.layout, reading.wording)
    if found is None:
        raise InputError(f"{short(text)}: no role as {reading.title} prints it{_who_prints(text)}")
    return found


def _of_lines(reading: Reading) -> list[TracedRole]:
    lines = [line.strip() for line in _stdin() if line.strip()]
    found = [role for line in lines for role in _of_line(line, reading)]
    if not found:
        who = next((who for who in map(_who_prints, lines) if who), "")
        raise InputError(f"standard input: no line has a role as {reading.title} prints it{who}")
    return found


def _of_line(line: str, reading: Reading) -> Iterator[TracedRole]:
    """Yield the role of a trace's line, or the words of a line that is one number or several."""
    role = read_trace(line, reading.layout, reading.wording)
    if role is not None:
        yield role
    elif all(word.strip("0123456789abcdefABCDEFxX") == "" for word in line.split()):
        for word in line.split():
            yield TracedRole(reading.number(word), (), "")
    else:
        click.echo(f"mmulab: passed over, no role in it: {short(line)}", err=True)


def _stdin() -> list[str]:
    try:
        return list(sys.stdin)
    except UnicodeDecodeError as error:
        raise InputError("standard input: no text; give lines of a trace, or words") from error


def _who_prints(text: str) -> str:
    """Return a hint at the kernel that would print a role so."""
    for version in reversed(HISTORY):
        found = read_trace(text, version.layout, version.wording)
        if found is not None:
            return f"; --kernel {version.since} would read it"
    return ""
