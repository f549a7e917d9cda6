"""Signals on the command line: raised where the command is, or held off to the end of what must be whole."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from mmulab.cli import signals


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [(number, signal.getsignal(number)) for number in handled]
    hook = sys.unraisablehook
    for number in handled:
        signal.signal(number, signal.SIG_DFL)  # tests may run in the background, where SIGINT is ignored
    signals.install()
    signals._State.came = None
    yield
    signals._State.came = None
    sys.unraisablehook = hook
    for number, handler in before:
        signal.signal(number, handler)


def test_sigterm_is_an_interrupt_of_its_own_kind() -> None:
    with pytest.raises(signals.Terminated):
        signal.raise_signal(signal.SIGTERM)


def test_ctrl_c_is_pythons() -> None:
    with pytest.raises(KeyboardInterrupt) as found:
        signal.raise_signal(signal.SIGINT)
    assert type(found.value) is KeyboardInterrupt


def test_one_that_comes_again_at_once_is_the_same() -> None:
    """As timeout(1) sends it: to the process, and to its group."""
    with pytest.raises(signals.Terminated):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


def test_held_off_until_the_end_of_the_block() -> None:
    passed = []

    def whole() -> None:
        with signals.held() as asked:
            with signals.held():
                passed.append(asked())
                signal.raise_signal(signal.SIGTERM)
            passed.append(asked())

    with pytest.raises(signals.Terminated):
        whole()
    assert passed == [False, True]
    with signals.held() as asked:
        assert not asked()


def test_an_impatient_second_one_is_not_held_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME", 0.0)

    def whole() -> None:
        with signals.held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the block went on")

    with pytest.raises(KeyboardInterrupt):
        whole()


def test_one_that_comes_in_a_destructor_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def dropping() -> None:
        Interrupted()
        while True:  # where it comes out
            pass

    with pytest.raises(signals.Terminated):
        dropping()
    assert capsys.readouterr().err == ""


def test_what_the_block_says_goes_before_the_signal() -> None:
    def failing() -> None:
        with signals.held():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    with signals.held() as asked:
        assert not asked()


def test_passed_over_at_the_end() -> None:
    signals.ignore()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)


def test_a_background_job_is_not_interrupted() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals.install()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(signals.Terminated):
        signal.raise_signal(signal.SIGTERM)
