"""``mmulab replay``: a recorded boot through the shadow MMU, every translation compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from mmulab.check.failure import FAILURES
from mmulab.cli import signals
from mmulab.cli.options import KernelChoice, kernel_options
from mmulab.cli.path import PATH
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.lab.cases.run import failure_str
from mmulab.trace.file import save
from mmulab.workload.record import stream_recorder
from mmulab.workload.replay import Replay
from mmulab.workload.replay_result import Mismatch, ReplayResult
from mmulab.workload.stream import load_stream


@click.command()
@click.argument("file", type=PATH, metavar="FILE.npz")
@click.option("--limit", type=click.IntRange(1), default=None, help="Records to replay; all if left out.")
@kernel_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.option("--record", "out", metavar="OUT.mmr", help="Keep the run as a recording, for 'step' (slower).")
@click.pass_context
def replay(
    ctx: click.Context,
    file: Path,
    limit: int | None,
    choice: KernelChoice,
    as_json: bool,
    out: str | None,
) -> None:
    """Replay a stream: each access runs on the vCPU, each table store is a guest write.

    The physical address that each access reaches is compared with the recorded one. The first that
    differs ends the replay: its record, the guest's walk and the shadow path are shown, and the exit
    code is 1. The last line counts accesses, page faults that KVM handled and shadow pages created;
    the line that begins with 'sync' says what the sync policy did. Interrupted, it counts what was
    replayed so far, and --record keeps it; in JSON 'interrupted' is true.
    """
    kernel = choice.over(LINUX_6_1)
    chosen, rule = kernel.design, kernel.derivation
    stream = load_stream(file)
    replayed = Replay(stream, limit=limit, kernel=kernel, one_by_one=out is not None)
    recorder = None if out is None else stream_recorder(replayed)
    # Held off: an op is replayed whole, and what was replayed is kept and shown.
    with signals.held() as interrupted:
        try:
            result = _run(replayed, as_json, interrupted)
        except FAILURES as error:
            # Under the kernel's own rules a failure is a bug, and keeps its traceback.
            if isinstance(error, InputError | NotImplementedError) or not choice.changes_design:
                raise
            at = f"{file}: record {replayed.record}"
            raise InputError(f"{at}: under {chosen.name} and {rule.name}, {failure_str(error)}") from error
        if recorder is not None and out is not None:
            save(recorder.finish(), out)
        if as_json:
            click.echo(json.dumps(_as_json(result, stream.name, kernel), indent=1))
        else:
            click.echo(
                f"{stream.name}: {result.records} of {len(stream)} records, {stream.mode.name} paging, "
                f"kernel {kernel}, design {chosen.id} {chosen.name}, derivation {rule.name}"
            )
            for line in _lines(result):
                click.echo(line)
    if result.mismatch is not None:
        ctx.exit(1)


def _run(replayed: Replay, as_json: bool, stop: Callable[[], bool]) -> ReplayResult:
    """Run with a progress bar, if someone sees it."""
    from tqdm import tqdm

    hidden = as_json or not sys.stderr.isatty()
    with tqdm(total=replayed.records, unit="record", unit_scale=True, leave=False, disable=hidden) as bar:
        return replayed.run(lambda records: bar.update(records - bar.n), stop)


def _lines(result: ReplayResult) -> Iterator[str]:
    faults = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in result.faults.items() if count)
    stats = result.stats
    yield f"faults by access: {faults or 'none'}"
    yield (
        f"faults by end: mapped {stats['pf_fixed']}, emulated {stats['pf_emulate']}, "
        f"spurious {stats['pf_spurious']}; device accesses {stats['mmio_exits']}; the guest's own page "
        f"faults {result.guest_faults}, not executed"
    )
    yield (
        f"shadow pages: created {result.shadow_pages}, flooded {stats['mmu_flooded']}, in use at the end "
        f"{result.shadow_pages_in_use}"
    )
    yield str(result.sync)
    if result.mismatch is not None:
        yield from _mismatch_lines(result.mismatch)
    if result.interrupted:
        yield f"interrupted before record {result.records}"
    yield (
        f"replay: accesses {result.agree}/{result.accesses} agree, faults {sum(result.faults.values())}, "
        f"shadow pages {result.shadow_pages}"
    )


def _mismatch_lines(mismatch: Mismatch) -> Iterator[str]:
    reached = "nothing" if mismatch.reached is None else f"{mismatch.reached:#x}"
    yield (
        f"record {mismatch.record} ({mismatch.kind!r}) gva {mismatch.gva:#x}: recorded gpa "
        f"{mismatch.gpa:#x}, reached {reached}: {mismatch.what}"
    )
    for line in mismatch.state:
        yield f"  {line}"


def _as_json(result: ReplayResult, name: str, kernel: Kernel) -> dict[str, Any]:
    record = {**result._asdict(), "sync": result.sync.record()}
    if not result.interrupted:
        del record["interrupted"]
    mismatch = result.mismatch
    if mismatch is not None:
        hexadecimal = {key: _hex(getattr(mismatch, key)) for key in ("gva", "gpa", "reached")}
        record["mismatch"] = {**mismatch._asdict(), **hexadecimal}
    rules = {"design": kernel.design.name, "derivation": kernel.derivation.name}
    return {"stream": name, "kernel": kernel.name, **rules, **record}


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
