"""``mmulab conform``: the model against recordings of real kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click

from mmulab.cli.each import each_answer
from mmulab.cli.options import KernelChoice, kernel_design_options
from mmulab.conform.compare import Comparison, Difference, Level, Part, compare
from mmulab.conform.explain import event_str, explain
from mmulab.conform.outcome import outcome_str
from mmulab.conform.recording import KernelRecording, RecordedOp, find_recordings, read_recording
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.find import find_design


class _Job(NamedTuple):
    path: Path
    level: Level
    design: RoleDesign | None
    kernel: Kernel | None
    explain: bool


class _Answer(NamedTuple):
    comparison: Comparison
    line: str
    explanation: str


def _work(job: _Job) -> _Answer:
    """Compare one recording."""
    recording = read_recording(job.path)
    comparison = compare(recording, job.level, job.design, job.kernel)
    if comparison.difference is None:
        return _Answer(comparison, comparison.problem or _fatal_line(comparison), "")
    text = explain(recording, job.level, comparison) if job.explain else ""
    return _Answer(comparison, _difference_line(recording, comparison.difference), text)


def _fatal_line(comparison: Comparison) -> str:
    op = comparison.fatal
    if op is None:
        return ""
    where = f"{comparison.path}: line {op.line}: op {op.index} {op.text!r}"
    return f"{where}: not compared: {outcome_str(op.outcome)}"


def _difference_line(recording: KernelRecording, difference: Difference) -> str:
    vendor = recording.scenario.header.vendor
    at = difference.number
    op: RecordedOp | None = recording.ops[at] if at < len(recording.ops) else None
    where = f"line {op.line}: op {op.index} {op.text!r}" if op else "after the last op"
    if difference.part is Part.FAILURE:
        return f"{recording.path}: {where}: the model failed: {difference.model.strip().splitlines()[-1]}"
    return (
        f"{recording.path}: {where}: {_part(difference)}"
        f" recorded {_side(difference, difference.recorded, vendor)},"
        f" model {_side(difference, difference.model, vendor)}"
    )


def _part(difference: Difference) -> str:
    return f"event {difference.event}:" if difference.part is Part.EVENT else f"{difference.part}:"


def _side(difference: Difference, side: Any, vendor: str) -> str:
    if side is None:
        return "nothing"
    if difference.part is Part.EVENT:
        return event_str(side, vendor)
    if difference.part is Part.OP:
        return str(side)
    assert isinstance(side, dict)
    return outcome_str(side if "out" in side else {"out": "", **side}).strip() or "none"


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--level", type=click.Choice([str(level) for level in Level]), default="mmu", show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=None, help="Processes; all processors if left out.")
@click.option("--explain", "explained", is_flag=True, help="Show first differences with the model's state.")
@click.option("--limit", type=click.IntRange(1), default=1, show_default=True, help="Scenarios to explain.")
@kernel_design_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.pass_context
def conform(
    ctx: click.Context,
    paths: tuple[str, ...],
    level: str,
    jobs: int | None,
    explained: bool,
    limit: int,
    choice: KernelChoice,
    as_json: bool,
) -> None:
    """Run recorded scenarios in the model and compare op for op.

    PATH is a recording (.jsonl, .jsonl.gz, .jsonl.xz) or a folder of them.
    The exit code is 0 if every scenario agrees at the level, else 1. With --design, everything but the
    role words is compared. Interrupted, it shows the scenarios compared so far; in JSON 'interrupted' is
    true and 'not_run' counts the others. A file that is not a recording is named at the end, with exit
    code 2; the others are compared. Where the recorded kernel died, its last op is named, and what came
    before it is compared.
    """
    chosen = Level(level)
    other = None if choice.design is None else find_design(choice.design)
    other = None if other is LINUX_6_1.design else other
    kernel = None if choice.kernel is None else find_kernel(choice.kernel)
    work = [_Job(path, chosen, other, kernel, explained) for path in find_recordings(paths)]

    def show(answers: list[_Answer], of: int) -> None:
        if as_json:
            _show_json(chosen, other, answers, of=of)
        else:
            _show(chosen, other, answers, limit, of=of)

    answers = each_answer(_work, work, show, jobs=jobs, what="files", bar=not as_json)
    ctx.exit(0 if all(a.comparison.agrees for a in answers) else 1)


def _show_json(level: Level, other: RoleDesign | None, answers: list[_Answer], *, of: int) -> None:
    record = {**_summary(level, answers), **_design_record(other)}
    if len(answers) < of:
        record |= {"interrupted": True, "not_run": of - len(answers)}
    click.echo(json.dumps(record))


def _show(level: Level, other: RoleDesign | None, answers: list[_Answer], limit: int, *, of: int) -> None:
    for answer in answers:
        if answer.line:
            click.echo(answer.line)
    for answer in [a for a in answers if a.explanation][:limit]:
        click.echo(f"\n{answer.explanation}\n")
    without = "" if other is None else f" design={other.name} (role words not compared)"
    missing = "" if len(answers) == of else f" interrupted: {of - len(answers)} scenarios not run"
    click.echo(_last_line(level, answers) + without + missing)


def _design_record(design: RoleDesign | None) -> dict[str, object]:
    """Return what is said of another design than the recorded kernel's."""
    return {} if design is None else {"design": design.name, "role_words_compared": False}


def _counts(answers: list[_Answer]) -> dict[str, tuple[int, int]]:
    all_ = [a.comparison for a in answers]
    return {
        "scenarios": (sum(c.agrees for c in all_), len(all_)),
        "ops": (sum(c.ops_agree for c in all_), sum(c.ops for c in all_)),
        "events": (sum(c.events_agree for c in all_), sum(c.events for c in all_)),
    }


def _last_line(level: Level, answers: list[_Answer]) -> str:
    counts = " ".join(f"{name} {agree}/{total}" for name, (agree, total) in _counts(answers).items())
    return f"conform: level={level} {counts}"


def _summary(level: Level, answers: list[_Answer]) -> dict[str, object]:
    counts = {name: {"agree": a, "total": b} for name, (a, b) in _counts(answers).items()}
    return {
        "level": str(level),
        **counts,
        "recordings": [
            {
                "path": a.comparison.path,
                "agrees": a.comparison.agrees,
                "ops": {"agree": a.comparison.ops_agree, "total": a.comparison.ops},
                "events": {"agree": a.comparison.events_agree, "total": a.comparison.events},
                "difference": None if a.comparison.agrees else a.line,
                "not_compared": _fatal_line(a.comparison) or None,
            }
            for a in answers
        ],
    }
