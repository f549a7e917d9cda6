"""Deadlines: a call that never ends is ended, one that ends in time is left alone."""

from __future__ import annotations

import os
import threading

import pytest

from mmulab import deadline

SHORT = 0.2
LONG = 3600.0


def forever() -> None:
    while True:
        pass


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a thread that looks as often as this test's times need."""
    monkeypatch.setattr(deadline._State, "process", 0)


def test_what_the_call_gives_and_raises_comes_out() -> None:
    assert deadline.call(LONG, lambda a, b: a + b, 1, b=2) == 3
    with pytest.raises(ZeroDivisionError):
        deadline.call(LONG, lambda: 1 // 0)


def test_an_endless_call_is_ended_again_and_again() -> None:
    for _ in range(3):
        with pytest.raises(deadline.TooLong):
            deadline.call(SHORT, forever)
    assert deadline._State.ends == {}
    assert deadline._State.told == set()


def test_a_call_inside_shares_the_time() -> None:
    with pytest.raises(deadline.TooLong):
        deadline.call(SHORT, lambda: deadline.call(LONG, forever))


def test_catching_it_once_is_no_way_out() -> None:
    caught = []

    def stubborn() -> None:
        try:
            forever()
        except deadline.TooLong:
            caught.append(1)
            forever()

    with pytest.raises(deadline.TooLong):
        deadline.call(SHORT, stubborn)
    assert caught == [1]


def test_another_thread_is_not_meant() -> None:
    outcome: list[object] = []
    inside, leave = threading.Event(), threading.Event()

    def waits() -> None:
        inside.set()
        outcome.append(leave.wait())

    other = threading.Thread(target=deadline.call, args=(LONG, waits))
    other.start()
    inside.wait()
    with pytest.raises(deadline.TooLong):
        deadline.call(SHORT, forever)
    leave.set()
    other.join()
    assert outcome == [True]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_its_own_watch() -> None:
    deadline.call(SHORT, lambda: None)
    child = os.fork()
    if not child:
        try:
            deadline.call(SHORT, forever)
        except deadline.TooLong:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
