"""``mmulab check``: search a kernel or a design for the shortest sequence that goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from mmulab.check.guests import GUESTS
from mmulab.check.hunt import Hunted, Job, Trouble, places
from mmulab.check.scopes import MAKERS, find_scope
from mmulab.cli import signals
from mmulab.cli.options import SCHEDULER, KernelChoice, kernel_options, workers
from mmulab.errors import InputError
from mmulab.kvm.bugs import BUGS, find_bug
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.lab.hunts import (
    ALL,
    Shared,
    file_name,
    hunt_each,
    merged,
    right_of,
    shared_out,
    with_bugs,
)
from mmulab.pool import Jobs, width
from mmulab.scenario.text import format_scenario

TICK = 0.2
"""Seconds between two looks at an interrupt, and two strokes of the progress bar."""
INDENT = " " * 6


@click.command()
@kernel_options
@click.option("--bug", "bugs", metavar="ID,..", help="Undo these bugs' fixes, one at a time, or 'all'.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time on the clock for each kernel.",
)
@click.option(
    "--scope", "scopes", metavar="NAME,..", default="*", show_default=True, help="Scopes and guests."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random searches.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@SCHEDULER
@click.option("--out", metavar="FOLDER", help="Write each finding's scenario there as soon as it is minimal.")
@click.option("--list", "listed", is_flag=True, help="Show the scopes and guests, and search nothing.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a kernel.")
@click.pass_context
def check(
    ctx: click.Context,
    choice: KernelChoice,
    bugs: str | None,
    budget: float,
    scopes: str,
    seed: int,
    jobs: int,
    scheduler: str | None,
    out: str | None,
    listed: bool,
    as_json: bool,
) -> None:
    """Search for the shortest sequence of operations that goes wrong, and show it as a scenario.

    It tries a scope whole, up to its depth, and a guest at random; --list names them, and '*' in a name
    stands for anything. What Linux itself does wrong is known, and does not count as a finding of a bug
    or a design. Each finding is made minimal; 'run' and 'step' take its file. The exit code is 1 if
    anything was found; with --bug, if a bug was not found. Ctrl-C ends the search and shows what was
    found so far; with --scheduler, only of the kernels whose search is over.
    """
    names = places(scopes.split(","))
    if listed:
        for line in _places(names):
            click.echo(line)
        return
    kernel = choice.over(LINUX_6_1)
    job = Job(kernel, right_of(kernel), names, seed, budget, ALL)
    folder = None if out is None else Path(out)
    wanted = [] if bugs is None else _switches(bugs)
    by = workers(jobs, scheduler)
    work = with_bugs(kernel, wanted, job) if wanted else shared_out(job, width(by))
    hunted: list[Hunted] = []

    def show() -> None:
        whole = hunted if wanted else [merged(hunted)] if hunted else []
        if not wanted:
            _show(whole, folder, as_json)
        if not as_json:
            click.echo(_summary(whole, len(wanted) or 1))

    with signals.shown(show):
        for one in _interruptible(work, by, folder):
            hunted.append(one)
            if wanted:
                _show([one], folder, as_json)
    found = sum(bool(one.found) for one in hunted)
    if found < len(wanted) if wanted else found:
        ctx.exit(1)


def _summary(hunted: Sequence[Hunted], many: int) -> str:
    found = sum(bool(one.found) for one in hunted)
    states, clean = sum(one.states for one in hunted), sum(len(one.free) for one in hunted)
    return f"check: found {found} of {many}, {states} states, clean {clean}"


def _switches(bugs: str) -> list[str]:
    if bugs == "all":
        return [bug.id for bug in BUGS.values() if bug.has_switch]
    wanted = [find_bug(name) for name in bugs.split(",")]
    for bug in wanted:
        if not bug.has_switch:
            raise InputError(f"bug {bug.id} has no switch: {bug.missing}")
    return [bug.id for bug in wanted]


def _places(names: Sequence[str]) -> Iterator[str]:
    for name in sorted(name for name in names if name in MAKERS):
        scope = find_scope(name)
        yield f"scope {name:28} {len(scope.ops):2} ops to depth {scope.depth}: {scope.about}"
    for name in sorted(name for name in names if name in GUESTS):
        yield f"guest {name:28} {GUESTS[name]}"


def _interruptible(work: Sequence[Job], jobs: Jobs, out: Path | None) -> Iterator[Hunted]:
    """Yield what came of each job; an interrupt lets all of them end, and is raised when that is shown.

    On other machines they only end, and it is raised at once.
    """
    shared, ended = Shared(), 0
    hunts = hunt_each(work, jobs, shared, out)
    holding = signals.held() if isinstance(jobs, int) else nullcontext(lambda: False)
    with holding as came, _watched(came, shared, lambda: f"{ended}/{len(work)}"), closing(hunts):
        for ended, one in enumerate(hunts, 1):  # noqa: B007 - the bar shows it
            yield one


@contextmanager
def _watched(came: Callable[[], bool], shared: Shared, ended: Callable[[], str]) -> Iterator[None]:
    """Pass an interrupt on to the searches, and show how far they are, as long as they run."""
    from tqdm import tqdm

    done = threading.Event()

    def watch() -> None:
        with tqdm(desc="check", unit=" states", leave=False, disable=None) as bar:
            while not done.wait(TICK):
                if came():
                    shared.end()
                bar.set_postfix(ops=shared.ops, ended=ended(), refresh=False)
                bar.update(shared.states - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(hunted: Sequence[Hunted], out: Path | None, as_json: bool) -> None:
    for one in hunted:
        for line in [json.dumps(_record(one))] if as_json else _lines(one, out):
            click.echo(line)


def _lines(hunted: Hunted, out: Path | None) -> Iterator[str]:
    name = hunted.job.kernel.name
    for trouble in hunted.found:
        many = len(trouble.scenario.steps)
        where = f"{trouble.place}, {trouble.seconds:.1f} s, {many} of {trouble.steps} ops"
        yield f"{name}: {trouble.finding} ({where})"
        if out is not None:
            yield f"{INDENT}mmulab step --wrong {out / file_name(hunted.job, trouble)}"
        else:
            yield from (f"{INDENT}{line}" for line in format_scenario(trouble.scenario).splitlines())
    if hunted.job.most == ALL:  # of a bug's switch it matters only whether it was found
        yield from (f"{name}: {place} free {how_far}" for place, how_far in hunted.free.items())
    if not hunted.found:
        ended = "interrupted" if hunted.interrupted else "nothing found"
        yield f"{name}: {ended}: {hunted.states} states, {hunted.ops} random ops"
    if hunted.refused:
        yield f"{INDENT}passed over {hunted.refused} times: an op that is not modelled where it stands"
    for deviation, times in sorted(hunted.deviations.items()):
        yield f"{INDENT}passed over {times} times, known of Linux 6.1.192: {deviation}"
    for (kind, known), times in sorted(hunted.known.items()):
        yield f"{INDENT}{kind} {known}: {times} times, as the kernel without the change"


def _record(hunted: Hunted) -> dict[str, Any]:
    return {
        "kernel": hunted.job.kernel.name,
        "found": [_found(trouble) for trouble in hunted.found],
        "states": hunted.states,
        "ops": hunted.ops,
        "free": hunted.free,
        "known": [{"kind": kind, "name": name, "times": n} for (kind, name), n in hunted.known.items()],
        "not_modelled": hunted.refused,
        "passed_over": dict(sorted(hunted.deviations.items())),
        "interrupted": hunted.interrupted,
    }


def _found(trouble: Trouble) -> dict[str, Any]:
    finding = trouble.finding
    return {
        "kind": finding.kind.value,
        "name": finding.name,
        "op": finding.op,
        "text": finding.text,
        "said": finding.said,
        "place": trouble.place,
        "ops": len(trouble.scenario.steps),
        "seconds": round(trouble.seconds, 1),
        "cpu_seconds": round(trouble.cpu_seconds, 1),
        "scenario": format_scenario(trouble.scenario).splitlines(),
    }
