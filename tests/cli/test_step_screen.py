"""``mmulab step`` on a terminal: keys, the screen drawn anew, and what is left behind."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import pytest

from mmulab.cli.step_keys import keys_of
from mmulab.cli.step_screen import THREE, TWO, screen_lines
from mmulab.scenario.record import record
from mmulab.scenario.text import read_scenario
from mmulab.trace.file import save
from mmulab.trace.recording import Recording
from mmulab.trace.search import Grain, find, step
from mmulab.widgets.bitfield import Cell
from mmulab.widgets.blocks import MARK, Line, Panel, Strip, Table
from mmulab.widgets.session import Session

ROOT = Path(__file__).parents[2]
FIRST_FAULT = ROOT / "tests/scenario/examples/first_fault.mmu"
DEADLINE = 120.0
"""Seconds after which a text that was expected is missed, on a busy machine too."""
RIGHT, LEFT, HOME, END, PAGE_DOWN = "\x1b[C", "\x1b[D", "\x1b[H", "\x1b[F", "\x1b[6~"
OWN = """
import os
os.close(os.open(os.ttyname(0), os.O_RDWR))
from mmulab.cli.main import main
main()
"""
"""Begins a session of its own with its terminal, so that Ctrl-C and Ctrl-Z are its own too."""
COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Terminal:
    """``mmulab step`` at the other end of a terminal."""

    def __init__(self, file: Path, *, columns: int = 100, lines: int = 60, **environ: str) -> None:
        self._mine, end = os.openpty()
        termios.tcsetwinsize(end, (lines, columns))
        self.was = termios.tcgetattr(end)
        command = [sys.executable, "-c", OWN, "step", str(file)]
        kept = {key: word for key, word in os.environ.items() if key not in ("NO_COLOR", "LINES", "COLUMNS")}
        self._end = end
        self.process = subprocess.Popen(
            command,
            stdin=end,
            stdout=end,
            stderr=end,
            cwd=ROOT,
            env={**kept, "TERM": "xterm", **environ},
            start_new_session=True,
        )
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)
        os.close(self._mine)

    def press(self, keys: str) -> None:
        os.write(self._mine, keys.encode())

    def until(self, text: str) -> str:
        """Read until `text` comes, and return what came since the last call, up to it."""
        deadline = time.monotonic() + DEADLINE
        while text not in self.seen:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self._mine], [], [], left)[0]:
                pytest.fail(f"{text!r} was not printed; the last was {self.seen[-400:]!r}")
            self.seen += os.read(self._mine, 10_000).decode("utf-8", "replace")
        found, _, self.seen = self.seen.partition(text)
        return found + text

    def screen(self, number: int) -> str:
        """Return the screen that shows a moment, from its upper left corner to the moment's number."""
        return self.until(f"[moment {number} of ").rpartition("\x1b[H")[2]

    def resize(self, lines: int, columns: int) -> None:
        termios.tcsetwinsize(self._end, (lines, columns))
        self.process.send_signal(signal.SIGWINCH)

    def ends(self) -> int:
        """Wait for the end, with the terminal as it was, and return the exit code."""
        code = self.process.wait(DEADLINE)
        assert termios.tcgetattr(self._end) == self.was
        return code


Open = Callable[..., Terminal]


@pytest.fixture(scope="module")
def recording() -> Recording:
    return record(read_scenario(FIRST_FAULT))


