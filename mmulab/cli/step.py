"""``mmulab step``: walk through a recorded run in a terminal, or put it on a page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import click

from mmulab.check.failure import FAILURES
from mmulab.check.judged import record_judged
from mmulab.cli.complete import complete_works
from mmulab.cli.options import KernelChoice, kernel_options
from mmulab.cli.progress import working
from mmulab.cli.work import on_kernel, read_work
from mmulab.errors import InputError
from mmulab.ftrace.writer import format_recording
from mmulab.kvm.kernels import find_kernel
from mmulab.kvm.roles.find import find_design
from mmulab.lab.cases.run import failure_str
from mmulab.trace.file import SUFFIX, is_own, open_recording, save
from mmulab.trace.recording import Recording
from mmulab.trace.search import SEARCHES, Grain
from mmulab.widgets.blocks import panels_text
from mmulab.widgets.session import Session

HELP = """\
n p  next, previous event       f F  next, previous fault     o O  next, previous operation
/    search: WHAT [ARGUMENT]    s S  again: next, previous    g    go to moment N
a    follow a gva (none: as it comes)                         h    this help         q  quit
WHAT is one of: """ + ", ".join(
    f"{name} {search.argument.upper()}".strip() for name, search in SEARCHES.items()
)
_STEPS = {
    "n": (Grain.EVENT, False),
    "p": (Grain.EVENT, True),
    "f": (Grain.FAULT, False),
    "F": (Grain.FAULT, True),
    "o": (Grain.OPERATION, False),
    "O": (Grain.OPERATION, True),
}
_ASK = {"/": "search", "g": "moment", "a": "gva"}
"""Keys that want words behind them."""


@click.command()
@click.argument("file", metavar="FILE", shell_complete=complete_works)
@click.option("--at", type=int, metavar="N", help="Begin, or open the page, at moment N.")
@click.option("--wrong", is_flag=True, help="Say what goes wrong first, and begin or open the page there.")
@click.option("--follow", metavar="GVA", help="Follow this guest-virtual address (hexadecimal).")
@kernel_options
@click.option("--page", metavar="OUT", help="Write a page that steps with no kernel, and end.")
@click.option(
    "--part", type=(int, int), metavar="FIRST LAST", help="Moments that the page has; all if left out."
)
@click.option("--save", "save_as", metavar="OUT", help=f"Write the recording as a {SUFFIX} file, and end.")
@click.option("--ftrace", is_flag=True, help="Print the events as the kernel's trace would, and end.")
def step(
    file: str,
    at: int | None,
    wrong: bool,
    follow: str | None,
    choice: KernelChoice,
    page: str | None,
    part: tuple[int, int] | None,
    save_as: str | None,
    ftrace: bool,
) -> None:
    """Step through FILE: a recording (.mmr), a scenario, a case by its name, or a real kernel's recording.

    \b
    n p  next, previous event       f F  fault       o O  operation
    /    search                     g    go to       h    help        q  quit

    A scenario, a case, and the scenario of a real kernel's recording, is run first. When keys do not
    come from a terminal, each line is a key and what belongs to it.
    """
    if part is not None and page is None:
        raise InputError(f"--part {part[0]} {part[1]} belongs to a page; name one with --page")
    if wrong and at is not None:
        raise InputError("--wrong and --at both say where to begin; leave one out")
    if wrong:
        recording, at = _first_wrong(file, choice)
    else:
        recording = _recording(file, choice)
    if save_as is not None:
        save(recording, save_as)
    if page is not None:
        from mmulab.widgets.stepper_page import write_stepper_page

        first, last = part or (0, None)
        title = ", ".join([file, *choice.told()])
        write_stepper_page(recording, page, title=title, first=first, last=last, at=at)
    if ftrace:
        for line in format_recording(recording):
            click.echo(line)
    if page is None and save_as is None and not ftrace:
        address = None if follow is None else _hexadecimal(follow)
        session = Session(recording, at=at or 0, address=address)
        _Terminal(session).run(_keys() if sys.stdin.isatty() else _lines())


def _recording(file: str, choice: KernelChoice) -> Recording:
    if file.endswith(SUFFIX):
        design = None if choice.design is None else find_design(choice.design)
        if choice._replace(design=None).given or (design is not None and not is_own(design)):
            raise InputError(f"{file}: a recording has its kernel; give --kernel or --design with a scenario")
        return open_recording(file, designs=None if design is None else {design.name: design})
    scenario = on_kernel(read_work(file), choice)
    kernel = choice.over(find_kernel(scenario.header.kernel))
    try:
        with working(f"step {file}"):
            recording = record_judged(scenario, kernel=kernel)[0]
    except FAILURES as error:
        if isinstance(error, InputError | NotImplementedError):
            raise
        under = f"under {kernel.design.name}"
        raise InputError(f"{file}: {under}, {failure_str(error)}; see 'mmulab run'") from error
    if recording.verdicts:
        from mmulab.lab.designs.found_wrongly import mark_found_wrongly  # a second run, of few recordings

        mark_found_wrongly(recording, scenario, kernel)
    return recording


def _first_wrong(file: str, choice: KernelChoice) -> tuple[Recording, int]:
    if file.endswith(SUFFIX):
        raise InputError(f"{file}: a recording was not watched; give --wrong with its scenario")
    from mmulab.lab.first_wrong import first_wrong  # the searches' watchers, which no other step needs

    scenario = on_kernel(read_work(file), choice)
    kernel = choice.over(find_kernel(scenario.header.kernel))
    with working(f"step {file}"):
        recording, at, finding = first_wrong(scenario, kernel)
    click.echo(f"{file}: nothing goes wrong" if finding is None else f"{file}: {finding}", err=True)
    return recording, at


def _hexadecimal(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError as error:
        raise InputError(f"gva {text!r} is no hexadecimal number") from error


def _keys() -> Iterator[tuple[str, str]]:
    """Yield keys as they are pressed, with the words of those that want some."""
    while True:
        key = click.getchar()
        words = click.prompt(_ASK[key], default="", show_default=False) if key in _ASK else ""
        yield key, words


def _lines() -> Iterator[tuple[str, str]]:
    """Yield the keys that lines begin with, and the rest of the lines."""
    for line in sys.stdin:
        if line.strip():
            yield line.strip()[0], line.strip()[1:].strip()


class _Terminal:
    """A session driven by keys."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._searched: tuple[str, str] | None = None

    def run(self, keys: Iterator[tuple[str, str]]) -> None:
        """Obey keys until one of them ends it."""
        self._show("h: help")
        for key, words in keys:
            if key in ("q", "\x03", "\x04"):
                return
            try:
                self._show(self._obey(key, words))
            except InputError as error:
                click.echo(f"mmulab: {error}")

    def _obey(self, key: str, words: str) -> str:
        """Do what a key says and return a message."""
        if key in _STEPS:
            grain, back = _STEPS[key]
            self.session.step(grain, back=back)
            return ""
        obey = self._orders().get(key)
        return f"no such key: {key!r}; h: help" if obey is None else obey(words)

    def _orders(self) -> dict[str, Callable[[str], str]]:
        return {
            "/": self._search,
            "s": lambda words: self._again(back=False),
            "S": lambda words: self._again(back=True),
            "g": self._goto,
            "a": self._follow,
            "h": lambda words: HELP,
        }

    def _search(self, words: str) -> str:
        what, _, argument = words.strip().partition(" ")
        self._searched = (what, argument.strip())
        return self._again(back=False)

    def _again(self, *, back: bool) -> str:
        if self._searched is None:
            return "nothing was looked for yet: / first"
        arrived = self.session.find(*self._searched, back=back)
        return "" if arrived else f"none {'before' if back else 'after'} this moment"

    def _goto(self, words: str) -> str:
        if not words.isdecimal():
            raise InputError(f"moment {words!r} is no number")
        self.session.goto(int(words))
        return ""

    def _follow(self, words: str) -> str:
        self.session.address = _hexadecimal(words) if words else None
        return ""

    def _show(self, message: str) -> None:
        session = self.session
        if sys.stdout.isatty():
            click.clear()
        click.echo(panels_text(session.panels()))
        click.echo(f"[moment {session.at} of {session.last}] {message}".rstrip())
