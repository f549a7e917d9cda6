"""Worker processes that never outlive the work, nor the process that started them.

Each worker has a pipe of its own and gets one piece of work at a time; nothing
is shared, so that a worker can be killed at any moment. Interrupts are the
parent's business: workers ignore them. A worker watches its parent and leaves
with it, also if the parent was killed. One that dies of its work is replaced, and
the work counts as lost.

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
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from mmulab.errors import InputError

__all__ = ["Arrived", "Jobs", "Lost", "WorkerError", "Workers", "each", "in_turn", "width"]

Work = TypeVar("Work")
Result = TypeVar("Result")


class WorkerError(InputError):
    """A worker died while it did a work: what came of that is lost, and why is all that is known."""


class Workers(Protocol):
    """Others than this machine's processes who do works; :class:`mmulab.cluster.Cluster` is one."""

    def each(
        self,
        function: Callable[[Work], Result],
        works: Sequence[Work],
        *,
        lost: Lost[Work, Result] | None = None,
    ) -> Generator[Result, None, None]:
        """Yield the results as :func:`each` does."""

    def width(self) -> int:
        """Return how many works they do at a time."""


Jobs: TypeAlias = int | Workers
"""Who does the works: so many processes of this machine, or others."""
Lost: TypeAlias = Callable[[Work, WorkerError], Result]
"""Returns the result of a work whose worker died."""
Arrived: TypeAlias = tuple[int, Any, Exception | None]
"""A work that is done: its number, and its result or its error."""

LOOK_SECONDS = 1.0
"""Between two looks whether a signal has come."""

_End: TypeAlias = "Connection[Any, Any]"
_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def each(
    function: Callable[[Work], Result],
    works: Sequence[Work],
    jobs: Jobs,
    *,
    lost: Lost[Work, Result] | None = None,
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
    lost : callable, optional
        What it returns is the result of a work that its worker died of. No work is then
        done in this process, which such a one would end as well.

    Raises
    ------
    WorkerError
        A worker died, in the turn of its work, unless `lost` takes that.
    """
    if not isinstance(jobs, int):
        yield from jobs.each(function, works, lost=lost)
        return
    jobs = min(jobs, len(works))
    if lost is None and jobs <= 1:
        yield from map(function, works)
        return
    crew = _Crew(function, works, lost)
    try:
        for _ in range(jobs):
            crew.start()
        yield from in_turn(len(works), crew.arrive)
    finally:
        crew.end()


def width(jobs: Jobs) -> int:
    """Return how many works are done at a time."""
    return jobs if isinstance(jobs, int) else jobs.width()


class _Crew:
    """The workers of one call, and what each is at.

    Parameters
    ----------
    function : callable
    works : sequence
    lost : callable or None
    """

    def __init__(
        self, function: Callable[[Any], Any], works: Sequence[Any], lost: Lost[Any, Any] | None
    ) -> None:
        self._function, self._works, self._lost = function, works, lost
        self._next = 0
        self._processes: dict[_End, BaseProcess] = {}
        self._at: dict[_End, int] = {}

    def start(self) -> None:
        """Start a worker with a work; until it has its handlers, it and this process hold signals back."""
        here, there = multiprocessing.Pipe()
        work = self._function, self._works, there
        process = multiprocessing.Process(target=_serve, args=work, daemon=True)
        with _blocked():
            process.start()
            self._processes[here] = process
            there.close()
        self._give(here)

    def arrive(self) -> Iterator[Arrived]:
        """Wait until some works are done, and yield them."""
        ready: list[Any] = []
        while not ready:  # a signal that comes just before it waits does not wake it
            ready = wait(list(self._at), LOOK_SECONDS)
        for readable in ready:
            connection = cast(_End, readable)
            number = self._at.pop(connection)
            try:
                result, error = connection.recv()
            except (EOFError, ConnectionResetError):
                yield self._bury(connection, number)
                if self._next < len(self._works):
                    self.start()
            else:
                yield number, result, error
                self._give(connection)

    def end(self) -> None:
        """Kill all who are left."""
        for process in self._processes.values():
            process.kill()
        for connection, process in self._processes.items():
            connection.close()
            process.join()

    def _give(self, connection: _End) -> None:
        """Send the number of the next work, if there is one."""
        if self._next == len(self._works):
            return
        with suppress(BrokenPipeError):  # it died between two works: seen where its answer is read
            connection.send(self._next)
        self._at[connection] = self._next
        self._next += 1

    def _bury(self, connection: _End, number: int) -> Arrived:
        """Take a worker that died off the list, and return what that means for its work."""
        process = self._processes.pop(connection)
        process.join()
        connection.close()
        error = WorkerError(f"a worker died: {_cause(process.exitcode or 0)}")
        if self._lost is None:
            return number, None, error
        return number, self._lost(self._works[number], error), None


def _cause(code: int) -> str:
    """Return in words what ended a process."""
    if code >= 0:
        return f"it left with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = "a real-time signal"
    mend = "; if memory ran out, run it again with fewer --jobs" if -code == signal.SIGKILL else ""
    return f"killed by signal {-code} ({name}){mend}"


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
