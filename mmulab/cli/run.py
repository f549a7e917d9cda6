"""``mmulab run``: a scenario in the model, op by op."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from mmulab.cli.options import KernelChoice, kernel_options
from mmulab.cli.work import on_kernel, read_work
from mmulab.conform.compare import frame_map
from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.conform.record import recording_lines, write_recording
from mmulab.errors import InputError
from mmulab.events import CONSOLE
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.cases.run import results_of, runner_of
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.runner import Result
from mmulab.trace.ftrace import event_text


@click.command(name="run")
@click.argument("file", metavar="FILE")
@click.option("--events", is_flag=True, help="Print each op's events, worded as the kernel's trace.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead, one line an op.")
@click.option(
    "--record", metavar="OUT", help="Also write the run as a recording (.jsonl, .jsonl.gz, .jsonl.xz)."
)
@kernel_options
@click.pass_context
def run_scenario(
    ctx: click.Context,
    file: str,
    events: bool,
    as_json: bool,
    record: str | None,
    choice: KernelChoice,
) -> None:
    """Run the scenario in FILE and print each op with its outcome.

    The format is described in mmulab.scenario.text. FILE may also be a recording, whose scenario is run,
    or the name of a case ('mmulab cases') or of a workload (workload/text-patching/64/shadow).
    What the kernel warns of stands below its op. A design that brings the model to a stop ends the run there,
    with exit code 1; so does an assertion that the host does not survive.
    """
    if record is not None and choice.is_own:
        raise InputError(f"{record}: a recording is of a kernel that its header can name; leave out your own")
    if record is not None and choice.changes_design:
        raise InputError(f"{record}: a recording has the kernel's own words; leave out the design")
    scenario = on_kernel(read_work(file), choice)
    kernel = choice.over(find_kernel(scenario.header.kernel))
    runner = runner_of(scenario, kernel=kernel)
    results, failure = results_of(runner)
    if record is not None:
        write_recording(record, recording_lines(scenario, results, frame_map(runner.machine.memory)))
    for result in results:
        for line in [json.dumps(_record(result))] if as_json else _lines(result, kernel, events):
            click.echo(line)
    if failure is not None:
        where = f"after op {results[-1].index}" if results else "before the first op"
        click.echo(f"mmulab: {file}: {where}: {failure}", err=True)
        ctx.exit(1)
    if results and results[-1].outcome.kind is OutcomeKind.HOST_DIED:
        ctx.exit(1)


def _lines(result: Result, kernel: Kernel, events: bool) -> Iterator[str]:
    yield f"{result.index:4} {result.text}  ->  {outcome_str(encode_outcome(result.outcome))}"
    for event in result.events:
        if events or type(event) in CONSOLE:
            yield f"         {event_text(event, kernel)}"


def _record(result: Result) -> dict[str, Any]:
    outcome = encode_outcome(result.outcome)
    if "mmio" in outcome:
        exits = outcome["mmio"]
        outcome["mmio"] = [{"write": m.write, "gpa": m.gpa, "size": m.size, "value": m.value} for m in exits]
    return {
        "index": result.index,
        "vcpu": result.op.vcpu,
        "op": result.text,
        "outcome": outcome,
        "events": [{"event": type(e).__name__, **e._asdict()} for e in result.events],
        "stats": result.stats,
    }
