"""Works on other machines: a scheduler of dask.distributed, and the workers that it has.

A worker does one work at a time, whatever its number of threads; start one a
processor (``dask worker tcp://HOST:8786 --nworkers auto --nthreads 1``). When a
worker is lost, the scheduler gives its works to others, until so many have died
of one (``distributed.scheduler.allowed-failures``). As it blames all that a worker
had, also what only waited there, such works are tried once more at the end, each
by itself; one of which workers die then too is given up. Files go by digest, as
:mod:`mmulab.parcel` says, and stay with a worker until it ends.

Whoever reaches a scheduler has its workers run what he likes: keep it to
machines that trust each other.

Source: the documentation of dask.distributed 2026.8, "Futures", "Resilience", "Worker"
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mmulab import files, parcel
from mmulab.errors import InputError, quoted
from mmulab.parcel import Parcel, Side
from mmulab.pool import Arrived, Lost, WorkerError, in_turn

__all__ = ["Cluster", "each", "unwanted"]

Work = TypeVar("Work")
Result = TypeVar("Result")

CONNECT_SECONDS = 5.0
"""How long a scheduler may take to answer."""
LOOK_SECONDS = 1.0
"""Between two looks whether scheduler and workers are there, while no result comes."""
WORKERLESS_SECONDS = 15.0
"""How long a scheduler may be without a worker: one that died may come back under its nanny."""
GATHER_SECONDS = 10.0
"""How long a result may take on its way; then it is asked for again."""
_STORE = "mmulab-files"
_NAMED = 3
"""Works that a message names."""


class Cluster(NamedTuple):
    """Where works are done in place of this machine's processes.

    Attributes
    ----------
    scheduler : str
        ``tcp://HOST:PORT``.
    in_order : bool
        Give results in the order of the works; else as they come.
    """

    scheduler: str
    in_order: bool = True

    def each(
        self,
        function: Callable[[Work], Result],
        works: Sequence[Work],
        *,
        lost: Lost[Work, Result] | None = None,
    ) -> Generator[Result, None, None]:
        """Yield the results; see :func:`each`."""
        return each(function, works, self.scheduler, in_order=self.in_order, lost=lost)

    def width(self) -> int:
        """Return how many workers the scheduler has now, at least 1."""
        with _connected(self.scheduler) as client:
            return max(1, len(client.nthreads()))


def each(
    function: Callable[[Work], Result],
    works: Sequence[Work],
    scheduler: str,
    *,
    in_order: bool = True,
    lost: Lost[Work, Result] | None = None,
) -> Generator[Result, None, None]:
    """Yield the results of `function` on each piece of work, done by the workers of a scheduler.

    However the iteration ends, the scheduler keeps nothing of it. A work that is
    under way then goes on to its end, unless it asks :func:`unwanted`, and what it
    gives is thrown away.
    Interrupted, it first yields what is finished, as :func:`mmulab.pool.each` does.

    Parameters
    ----------
    function : callable
        What it raises is raised here. It must be found by name, or picklable by value.
    works : sequence
        An existing file's Path is read, not written: the worker gets a file with the same content.
    scheduler : str
        ``tcp://HOST:PORT``.
    in_order : bool
        As the works are; else as they come.
    lost : callable, optional
        What it returns is the result of a work that is given up.

    Raises
    ------
    InputError
        No scheduler answers, it has no worker, or a worker has another mmulab, another
        Python or other data.
    WorkerError
        So many workers died of a work that it is given up, unless `lost` takes that.
    """
    if not works:
        return
    with _connected(scheduler) as client:
        flow = _Flow(client, scheduler, function, works, lost)
        try:
            flow.start()
            yield from flow.in_order() if in_order else flow.as_they_come()
        finally:
            flow.end()


def unwanted() -> bool:
    """Whether nobody waits any more for the work that asks, on a worker: interrupted, or gone."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    return task is None or task.state == "cancelled"


@contextmanager
def _connected(scheduler: str) -> Iterator[Any]:
    import distributed

    make: Any = distributed.Client
    # What goes wrong is raised; these would say it once more, in other words.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = make(scheduler, timeout=CONNECT_SECONDS, set_as_default=False, name="mmulab")
    except (OSError, ValueError, TypeError, ImportError) as error:
        why = "no scheduler answers" if isinstance(error, OSError) else quoted(error, 200)
        mend = "start 'dask scheduler', or name another as tcp://HOST:PORT"
        raise InputError(f"--scheduler {quoted(scheduler)}: {why}; {mend}") from error
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError):
            client.close(timeout=CONNECT_SECONDS)


