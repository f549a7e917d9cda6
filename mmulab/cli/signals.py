"""Ctrl-C and SIGTERM on the command line: what is finished is shown and kept, then the command ends.

Both raise where the command is, as Python does it for Ctrl-C. What must not be
torn, a document on its way out or an op that is being recorded, holds them off
and asks whether one came. Only the command line installs handlers: in a
notebook's kernel signals are the kernel's own.

Source: signal(7)
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "held", "ignore", "install", "shown"]

SAME = 1.0
"""Seconds within which a signal that comes again is the same one: timeout(1) sends it to the process and to
its group. Later it is impatience, and raises even where signals are held off."""
SOON = 0.001
"""Seconds after which an interrupt is raised again that Python could not let out."""
_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came; everything that is done for Ctrl-C is done for it too."""


class _State:
    """What came so far: the process has one."""

    holders = 0
    waiting: KeyboardInterrupt | None = None
    lost: KeyboardInterrupt | None = None
    came: float | None = None


def install() -> None:
    """Let Ctrl-C and SIGTERM raise in this process from now on.

    One that is ignored stays so: a shell's background job is not meant when Ctrl-C is pressed.
    """
    sys.unraisablehook = _note_lost
    signal.signal(signal.SIGALRM, _raise_lost)
    for number in _HANDLED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore() -> None:
    """Pass over both from now on: the command has ended and its exit code is known."""
    for number in (*_HANDLED, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)


def _note_lost(unraisable: sys.UnraisableHookArgs) -> None:
    """Raise an interrupt soon again that came in a destructor or a callback, which nothing can leave."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _State.lost = type(unraisable.exc_value)()
        signal.setitimer(signal.ITIMER_REAL, SOON)
    else:
        sys.__unraisablehook__(unraisable)


def _raise_lost(_number: int, _frame: FrameType | None) -> None:
    error, _State.lost = _State.lost, None
    if error is not None:
        _raise_or_hold(error)


def _handle(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    again = _State.came is not None
    if _State.came is not None and now - _State.came < SAME:
        return
    _State.came = now
    error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    if again:
        raise error
    _raise_or_hold(error)


def _raise_or_hold(error: KeyboardInterrupt) -> None:
    if not _State.holders:
        raise error
    _State.waiting = error


@contextmanager
def held() -> Iterator[Callable[[], bool]]:
    """Hold signals off until the end of the block, and raise there if one came.

    Yields
    ------
    callable
        Whether one has come: time to come to an end.
    """
    _State.holders += 1
    try:
        yield lambda: _State.waiting is not None
    except BaseException:
        _State.waiting = None  # the block ends anyway, and says why
        raise
    finally:
        _State.holders -= 1
    if _State.waiting is not None and not _State.holders:
        error, _State.waiting = _State.waiting, None
        raise error


@contextmanager
def shown(show: Callable[[], None]) -> Iterator[None]:
    """Show what the block has finished, whole, at its end and also when it is interrupted.

    The interrupt goes on: the exit code still says that there was one.
    """
    try:
        yield
    except KeyboardInterrupt:
        with held():
            show()
        raise
    with held():
        show()
