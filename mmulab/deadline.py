"""A call of foreign code that may not go on for ever.

A thread looks every so often whether the call still runs, and raises
:class:`TooLong` in it after its time. Code that is inside one long call of a
C function gets it when that returns. The thread is started at the first call,
anew in a process that was forked, and costs a call half a microsecond.

Source: the C-API reference of Python 3.11, ``PyThreadState_SetAsyncExc``
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, ParamSpec, TypeVar

__all__ = ["TooLong", "call"]

P = ParamSpec("P")
T = TypeVar("T")
_LOOKS = 8
"""How often a call's time is looked at before it has passed."""


class TooLong(BaseException):
    """The call did not come to its end in its time. No ``except Exception`` stops it."""


class _State:
    """When the calls that run now must end, by thread, and those that were told so: the process has one."""

    lock: ClassVar = threading.Lock()
    ends: ClassVar[dict[int, float]] = {}
    told: ClassVar[set[int]] = set()
    process = 0


def call(seconds: float, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function, which has `seconds` for it; a call inside such a call shares its time.

    Raises
    ------
    TooLong
        In the function, where it is.
    """
    thread = threading.get_ident()
    if thread in _State.ends:
        return function(*args, **kwargs)
    if _State.process != os.getpid():
        _start(seconds)
    _State.ends[thread] = time.monotonic() + seconds
    try:
        return function(*args, **kwargs)
    finally:
        with _State.lock:
            del _State.ends[thread]
            if thread in _State.told:
                _State.told.remove(thread)
                _set(thread, None)  # what is not raised yet shall not be: the call is over


def _start(seconds: float) -> None:
    _State.process = os.getpid()
    _State.lock = threading.Lock()  # a fork may have copied a locked one
    _State.ends.clear()
    _State.told.clear()
    threading.Thread(target=_watch, args=(seconds / _LOOKS,), name="mmulab-deadline", daemon=True).start()


def _watch(pause: float) -> None:
    while True:
        time.sleep(pause)
        now = time.monotonic()
        with _State.lock:
            for thread in [thread for thread, ends in list(_State.ends.items()) if ends < now]:
                _State.told.add(thread)
                _set(thread, TooLong)  # and once more at each look, for it may be caught


def _set(thread: int, error: Any) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )
