"""``mmulab diff``: two sets of recordings, or one and the model's run, and their differences by kind."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

import click

from mmulab.cli.diff_report import Report, Side, show_json, show_text
from mmulab.cli.each import each_answer
from mmulab.conform.classify import OTHER_THINGS, SCENARIO, Delta, How, Kind
from mmulab.conform.codec import EVENT_NAMES
from mmulab.conform.compare import Level
from mmulab.conform.couples import Couple, find_couples, find_set
from mmulab.conform.diff import Run, diff_headers, diff_runs, model_run, only, whole_scenario
from mmulab.conform.recording import KernelRecording, read_recording
from mmulab.conform.tally import Diff
from mmulab.errors import InputError, named, quoted
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.drift.causes import Causes, find_causes

MODEL = "model"
"""What stands for the second set where the model makes it."""
_GLOB = frozenset("*?[")


class _Job(NamedTuple):
    couple: Couple
    model: bool
    kernel: Kernel | None
    """The model's; None: the recorded one."""
    level: Level
    wanted: Callable[[Kind], bool]
    limit: int
    causes: bool


class _Answer(NamedTuple):
    couple: Couple
    diff: Diff
    kernels: tuple[str, str] | None = None
    causes: Causes | None = None


def _work(job: _Job) -> _Answer:
    """Compare one scenario."""
    name, first, second = job.couple
    if first is None or (second is None and not job.model):
        kind = (Kind(SCENARIO, How.ADDED if first is None else How.MISSING),)
        lone = whole_scenario(Delta(kind, *("" if path is None else str(path) for path in (first, second))))
        return _Answer(job.couple, Diff.of(name, 0, only([lone], job.wanted), job.limit))
    ours = read_recording(first)
    our_kernel = find_kernel(ours.scenario.header.kernel)
    if second is None:
        their_kernel = job.kernel or our_kernel
        run = model_run(ours, their_kernel)
        theirs = KernelRecording(f"{MODEL}:{their_kernel}", ours.scenario, run.ops)
    else:
        theirs = read_recording(second)
        their_kernel = find_kernel(theirs.scenario.header.kernel)
        run = Run.of(theirs)
    count, differ = diff_runs(Run.of(ours), run, job.level)
    starts = diff_headers(ours.scenario.header, theirs.scenario.header)
    differ = only([*([whole_scenario(*starts)] if starts else []), *differ], job.wanted)
    causes = None
    if job.causes:
        if our_kernel == their_kernel:
            raise InputError(f"{named(first)}: both sides have kernel {our_kernel}; leave --causes out")
        kernels = our_kernel, their_kernel
        causes = find_causes(name, theirs, differ, kernels, job.level, job.wanted, job.limit)
    diff = Diff.of(name, count, differ, job.limit)
    return _Answer(job.couple, diff, (str(our_kernel), str(their_kernel)), causes)


def _is_wanted(patterns: tuple[str, ...], kind: Kind) -> bool:
    return any(pattern in (kind.what, kind.how) or fnmatchcase(str(kind), pattern) for pattern in patterns)


def _wanted(patterns: tuple[str, ...]) -> Callable[[Kind], bool]:
    """Return which kinds count; without a pattern, all.

    Raises
    ------
    InputError
        A pattern can match no kind.
    """
    known = {*EVENT_NAMES, *OTHER_THINGS, *How}
    for pattern in patterns:
        first = pattern.split(" ")[0]
        if first not in known and not _GLOB & set(first):
            raise InputError(
                f"--only '{quoted(pattern)}': no kind begins so; a kind begins with an event's name in "
                f"recordings or {', '.join(OTHER_THINGS)}, and ends in {', '.join(How)}"
            )
    return partial(_is_wanted, patterns or ("*",))


def _couples(ours: str, theirs: str) -> tuple[list[Couple], bool, Kernel | None]:
    """Return what belongs together, whether the model runs the second set, and as which kernel."""
    if ours.partition(":")[0] == MODEL:
        raise InputError(f"A '{quoted(ours)}': the model runs the scenarios of recordings; name it as B")
    word, colon, kernel = theirs.partition(":")
    if word != MODEL:
        return find_couples(ours, theirs), False, None
    couples = [Couple(name, path, None) for name, path in sorted(find_set(ours).items())]
    return couples, True, find_kernel(kernel) if colon else None


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--level", type=click.Choice([str(level) for level in Level]), default="full", show_default=True
)
@click.option("--only", "patterns", metavar="KIND", multiple=True, help="Count this kind alone (repeatable).")
@click.option(
    "--limit", type=click.IntRange(0), default=1, show_default=True, help="Smallest examples of each kind."
)
@click.option("--causes", is_flag=True, help="Also which changes between the two kernels explain it.")
@click.option("--jobs", type=click.IntRange(1), default=None, help="Processes; all processors if left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.pass_context
def diff(
    ctx: click.Context,
    a: str,
    b: str,
    level: str,
    patterns: tuple[str, ...],
    limit: int,
    causes: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Compare two sets of recordings op for op and count their differences by kind.

    A and B are each a recording or a folder of them, whose files are matched by their paths in it. B may be
    'model', the model's run of A's scenarios as A's kernel, or 'model:KERNEL' ('mmulab kernels'). In B
    an event may be missing, added, moved or have another field; an outcome or a statistic may differ.
    An op after the first that differs may differ as a consequence; it counts too.

    --only takes a kind as printed, 'kvm_exit err other', or its first or last word, and '*' for anything.
    With --causes the model runs B's scenarios as B's kernel without each change since A's: the ops
    that then differ from B are those that the change explains. An op may need several changes.

    The exit code is 0 if nothing differs, 1 if something does, 2 in case of trouble.
    A file that is not a recording is named at the end; the others are compared.
    """
    wanted = _wanted(patterns)
    couples, model, kernel = _couples(a, b)
    work = [_Job(couple, model, kernel, Level(level), wanted, limit, causes) for couple in couples]

    def show(answers: list[_Answer], of: int) -> None:
        (show_json if as_json else show_text)(_report((a, b), level, limit, answers, of))

    answers = each_answer(_work, work, show, jobs=jobs, what="scenarios", bar=not as_json)
    ctx.exit(1 if any(answer.diff.scenarios_differ for answer in answers) else 0)


def _report(names: tuple[str, str], level: str, limit: int, answers: list[_Answer], of: int) -> Report:
    """Put the answers of all scenarios together."""
    total = Diff(limit)
    causes: Causes | None = None
    sides = [Side(name) for name in names]
    for answer in answers:
        total.add(answer.diff)
        if answer.causes is not None:
            causes = causes or Causes.empty(limit)
            causes.add(answer.causes)
        if answer.kernels is None:
            lone = sides[answer.couple.ours is None]
            lone.alone.append(answer.couple.name)
            continue
        for side, kernel in zip(sides, answer.kernels, strict=True):
            side.kernels[kernel] += 1
    return Report(level, sides, total, causes, of - len(answers))
