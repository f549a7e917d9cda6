"""The progress bar: what it counts, when it is hidden, and that nothing is left open."""

from __future__ import annotations

import importlib
import io
import threading
from collections.abc import Generator
from types import ModuleType

import click
import pytest

from mmulab.cli.doctor import GROUPS
from mmulab.cli.main import LazyGroup
from mmulab.cli.progress import progress, working
from mmulab.errors import InputError


class Numbers:
    """Yields numbers, and notes that it was closed."""

    closed = False

    def upto(self, end: int) -> Generator[int, None, None]:
        try:
            yield from range(end)
        finally:
            self.closed = True


def test_items_come_as_they_are_and_are_closed() -> None:
    numbers = Numbers()
    assert list(progress(numbers.upto(4), 4, "case")) == [0, 1, 2, 3]
    assert numbers.closed


def test_whoever_stops_early_closes_them() -> None:
    numbers = Numbers()
    shown = progress(numbers.upto(4), 4, "case")
    assert next(iter(shown)) == 0
    assert not numbers.closed
    del shown
    assert numbers.closed


@pytest.mark.parametrize(("terminal", "show"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_there_only_if_someone_sees_it(
    terminal: bool, show: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    list(progress(Numbers().upto(2), 2, "scenario", desc="6.12", show=show))
    assert ("6.12" in capsys.readouterr().err) == (terminal and show)


class Screen(io.StringIO):
    """A terminal that notes when something stands on it."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.shown.set()
        return super().write(text)


def test_what_takes_long_is_said_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("mmulab.cli.progress.PATIENCE", 0)
    with working("run case"):
        assert screen.shown.wait(60)
    assert screen.getvalue().startswith("\rrun case: 0 s")
    assert screen.getvalue().endswith("\r\x1b[K")


def test_what_is_done_soon_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("mmulab.cli.progress.PATIENCE", 3600)
    with working("run case"):
        pass
    assert screen.getvalue() == ""


def test_without_a_terminal_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mmulab.cli.progress.PATIENCE", 0)
    before = threading.active_count()
    with working("run case"):
        assert threading.active_count() == before
    assert capsys.readouterr().err == ""


def test_a_command_that_takes_long_to_load_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    load = importlib.import_module

    def slowly(name: str) -> ModuleType:
        assert screen.shown.wait(60)
        return load(name)

    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("mmulab.cli.progress.PATIENCE", 0)
    monkeypatch.setattr("mmulab.cli.main.importlib.import_module", slowly)
    command = LazyGroup().get_command(click.Context(LazyGroup()), "kernels")
    assert command is not None
    assert command.name == "kernels"
    assert screen.getvalue().startswith("\rmmulab kernels: 0 s")
    assert screen.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("command", "slow"),
    [
        (["results", "out"], "mmulab.cli.results.asked.listing"),
        (["translate", "--json", "x.npz"], "mmulab.cli.translate.translate_files"),
        (["bench"], "mmulab.cli.bench.bench_walk"),
        (["features"], "mmulab.cli.features.table"),
        (["doctor", "python"], "mmulab.cli.doctor.install.python"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_counted_is_timed(
    command: list[str], slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits until its line is on the screen, and is then cut off."""
    screen = Screen()

    def waits(*args: object, **options: object) -> None:
        assert screen.shown.wait(60)
        raise InputError("seen")

    loaded = LazyGroup().get_command(click.Context(LazyGroup()), command[0])
    assert loaded is not None
    monkeypatch.setattr(slow, waits)
    monkeypatch.setitem(GROUPS, "python", GROUPS["python"]._replace(look=waits))
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("mmulab.cli.progress.PATIENCE", 0)
    with pytest.raises(InputError, match="seen"):
        loaded.main(command[1:], standalone_mode=False)
    assert screen.getvalue().startswith(f"\r{command[0]}")