class _Answer(NamedTuple):
    """What came of a work: ``result``, ``error``, ``refused``, ``lacks`` (files) or ``killed`` (workers)."""

    kind: str
    worker: str
    data: Any


class _Flow:
    """The works of one call on their way.

    Parameters
    ----------
    client : distributed.Client
    scheduler : str
    function : callable
    works : sequence
    lost : callable or None
    """

    def __init__(
        self,
        client: Any,
        scheduler: str,
        function: Callable[[Any], Any],
        works: Sequence[Any],
        lost: Lost[Any, Any] | None,
    ) -> None:
        self._client, self._scheduler = client, scheduler
        self._function, self._works, self._lost = function, works, lost
        self._token = uuid.uuid4().hex
        self._futures: dict[int, Any] = {}
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._sent: set[tuple[str, str]] = set()
        self._asked: set[tuple[int, str]] = set()
        self._late: list[int] = []
        self._suspects: list[int] = []
        self._alone: int | None = None
        self._times = 0
        self._workerless: float | None = None

    def start(self) -> None:
        """Give all works to the scheduler, the first of them first."""
        if len(self._works) == 1:
            self._alone = 0
        for number in range(len(self._works)):
            self._submit(number)

    def end(self) -> None:
        """Let the scheduler forget what is not finished."""
        futures = list(self._futures.values())
        if futures and self._client.status == "running":
            with suppress(OSError, TimeoutError):
                self._client.cancel(futures, force=True)
        self._futures.clear()

    def as_they_come(self) -> Iterator[Any]:
        """Yield the results as they come."""
        while self._futures or self._suspects:
            _, result, error = self._next()
            if error is not None:
                raise error
            yield result

    def in_order(self) -> Iterator[Any]:
        """Yield the results in the order of the works, and an error in its turn."""
        return in_turn(len(self._works), lambda: [self._next()])

    def _submit(self, number: int, worker: str | None = None) -> None:
        """Give a work to the scheduler; best to `worker`, which has its files."""
        parts, _ = parcel.packed((self._function, self._works[number]))
        self._times += 1
        future = self._client.submit(
            _serve,
            parcel.side(),
            parts,
            key=f"mmulab-{self._token}-{number}-{self._times}",
            pure=False,
            priority=-number,
            workers=None if worker is None else [worker],
            allow_other_workers=worker is not None,
        )
        self._futures[number] = future
        future.add_done_callback(lambda _: self._done.put(number))

    def _next(self) -> Arrived:
        """Wait for a work that is finished; return its number, and its result or error."""
        while True:
            if not self._futures:
                self._alone = self._suspects.pop(0)
                self._submit(self._alone)
            try:
                number = self._done.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                self._look()
                continue
            answer = self._answer(number)
            if answer is None:
                self._late.append(number)
                continue
            if answer.kind == "lacks":
                self._supply(number, answer)
                continue
            del self._futures[number]
            if answer.kind == "killed" and number != self._alone:
                self._suspects.append(number)
                continue
            if answer.kind == "killed" and self._lost is not None:
                return number, self._lost(self._works[number], answer.data), None
            if answer.kind == "refused":
                raise InputError(f"worker {answer.worker} of {self._scheduler}: {answer.data}")
            if answer.kind in ("error", "killed"):
                return number, None, answer.data
            return number, answer.data, None

    def _answer(self, number: int) -> _Answer | None:
        """Return what came of a work; None if that is lost, or slow on its way."""
        from distributed import KilledWorker

        future = self._futures[number]
        if future.status == "cancelled":
            raise InputError(f"{self._scheduler}: the scheduler has dropped {self._called(number)}")
        if future.status == "lost":  # with the worker that had the result: it is done once more
            return None
        try:
            kind, worker, data = future.result(timeout=GATHER_SECONDS)
        except KilledWorker as error:
            died, last = error.allowed_failures + 1, error.last_worker.address
            why = f"workers that died of it: {died}, the last {last}"
            return _Answer("killed", last, WorkerError(f"{self._called(number)}: {why}; it is given up"))
        except TimeoutError:
            return None
        except Exception as error:  # the function's own come as answers: this is dask's, before it ran
            why = f"{type(error).__name__}: {quoted(error, 200)}"
            mend = "install the same mmulab there"
            return _Answer("refused", "", f"cannot take {self._called(number)} ({why}); {mend}")
        return _Answer(kind, worker, pickle.loads(data))

    def _supply(self, number: int, answer: _Answer) -> None:
        """Send a worker the files of a work that it lacks, and the work again."""
        parts, places = parcel.packed((self._function, self._works[number]))
        if (number, answer.worker) in self._asked:
            raise InputError(f"worker {answer.worker} of {self._scheduler}: it loses files; look at its disk")
        self._asked.add((number, answer.worker))
        for value in answer.data:
            if value not in places:
                raise InputError(f"{self._called(number)}: a file of it has changed; run it again")
            if (answer.worker, value) in self._sent:  # else another work had it sent
                continue
            data = files.read_bytes(places[value])
            arrived = self._client.run(
                _keep, value, parts.files[value], data, workers=[answer.worker], on_error="return"
            )
            for why in arrived.values():
                if isinstance(why, str) and why:  # an exception: the worker was lost meanwhile
                    raise InputError(f"worker {answer.worker} of {self._scheduler}: {why}")
            self._sent.add((answer.worker, value))
        self._submit(number, answer.worker)

    def _look(self) -> None:
        """See whether there is anybody who could answer, and ask again for what was lost or late.

        Raises
        ------
        InputError
        """
        try:
            workers = len(self._client.nthreads()) if self._client.status == "running" else None
        except (OSError, TimeoutError):
            workers = None
        if workers is None:
            raise InputError(f"{self._scheduler}: the scheduler is gone; {self._left()}")
        late, self._late = self._late, []
        for number in late:
            self._done.put(number)
        if workers:
            self._workerless = None
            return
        since = self._workerless = self._workerless or time.monotonic()
        if time.monotonic() - since >= WORKERLESS_SECONDS:
            mend = f"start 'dask worker {self._scheduler} --nthreads 1'"
            raise InputError(f"{self._scheduler}: the scheduler has no worker left; {mend}; {self._left()}")

    def _left(self) -> str:
        """Say what is not finished."""
        numbers = sorted([*self._futures, *self._suspects])
        names = ", ".join(self._called(number) for number in numbers[:_NAMED])
        return f"unfinished: {names}" + (f" and {len(numbers) - _NAMED} more" if numbers[_NAMED:] else "")

    def _called(self, number: int) -> str:
        work = self._works[number]
        name = getattr(work, "id", None) or getattr(work, "name", None) or work
        return f"work {number} ({quoted(name)})"


