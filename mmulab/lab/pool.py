"""Worker processes that never outlive the work, nor the process that started them.

Each worker has a pipe of its own and gets one piece of work at a time; nothing
is shared, so that a worker can be killed at any moment. Interrupts are the
parent's business: workers ignore them. A worker watches its parent and leaves
with it, also if the parent was killed.

Source: the library reference of Python 3.11, multiprocessing
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeAlias, TypeVar, cast

from mmulab.errors import InputError

__all__ = ["each"]

Work = TypeVar("Work")
Result = TypeVar("Result")

_End: TypeAlias = "Connection[Any, Any]"
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def each(
    function: Callable[[Work], Result], works: Sequence[Work], jobs: int
) -> Generator[Result, None, None]:
    """Yield the results of `function` on each piece of work, in order and as soon as they are there.

    However the iteration ends, by an error, an interrupt or by closing it, no
    worker is left.

    Parameters
    ----------
    function : callable
        Can be imported by a worker. What it raises is raised here.
    works : sequence
        Pickled on their way to the workers, as the results are on their way back.
    jobs : int
        Processes; with one, all is done in this process.

    Raises
    ------
    InputError
        A worker was killed; most often by the kernel, for want of memory.
    """
    jobs = min(jobs, len(works))
    if jobs <= 1:
        yield from map(function, works)
        return
    workers: dict[_End, BaseProcess] = {}
    try:
        for _ in range(jobs):
            _start(function, workers)
        yield from _results(works, workers)
    finally:
        for process in workers.values():
            process.kill()
        for connection, process in workers.items():
            connection.close()
            process.join()


def _start(function: Callable[[Any], Any], workers: dict[_End, BaseProcess]) -> None:
    """Start a worker; until it has its own handlers, it and this process hold signals back."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(function, there), daemon=True)
    with _blocked():
        process.start()
        workers[here] = process
        there.close()


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _results(works: Sequence[Any], workers: dict[_End, BaseProcess]) -> Iterator[Any]:
    todo = iter(enumerate(works))
    at: dict[_End, int] = {}
    done: dict[int, Any] = {}
    for connection in workers:
        _give(connection, todo, at)
    for number in range(len(works)):
        while number not in done:
            for readable in wait(list(at)):
                connection = cast(_End, readable)
                done[at.pop(connection)] = _take(connection, workers[connection])
                _give(connection, todo, at)
        result, error = done.pop(number)
        if error is not None:
            raise error
        yield result


def _give(connection: _End, todo: Iterator[tuple[int, Any]], at: dict[_End, int]) -> None:
    """Send the next piece of work, if there is one."""
    for number, work in todo:
        connection.send(work)
        at[connection] = number
        return


def _take(connection: _End, process: BaseProcess) -> tuple[Any, BaseException | None]:
    try:
        answer: tuple[Any, BaseException | None] = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        code = process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"gone with exit code {code}"
        raise InputError(f"a worker process is {how}; run it again with fewer --jobs") from error
    return answer


def _serve(function: Callable[[Any], Any], connection: _End) -> None:
    """Do what comes over the pipe until the parent closes it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    while True:
        try:
            work = connection.recv()
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = function(work), None
        except Exception as error:  # carried over and raised in the parent
            answer = None, error
        connection.send(answer)


def _leave_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
