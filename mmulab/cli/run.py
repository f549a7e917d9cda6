"""``mmulab run``: a scenario in the model, op by op."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click

from mmulab.cli.complete import complete_events, complete_works
from mmulab.cli.options import KernelChoice, kernel_options
from mmulab.cli.progress import working
from mmulab.cli.work import on_kernel, read_work
from mmulab.conform.compare import frame_map
from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.conform.record import recording_lines, write_recording
from mmulab.errors import InputError, find_named
from mmulab.events import CONSOLE, EVENT_TYPES, FUNCTIONS, Event
from mmulab.files import write_text
from mmulab.ftrace.wording import event_text
from mmulab.ftrace.writer import format_trace, model_events
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.lab.cases.run import results_of, runner_of
from mmulab.machine.op import OutcomeKind
from mmulab.scenario.runner import Result


@click.command(name="run")
@click.argument("file", metavar="FILE", shell_complete=complete_works)
@click.option(
    "--events", is_flag=True, help="Print each op's events, worded as the kernel's trace, and their numbers."
)
@click.option(
    "--event",
    "wanted",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_events,
    help="Print only events of this name, and the ops that have some; may be given several times.",
)
@click.option("--op", "number", type=int, metavar="N", help="Print only op N, with its events.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead, one line an op.")
@click.option(
    "--record", metavar="OUT", help="Also write the run as a recording (.jsonl, .jsonl.gz, .jsonl.xz)."
)
@click.option("--ftrace", metavar="OUT", help="Also write the events as lines of the kernel's trace_pipe.")
@kernel_options
@click.pass_context
def run_scenario(
    ctx: click.Context,
    file: str,
    events: bool,
    wanted: tuple[str, ...],
    number: int | None,
    as_json: bool,
    record: str | None,
    ftrace: str | None,
    choice: KernelChoice,
) -> None:
    """Run the scenario in FILE and print each op with its outcome.

    'mmulab help scenario' describes the format. FILE may also be a recording, whose scenario is run,
    or the name of a case ('mmulab cases') or of a workload (workload/text-patching/64/shadow).
    With --events, --event or --op the last lines count the events shown, by name.
    A warning of the kernel is printed below its op. A design that stops the model ends the run,
    with exit code 1; so does an assertion that kills the host.
    """
    if record is not None and choice.is_own:
        raise InputError(f"{record}: a recording is of a kernel that its header can name; leave out your own")
    if record is not None and choice.changes_design:
        raise InputError(f"{record}: a recording has the kernel's own words; leave out the design")
    with working(f"run {file}"):
        scenario = on_kernel(read_work(file), choice)
        kernel = choice.over(find_kernel(scenario.header.kernel))
        only = Only(number, event_types(wanted, kernel), events)
        runner = runner_of(scenario, kernel=kernel)
        results, failure = results_of(runner)
    if record is not None:
        write_recording(record, recording_lines(scenario, results, frame_map(runner.machine.memory)))
    if ftrace is not None:
        ops = ((result.op.vcpu, result.events) for result in results)
        lines = format_trace(model_events(ops, kernel, runner.machine.config.host.vendor))
        write_text(ftrace, "".join(f"{line}\n" for line in lines))
    shown = list(only.of(results))
    for result, chosen in shown:
        said = [json.dumps(_record(result, chosen))] if as_json else _lines(result, only.told(chosen), kernel)
        for line in said:
            click.echo(line)
    if only.has_events and not as_json:
        for line in _summary([event for _, chosen in shown for event in chosen], kernel):
            click.echo(line)
    if failure is not None:
        where = f"after op {results[-1].index}" if results else "before the first op"
        click.echo(f"mmulab: {file}: {where}: {failure}", err=True)
        ctx.exit(1)
    if results and results[-1].outcome.kind is OutcomeKind.HOST_DIED:
        ctx.exit(1)


class Only(NamedTuple):
    """What of a run is shown.

    Attributes
    ----------
    op : int or None
        The number of the one op; None: all.
    kinds : tuple of type
        Events of these types, and the ops that have some; empty: all.
    events : bool
        Events were asked for.
    """

    op: int | None
    kinds: tuple[type, ...]
    events: bool

    @property
    def has_events(self) -> bool:
        """Whether events are shown, and not only what the kernel warns of."""
        return self.events or self.op is not None or bool(self.kinds)

    def of(self, results: Sequence[Result]) -> Iterator[tuple[Result, list[Event]]]:
        """Yield the ops that are shown, each with its events.

        Raises
        ------
        InputError
            There is no such op.
        """
        if results and self.op is not None and all(result.index != self.op for result in results):
            raise InputError(f"op {self.op}: the run has ops {results[0].index} to {results[-1].index}")
        for result in results:
            kinds = self.kinds and (*self.kinds, *CONSOLE)
            found = [event for event in result.events if not kinds or type(event) in kinds]
            if self.op in (None, result.index) and (found or not kinds):
                yield result, found

    def told(self, events: Sequence[Event]) -> Sequence[Event]:
        """Return those of an op's events that lines show: what the kernel warns of, in any case."""
        return events if self.has_events else [event for event in events if type(event) in CONSOLE]


def event_types(names: Sequence[str], kernel: Kernel) -> tuple[type, ...]:
    """Return the events' types, each by its own name or the kernel's; raises InputError."""
    known = EVENT_TYPES | {kernel.events.name(kind): kind for kind in FUNCTIONS}
    return tuple(find_named(known, name, "event", "events") for name in names)


def _summary(events: Sequence[Event], kernel: Kernel) -> Iterator[str]:
    """Yield how many events of each name there are, the most frequent first."""
    counts = Counter(kernel.events.name(type(event)) for event in events)
    yield f"events: {len(events)}"
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield f"{count:7} {name}"


def _lines(result: Result, events: Sequence[Event], kernel: Kernel) -> Iterator[str]:
    yield f"{result.index:4} {result.text}  ->  {outcome_str(encode_outcome(result.outcome))}"
    for event in events:
        yield f"         {event_text(event, kernel)}"


def _record(result: Result, events: Sequence[Event]) -> dict[str, Any]:
    outcome = encode_outcome(result.outcome)
    if "mmio" in outcome:
        exits = outcome["mmio"]
        outcome["mmio"] = [{"write": m.write, "gpa": m.gpa, "size": m.size, "value": m.value} for m in exits]
    return {
        "index": result.index,
        "vcpu": result.op.vcpu,
        "op": result.text,
        "outcome": outcome,
        "events": [{"event": type(e).__name__, **e._asdict()} for e in events],
        "stats": result.stats,
    }