_ONE = threading.Lock()
"""Held while a work is done: the model and the notebooks' machinery are made for one a process."""


def _serve(side: Side, parts: Parcel) -> tuple[str, str, bytes]:
    """Do a work, on a worker; return the fields of an :class:`_Answer`, its data pickled."""
    import cloudpickle
    from distributed import get_worker

    worker = get_worker()
    with _ONE:
        kind, data = _do(side, parts, Path(worker.local_directory, _STORE))
        try:
            text = cloudpickle.dumps(data)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            lost = RuntimeError(f"what a worker has found cannot be sent: {error!r}")
            kind, text = "error", pickle.dumps(lost)
    return kind, worker.address, text


def _do(side: Side, parts: Parcel, store: Path) -> tuple[str, Any]:
    try:
        difference = side.differs(parcel.side())
        if difference:
            return "refused", f"{difference}; check out the same commit on both, and start the worker anew"
        places, lacking = parcel.find(parts, store)
        if lacking:
            return "lacks", lacking
        function, work = parcel.opened(parts, places)
        return "result", function(work)
    except InputError as error:
        return "error", error
    except Exception as error:  # carried over and raised by whoever asked
        error.add_note(f"on a worker:\n{traceback.format_exc()}")
        return "error", error


def _keep(value: str, name: str, data: bytes, dask_worker: Any = None) -> str:
    """Keep a file, on a worker; return what is wrong with it, or ""."""
    try:
        parcel.keep(Path(dask_worker.local_directory, _STORE), value, name, data)
    except InputError as error:
        return str(error)
    return ""
