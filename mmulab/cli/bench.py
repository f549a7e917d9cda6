"""``mmulab bench``: how fast the walk is, against unicorn in the same run; recordings; replays; checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mmulab.cli.path import PATH
from mmulab.cli.progress import working
from mmulab.errors import InputError
from mmulab.lab.bench.measure import Measure
from mmulab.lab.bench.replay import bench_replay
from mmulab.lab.bench.walk import Rate, bench_walk


@click.command()
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Chooses tables and pages."
)
@click.option(
    "--translations",
    type=click.IntRange(1000),
    default=300_000,
    show_default=True,
    help="Accesses in each measurement.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Measurements; the best counts, with --check the median.",
)
@click.option(
    "--step", "events", type=click.IntRange(1000), help="Measure a recording of so many events instead."
)
@click.option(
    "--replay",
    "stream",
    type=PATH,
    metavar="FILE.npz",
    help="Measure the replay of this stream instead.",
)
@click.option("--limit", type=click.IntRange(1), help="Records of the stream to replay; all if left out.")
@click.option("--check", "checker", is_flag=True, help="Measure the checker instead.")
@click.option(
    "--trials", type=click.IntRange(1), default=40, show_default=True, help="Trials a measurement (--check)."
)
@click.option(
    "--states", type=click.IntRange(1), default=600, show_default=True, help="States a measurement (--check)."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def bench(
    seed: int,
    translations: int,
    repeat: int,
    events: int | None,
    stream: Path | None,
    limit: int | None,
    checker: bool,
    trials: int,
    states: int,
    as_json: bool,
) -> None:
    """Measure translations per second over the same random pages, of this package and of unicorn.

    The walks check rights and set A bits. The last column says how many times as fast the compiled
    batch walk is. A line of unicorn that hits its TLB makes no walk and is there for comparison.

    With --replay the last column compares records per second with the batch walk over the stream's
    accesses, which handles, compares and stores nothing.

    With --check it measures ops per second of random trials, bare and watched, and new states per
    second of scopes tried whole, both in processor time.
    """
    asked = [("--step", events is not None), ("--replay", stream is not None), ("--check", checker)]
    kinds = [name for name, is_asked in asked if is_asked]
    if len(kinds) > 1:
        raise InputError(f"{kinds[0]} and {kinds[1]} are two measurements; run bench once for each")
    if limit is not None and stream is None:
        raise InputError("--limit counts records of a stream; name one with --replay")
    if checker:
        _bench_check(trials, states, repeat, seed, as_json)
    elif events is not None:
        _bench_step(events, seed, as_json)
    elif stream is not None:
        with working("bench"):
            rates = bench_replay(stream, limit=limit, repeat=repeat)
        _show_rates(rates, {"stream": stream.stem}, as_json)
    else:
        with working("bench"):
            rates = bench_walk(seed=seed, translations=translations, repeat=repeat)
        _show_rates(rates, {"translations": translations}, as_json)


def _show_rates(rates: Sequence[Rate], what: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**what, "rates": [rate._asdict() for rate in rates]}, indent=1))
        return
    for rate in rates:
        click.echo(f"{rate.name:<36} {rate.per_second / 1e6:9.2f} M/s  batch walk x {rate.ratio:.2f}")


def _bench_step(events: int, seed: int, as_json: bool) -> None:
    from mmulab.lab.bench.step import bench_step  # the notebook packages: only where they are measured

    with working("bench"):
        measures = bench_step(events=events, seed=seed)
    _show_measures(measures, as_json)


def _bench_check(trials: int, states: int, repeat: int, seed: int, as_json: bool) -> None:
    from mmulab.lab.bench.check import bench_check  # all of the checker: only where it is measured

    with working("bench"):
        measures = bench_check(trials=trials, states=states, repeat=repeat, seed=seed)
    _show_measures(measures, as_json)


def _show_measures(measures: Sequence[Measure], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"measures": [measure._asdict() for measure in measures]}, indent=1))
        return
    for measure in measures:
        click.echo(f"{measure.name:<52} {measure.value:12,.2f} {measure.unit}")
