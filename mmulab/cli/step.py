"""``mmulab step``: walk through a recorded run in a terminal, or put it on a page."""

from __future__ import annotations

import sys

import click

from mmulab.check.failure import FAILURES
from mmulab.check.judged import record_judged
from mmulab.cli.complete import complete_works
from mmulab.cli.options import KernelChoice, kernel_options
from mmulab.cli.progress import working
from mmulab.cli.step_keys import Keyboard
from mmulab.cli.step_orders import QUIT, Orders, hexadecimal
from mmulab.cli.step_screen import Screen, can_draw, has_colour
from mmulab.cli.work import on_kernel, read_work
from mmulab.errors import InputError
from mmulab.ftrace.writer import format_recording
from mmulab.kvm.kernels import find_kernel
from mmulab.kvm.roles.find import find_design
from mmulab.lab.cases.run import failure_str
from mmulab.trace.file import SUFFIX, is_own, open_recording, save
from mmulab.trace.recording import Recording
from mmulab.widgets.blocks import panels_text
from mmulab.widgets.session import Session


@click.command()
@click.argument("file", metavar="FILE", shell_complete=complete_works)
@click.option("--at", type=int, metavar="N", help="Begin, or open the page, at moment N.")
@click.option("--wrong", is_flag=True, help="Say what goes wrong first, and begin or open the page there.")
@click.option("--follow", metavar="GVA", help="Follow this guest-virtual address (hexadecimal).")
@kernel_options
@click.option("--page", metavar="OUT", help="Write a page that steps in any browser, and end.")
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
    → ←  next, previous event (n p)    f F  fault       o O  operation    w W  wrong access
    ↓ ↑  scroll                        /    search      g    go to        h    help    q  quit

    A scenario, a case, and the scenario of a real kernel's recording, is run first. When keys do not
    come from a terminal, each line is a key and what belongs to it. NO_COLOR=1 leaves colours out.
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
        with working(f"step {file}: draw {page}"):
            write_stepper_page(recording, page, title=title, first=first, last=last, at=at)
    if ftrace:
        for line in format_recording(recording):
            click.echo(line)
    if page is None and save_as is None and not ftrace:
        address = None if follow is None else hexadecimal(follow)
        _step(Session(recording, at=at or 0, address=address))


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


def _step(session: Session) -> None:
    orders = Orders(session)
    if not can_draw():
        _Lines(orders).run()
        return
    with Keyboard(sys.stdin.fileno()) as keyboard:
        Screen(orders, keyboard, colour=has_colour()).run()
    click.echo(f"[moment {session.at} of {session.last}]")


class _Lines:
    """A session driven by lines: each begins with a key, the words that belong to it behind."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def run(self) -> None:
        """Obey lines until one of them ends it."""
        self._show("h: help")
        for line in filter(None, map(str.strip, sys.stdin)):
            if line[0] in QUIT:
                return
            try:
                self._show(self._orders.obey(line[0], line[1:].strip()))
            except InputError as error:
                click.echo(f"mmulab: {error}")

    def _show(self, message: str) -> None:
        session = self._orders.session
        click.echo(panels_text(session.panels()))
        click.echo(f"[moment {session.at} of {session.last}] {message}".rstrip())
