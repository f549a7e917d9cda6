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
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from mmulab.errors import InputError

__all__ = ["Arrived", "Jobs", "Workers", "each", "in_turn", "width"]

Work = TypeVar("Work")
Result = TypeVar("Result")


class Workers(Protocol):
    """Others than this machine's processes who do works; :class:`mmulab.cluster.Cluster` is one."""

    def each(
        self, function: Callable[[Work], Result], works: Sequence[Work]
    ) -> Generator[Result, None, None]:
        """Yield the results as :func:`each` does."""

    def width(self) -> int:
        """Return how many works they do at a time."""


Jobs: TypeAlias = int | Workers
"""Who does the works: so many processes of this machine, or others."""
Arrived: TypeAlias = tuple[int, Any, Exception | None]
"""A work that is done: its number, and its result or its error."""

_End: TypeAlias = "Connection[Any, Any]"
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def each(
    function: Callable[[Work], Result], works: Sequence[Work], jobs: Jobs
) -> Generator[Result, None, None]:
    """Yield the results of `function` on each piece of work, in order and as soon as they are there.

    However the iteration ends, by an error, an interrupt or by closing it, no
    worker is left. Interrupted while it waits for a result, it first yields the
    later ones that are finished, and then lets the interrupt out.

    Parameters
    ----------
    function : callable
        What it raises is raised here.
    works : sequence
        A worker that is forked, as on Linux, has function and works as they are; one that is
        started anew gets them pickled. Results come back pickled.
    jobs : int or Workers
        Processes; with one, all is done in this process. Or who else does the works.

    Raises
    ------
    InputError
        A worker was killed; most often by the kernel, for want of memory.
    """
    if not isinstance(jobs, int):
        yield from jobs.each(function, works)
        return
    jobs = min(jobs, len(works))
    if jobs <= 1:
        yield from map(function, works)
        return
    workers: dict[_End, BaseProcess] = {}
    try:
        for _ in range(jobs):
            _start(function, works, workers)
        yield from _results(len(works), workers)
    finally:
        for process in workers.values():
            process.kill()
        for connection, process in workers.items():
            connection.close()
            process.join()


def width(jobs: Jobs) -> int:
    """Return how many works are done at a time."""
    return jobs if isinstance(jobs, int) else jobs.width()


def _start(function: Callable[[Any], Any], works: Sequence[Any], workers: dict[_End, BaseProcess]) -> None:
    """Start a worker; until it has its own handlers, it and this process hold signals back."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(function, works, there), daemon=True)
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


def _results(count: int, workers: dict[_End, BaseProcess]) -> Iterator[Any]:
    todo = iter(range(count))
    at: dict[_End, int] = {}

    def arrive() -> Iterator[Arrived]:
        for readable in wait(list(at)):
            connection = cast(_End, readable)
            number = at.pop(connection)
            yield number, *_take(connection, workers[connection])
            _give(connection, todo, at)

    for connection in workers:
        _give(connection, todo, at)
    yield from in_turn(count, arrive)


def in_turn(count: int, arrive: Callable[[], Iterable[Arrived]]) -> Iterator[Any]:
    """Yield the results of works 0 to `count` - 1 in their order, and raise an error in its turn.

    Interrupted, it first yields the later results that are there.

    Parameters
    ----------
    count : int
    arrive : callable
        Waits until some works are done, and returns or yields them.
    """
    done: dict[int, tuple[Any, Exception | None]] = {}
    for number in range(count):
        try:
            while number not in done:
                for arrived, result, error in arrive():
                    done[arrived] = result, error
        except KeyboardInterrupt:
            yield from (result for _, (result, error) in sorted(done.items()) if error is None)
            raise
        result, error = done.pop(number)
        if error is not None:
            raise error
        yield result


def _give(connection: _End, todo: Iterator[int], at: dict[_End, int]) -> None:
    """Send the number of the next piece of work, if there is one."""
    for number in todo:
        connection.send(number)
        at[connection] = number
        return


def _take(connection: _End, process: BaseProcess) -> tuple[Any, Exception | None]:
    try:
        answer: tuple[Any, Exception | None] = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        code = process.exitcode or 0
        how = f"killed by signal {-code}" if code < 0 else f"gone with exit code {code}"
        raise InputError(f"a worker process is {how}; run it again with fewer --jobs") from error
    return answer


def _serve(function: Callable[[Any], Any], works: Sequence[Any], connection: _End) -> None:
    """Do the works whose numbers come over the pipe, until the parent closes it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = function(works[number]), None
        except InputError as error:
            answer = None, error
        except Exception as error:  # carried over and raised in the parent
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            answer = None, error
        try:
            connection.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            connection.send((None, RuntimeError(f"what a worker has found cannot be sent: {error!r}")))


def _leave_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