@pytest.fixture
def terminal(recording: Recording, tmp_path: Path) -> Iterator[Open]:
    """Open a terminal on a recording, which needs no run."""
    save(recording, tmp_path / "a.mmr")
    opened: list[Terminal] = []

    def open_terminal(**options: object) -> Terminal:
        opened.append(Terminal(tmp_path / "a.mmr", **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.__exit__(None, None, None)


def test_arrow_keys_step_and_the_screen_is_drawn_anew(terminal: Open, recording: Recording) -> None:
    opened = terminal()
    opened.screen(0)
    for keys, number in [
        (RIGHT, 1),
        (RIGHT + RIGHT, 3),
        (LEFT, 2),
        ("\x1bOC", 3),
        (END, len(recording) - 1),
        (HOME, 0),
        ("f", step(recording, 0, Grain.FAULT)),
    ]:
        opened.press(keys)
        shown = opened.screen(number)
        assert shown.count("\n") == 59
        event = Session(recording, at=number).look().moment.event
        assert (f"event {event}" if event is not None else "the end of the op") in shown
    opened.press("q")
    assert "\x1b[?1049l" in opened.until(f"[moment {step(recording, 0, Grain.FAULT)} of ")
    assert opened.ends() == 0


def test_words_are_typed_on_the_last_line(terminal: Open, recording: Recording) -> None:
    opened = terminal()
    opened.screen(0)
    (number, *_) = find(recording, "event", "kvm_page_fault").tolist()
    opened.press("/event kvmm\x7f_page_fault\r")
    opened.until("search: event kvm_page_fault")
    opened.screen(number)
    opened.press("g\x1b")  # Esc, and what follows is a key of its own
    opened.until("moment: ")
    opened.press("p")
    opened.screen(number - 1)
    opened.press("/nothing\r")
    opened.until("mmulab: search 'nothing' is unknown")
    opened.press("h")
    opened.until("WHAT is one of: unsync")


def test_ctrl_c_gives_the_terminal_back(terminal: Open) -> None:
    opened = terminal()
    opened.screen(0)
    opened.press("\x03")
    assert "\x1b[?1049l" in opened.until("interrupted")
    assert opened.ends() == 130


def test_suspended_and_gone_on_with(terminal: Open) -> None:
    opened = terminal()
    opened.screen(0)
    opened.press(RIGHT + "\x1a")
    opened.until("\x1b[?1049l")
    # A process without a shell above it is not stopped, and goes on at once.
    opened.until("\x1b[?1049h")
    opened.screen(1)
    opened.press("q")
    assert opened.ends() == 0


def test_small_window_scrolls_and_a_resized_one_is_drawn_anew(terminal: Open) -> None:
    opened = terminal(lines=12, columns=80)
    shown = opened.screen(0) + opened.until(" more")
    assert shown.count("\n") == 11
    assert "op -1" in shown
    opened.press(PAGE_DOWN)
    assert "op -1" not in opened.screen(0)
    opened.resize(40, 80)
    shown = opened.screen(0)
    assert shown.count("\n") == 39
    assert "op -1" in shown


@pytest.mark.parametrize(
    ("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)]
)
def test_colour_where_it_is_wanted(terminal: Open, environ: dict[str, str], coloured: bool) -> None:
    assert bool(COLOUR.search(terminal(**environ).screen(0))) == coloured


def test_dumb_terminal_takes_lines_and_has_no_colour(terminal: Open) -> None:
    opened = terminal(TERM="dumb")
    opened.until("[moment 0 of ")
    opened.press("n\n")
    assert "\x1b" not in opened.until("[moment 1 of ")
    opened.press("q\n")
    assert opened.ends() == 0


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("n\x1b[C\x1bOD\r", ["n", "right", "left", "\n"]),
        ("\x1b[5~\x1b[6~\x1b[1~\x1b[4~", ["pgup", "pgdn", "home", "end"]),
        ("\x1b", ["\x1b"]),
        ("\x1b[1;5C", ["\x1b[1;5C"]),
    ],
)
def test_keys_have_names(sent: str, keys: list[str]) -> None:
    assert keys_of(sent) == keys


PANELS = [
    Panel("moment", [Line("it is wrong", marked=True), Line("kvm_exit: x", code=True)], wide=True),
    Panel("left", [Table(("one", "two"), [["1", "2"], ["3", "4"]], [1])], column=1),
    Panel("middle", [Strip("word", [Cell("W", "1", "1", True, "0"), Cell("P", "1", "0", True)])], column=2),
    Panel("right", [Line("state " * 40)], column=3),
]


def test_columns_where_there_is_room() -> None:
    narrow = screen_lines(PANELS, 60)
    assert [line for line in narrow if line.startswith("──")] == [f"── {panel.title}" for panel in PANELS]
    assert max(map(len, narrow)) <= 60
    (heads,) = [line for line in screen_lines(PANELS, TWO) if "left" in line]
    assert heads.split() == ["──", "left", "──", "middle"]
    wide = screen_lines(PANELS, THREE)
    (heads,) = [line for line in wide if "left" in line]
    assert heads.split() == ["──", "left", "──", "middle", "──", "right"]
    assert max(map(len, wide)) <= THREE
    assert " ".join(wide).count("state") == 40


@pytest.mark.parametrize("width", [60, TWO, THREE])
def test_colours_leave_the_text_as_it_is(width: int) -> None:
    plain, coloured = screen_lines(PANELS, width), screen_lines(PANELS, width, colour=True)
    assert [COLOUR.sub("", line).rstrip() for line in coloured] == plain
    text = "\n".join(coloured)
    assert f"\x1b[31;1m   {MARK} it is wrong\x1b[0m" in text
    assert f"\x1b[33;1m   {MARK} 3    4\x1b[0m" in text
    assert f"\x1b[33;1m({MARK} was 0)\x1b[0m" in text
