"""The stepper on a whole terminal: drawn anew at each key, in columns where there is room, in colour."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from mmulab.cli.step_keys import REDRAW, SUSPEND, Keyboard
from mmulab.cli.step_orders import ASK, QUIT, Orders
from mmulab.errors import InputError
from mmulab.widgets.blocks import MARK, Block, Line, Panel, Table

__all__ = ["Screen", "can_draw", "has_colour", "screen_lines"]

TITLE, HEAD, NEW, WRONG, CODE = "1", "2", "33;1", "31;1", "36"
"""Ways to print a line, as ECMA-48 numbers them (8.3.117): bold, faint, yellow, red, cyan."""
TWO, THREE = 140, 200
"""Characters in a line from which panels stand in two and three columns."""
_GAP = 2
_HINT = "← → step  / search  w wrong  h help  q quit"
_ENTER, _LEAVE = "\x1b[?1049h", "\x1b[?1049l"
"""The terminal's other screen, which leaves what was printed before as it is."""
_CHANGED = re.compile(rf"\({MARK} was [^)]*\)")


class _Part(NamedTuple):
    text: str
    tone: str = ""


def can_draw(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether keys come from a terminal and go to one that can be drawn on."""
    return sys.stdin.isatty() and sys.stdout.isatty() and environ.get("TERM", "dumb") != "dumb"


def has_colour(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether colour is wanted (https://no-color.org)."""
    return not environ.get("NO_COLOR")


def screen_lines(panels: Sequence[Panel], width: int, *, colour: bool = False) -> list[str]:
    """Return panels as lines of at most `width` characters, side by side where there is room."""
    wide = [panel for panel in panels if not panel.column]
    columns, widths = _columns(panels, width)
    drawn = [list(_drawn(column, across)) for column, across in zip(columns, widths, strict=True)]
    below = (
        (" " * _GAP).join(_padded(part, across, colour) for part, across in zip(row, widths, strict=True))
        for row in zip_longest(*drawn, fillvalue=_Part(""))
    )
    above = (_padded(part, width, colour) for part in _drawn(wide, width))
    return [line.rstrip() for line in (*above, *below)]


def _columns(panels: Sequence[Panel], width: int) -> tuple[list[list[Panel]], list[int]]:
    guest, host, state = ([panel for panel in panels if panel.column == at] for at in (1, 2, 3))
    if width < TWO:
        return [[panel for panel in panels if panel.column]], [width]
    if width < THREE:
        half = (width - _GAP) // 2
        return [[*guest, *state], host], [half, half]
    share = (width - 2 * _GAP) // 41
    return [guest, host, state], [15 * share, 15 * share, 11 * share]


def _drawn(panels: Sequence[Panel], width: int) -> Iterator[_Part]:
    for panel in panels:
        yield from _wrapped(f"── {panel.title}", TITLE, width)
        for block in panel.blocks:
            for number, line in enumerate(block.lines()):
                yield from _wrapped(f"   {line}", _tone(block, number, line), width)


def _tone(block: Block, number: int, line: str) -> str:
    if isinstance(block, Line):
        return WRONG if block.marked else CODE if block.code else ""
    if isinstance(block, Table):
        return NEW if line.startswith(MARK) else HEAD if not number and any(block.columns) else ""
    return ""


def _wrapped(text: str, tone: str, width: int) -> Iterator[_Part]:
    for line in textwrap.wrap(text, width, subsequent_indent=" " * 8):
        yield _Part(line, tone)


def _padded(part: _Part, width: int, colour: bool) -> str:
    room = " " * (width - len(part.text))
    if not colour:
        return part.text + room
    if part.tone:
        return _painted(part.text, part.tone) + room
    return _CHANGED.sub(lambda found: _painted(found[0], NEW), part.text) + room


def _painted(text: str, tone: str) -> str:
    return f"\x1b[{tone}m{text}\x1b[0m"


class Screen:
    """A session on the whole terminal.

    Parameters
    ----------
    orders : Orders
    keyboard : Keyboard
    colour : bool
    """

    def __init__(self, orders: Orders, keyboard: Keyboard, *, colour: bool) -> None:
        self._orders, self._session, self._keyboard = orders, orders.session, keyboard
        self._colour = colour
        self._top = 0
        self._message = ""

    def run(self) -> None:
        """Obey keys until one of them ends it; then the shell's screen is there again."""
        self._write(_ENTER)
        try:
            self._draw()
            while (key := self._keyboard.read()) not in QUIT:
                self._obey(key)
                # A key held down comes faster than moments are looked at.
                if not self._keyboard.waiting:
                    self._draw()
        except EOFError:
            return
        finally:
            self._write(_LEAVE)

    def _obey(self, key: str) -> None:
        self._message = ""
        if key in ("up", "down", "pgup", "pgdn"):
            lines = 1 if key in ("up", "down") else max(self._rows - 1, 1)
            self._top += lines if key in ("down", "pgdn") else -lines
        elif key == SUSPEND:
            self._write(_LEAVE)
            self._keyboard.suspend()
            self._write(_ENTER)
        elif key != REDRAW:
            self._order(key)

    def _order(self, key: str) -> None:
        before = self._session.at
        words = self._ask(f"{ASK[key]}: ") if key in ASK else ""
        if words is None:
            return
        try:
            self._message = self._orders.obey(key, words)
        except InputError as error:
            self._message = f"mmulab: {error}"
        if self._session.at != before:
            self._top = 0

    def _ask(self, prompt: str) -> str | None:
        """Return the words that are typed, None if Esc is pressed."""
        words = ""
        while True:
            self._write(f"\x1b[{self._rows + 1};1H{prompt}{words}\x1b[K")
            key = self._keyboard.read()
            if key == "\n":
                return words
            if key == "\x1b":
                return None
            if key == "\x7f":
                words = words[:-1]
            elif len(key) == 1 and key.isprintable():
                words += key

    @property
    def _rows(self) -> int:
        """Lines above the last one."""
        return shutil.get_terminal_size().lines - 1

    def _draw(self) -> None:
        width, rows = shutil.get_terminal_size().columns, self._rows
        told, _, more = self._message.partition("\n")
        if more:
            told, lines = "", [part for line in self._message.splitlines() for part in _plain(line, width)]
        else:
            lines = screen_lines(self._session.panels(), width, colour=self._colour)
        self._top = max(0, min(self._top, len(lines) - rows))
        shown = lines[self._top : self._top + rows]
        shown += [""] * (rows - len(shown))
        below = len(lines) - self._top - rows
        scroll = f"  ↓ {below} more" if below > 0 else ""
        last = f"[moment {self._session.at} of {self._session.last}]{scroll}  {told or _HINT}"[: width - 1]
        if self._colour:
            last = _painted(last, "7")
        self._write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + f"{last}\x1b[J")

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _plain(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width) or [""]
