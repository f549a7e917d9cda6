"""Keys as they are pressed, one at a time, by names that do not depend on the terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import termios
import tty
from types import FrameType, TracebackType

__all__ = ["REDRAW", "SUSPEND", "Keyboard", "keys_of"]

REDRAW, SUSPEND = "redraw", "\x1a"
_NAMES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b[5~": "pgup",
    "\x1b[6~": "pgdn",
    "\x1b[7~": "home",
    "\x1b[8~": "end",
    "\r": "\n",
    "\x08": "\x7f",
    "\x0c": REDRAW,
}
"""What xterm, the Linux console and rxvt send; an application's cursor keys have O in place of [."""
_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.S)
_BEGUN = re.compile(r"\x1b(?:[\[O][0-9;]*)?\Z")
_REST = 0.05
"""Seconds that the rest of a key's sequence may take; the key Esc sends no more than its beginning."""


def keys_of(text: str) -> list[str]:
    r"""Cut what a terminal sent into keys.

    >>> keys_of("n\x1b[C\x1bOD\r")
    ['n', 'right', 'left', '\n']
    """
    return [_NAMES.get(key.replace("\x1bO", "\x1b["), key) for key in _KEY.findall(text)]


class Keyboard:
    """A terminal whose keys come at once and are not echoed; what it was like comes back at the end.

    Ctrl-C interrupts as ever. Ctrl-Z comes as the key :data:`SUSPEND`, and a change of the window's size
    as the key :data:`REDRAW`.

    Parameters
    ----------
    descriptor : int
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._keys: list[str] = []

    def __enter__(self) -> Keyboard:
        self._was = termios.tcgetattr(self._descriptor)
        self._wake, self._waking = os.pipe()
        for end in (self._wake, self._waking):
            os.set_blocking(end, False)
        self._resized = signal.signal(signal.SIGWINCH, _pass)
        self._woken = signal.set_wakeup_fd(self._waking, warn_on_full_buffer=False)
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._was)
        signal.set_wakeup_fd(self._woken)
        signal.signal(signal.SIGWINCH, self._resized)
        os.close(self._wake)
        os.close(self._waking)

    def _take(self) -> None:
        tty.setcbreak(self._descriptor)
        mode = termios.tcgetattr(self._descriptor)
        mode[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mode)

    def suspend(self) -> None:
        """Stop this command and whatever it shares a pipe with, as Ctrl-Z does; return when it goes on."""
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._was)
        os.kill(0, signal.SIGTSTP)
        self._take()

    @property
    def waiting(self) -> bool:
        """Whether a key was pressed that was not read."""
        return bool(self._keys) or self._ready(0)

    def read(self) -> str:
        """Wait for a key and return its name, or its character.

        Raises
        ------
        EOFError
            The terminal is gone.
        """
        while not self._keys:
            readable, _, _ = select.select([self._descriptor, self._wake], [], [])
            if self._wake in readable:
                os.read(self._wake, 1000)
                return REDRAW
            text = self._receive()
            while _BEGUN.search(text) and self._ready(_REST):
                text += self._receive()
            self._keys = keys_of(text)
        return self._keys.pop(0)

    def _receive(self) -> str:
        received = os.read(self._descriptor, 1000)
        if not received:
            raise EOFError
        return received.decode("utf-8", "replace")

    def _ready(self, seconds: float) -> bool:
        return bool(select.select([self._descriptor], [], [], seconds)[0])


def _pass(_number: int, _frame: FrameType | None) -> None:
    """The wakeup descriptor says it."""
