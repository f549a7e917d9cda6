"""Workers: results in order, errors of theirs here, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing

import pytest

from mmulab import pool
from mmulab.errors import InputError


def power(number: int) -> tuple[int, int]:
    if number < 0:
        raise InputError(f"{number}: negative")
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2, os.getpid()


@pytest.mark.parametrize("jobs", [1, 2, 5, 100])
def test_results_come_in_order(jobs: int) -> None:
    results = list(pool.each(power, range(10), jobs))
    assert [square for square, _ in results] == [number**2 for number in range(10)]
    assert (os.getpid() in {process for _, process in results}) == (jobs == 1)
    assert multiprocessing.active_children() == []


def test_no_work_needs_no_worker() -> None:
    assert list(pool.each(power, [], 4)) == []


@pytest.mark.parametrize(
    ("work", "said"),
    [(-3, "^-3: negative$"), (13, r"a worker died: killed by signal 9 \(SIGKILL\); if memory .* --jobs$")],
)
def test_an_error_comes_in_its_turn_and_ends_all(work: int, said: str) -> None:
    results = []
    with pytest.raises(InputError, match=said):
        results.extend(square for square, _ in pool.each(power, [1, work, 2, 3], 2))
    assert results == [1]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("jobs", [1, 2, 100])
def test_a_work_that_its_worker_dies_of_is_lost_alone(jobs: int) -> None:
    def lost(work: int, error: pool.WorkerError) -> tuple[int, int]:
        said.append((work, str(error)))
        return -work, 0

    said: list[tuple[int, str]] = []
    works = [13, 1, 2, -4, 13, 3, 13]
    results = [one for one, _ in pool.each(mortal, works, jobs, lost=lost)]
    assert results == [-13, 1, 4, 4, -13, 9, -13]
    cause = "killed by signal 9 (SIGKILL); if memory ran out, run it again with fewer --jobs"
    assert (
        sorted(said)
        == [(-4, "a worker died: it left with exit code 5")] + [(13, f"a worker died: {cause}")] * 3
    )
    assert multiprocessing.active_children() == []


def mortal(number: int) -> tuple[int, int]:
    """Return a square; end the process with an exit code at a negative number."""
    if number < 0:
        os._exit(5)
    return power(number)


def test_whoever_stops_early_leaves_no_worker() -> None:
    with closing(pool.each(power, range(100), 2)) as results:
        assert next(results)[0] == 0
        assert len(multiprocessing.active_children()) == 2
    assert multiprocessing.active_children() == []


def test_a_bug_in_a_worker_says_where() -> None:
    with pytest.raises(TypeError) as found:
        list(pool.each(power, [1, "two"], 2))  # type: ignore[list-item]
    assert "in power" in "".join(found.value.__notes__)


def test_a_result_that_cannot_be_sent_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"cannot be sent: .*lambda"):
        list(pool.each(lambda number: lambda: number, [1, 2], 2))


def endless_first(number: int) -> int:
    """Go on for ever with 0, and interrupt the parent at 3, when 1 and 2 are finished."""
    if number == 3:
        os.kill(os.getppid(), signal.SIGINT)
    while number in (0, 3):
        pass
    return number


def test_interrupted_it_gives_what_is_finished_ahead_of_its_turn() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    results = []

    def collect() -> None:
        for number in pool.each(endless_first, range(5), 2):
            results.append(number)  # each as it comes: the iteration ends with an exception

    try:
        with pytest.raises(KeyboardInterrupt):
            collect()
    finally:
        signal.signal(signal.SIGINT, before)
    assert results == [1, 2]
    assert multiprocessing.active_children() == []


ENDLESS = """
import os
from pathlib import Path
from mmulab import pool

def work(number):
    os.write(1, b"%d\\n" % os.getpid())  # one write: three workers share the pipe
    while True:
        pass

list(pool.each(work, range(3), 3))
"""


def test_workers_leave_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            workers = {int(parent.stdout.readline()) for _ in range(3)}
        finally:
            parent.kill()
        assert len(workers) == 3
        assert parent.stdout.read() == ""  # the end of it: no worker has it open any more
