"""The progress bar: what it counts, when it is hidden, and that nothing is left open."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from mmulab.cli.progress import progress


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
