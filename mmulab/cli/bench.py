"""``mmulab bench``: how fast the walk is, against unicorn in the same run; how fast recordings are."""

from __future__ import annotations

import json

import click

from mmulab.lab.bench_walk import bench_walk


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
    "--repeat", type=click.IntRange(1), default=3, show_default=True, help="Measurements; the best counts."
)
@click.option(
    "--step", "events", type=click.IntRange(1000), help="Measure a recording of so many events instead."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def bench(seed: int, translations: int, repeat: int, events: int | None, as_json: bool) -> None:
    """Measure translations a second over the same random pages, of this package and of unicorn.

    The walks check rights and set A bits. The last column says how many times as fast the compiled
    batch walk is. A line of unicorn that hits its TLB makes no walk and is there for comparison.
    """
    if events is not None:
        _bench_step(events, seed, as_json)
        return
    rates = bench_walk(seed=seed, translations=translations, repeat=repeat)
    if as_json:
        click.echo(
            json.dumps({"translations": translations, "rates": [rate._asdict() for rate in rates]}, indent=1)
        )
        return
    for rate in rates:
        click.echo(f"{rate.name:<36} {rate.per_second / 1e6:9.2f} M/s  batch walk x {rate.ratio:.2f}")


def _bench_step(events: int, seed: int, as_json: bool) -> None:
    from mmulab.lab.bench_step import bench_step  # the notebook packages: only where they are measured

    measures = bench_step(events=events, seed=seed)
    if as_json:
        click.echo(json.dumps({"measures": [measure._asdict() for measure in measures]}, indent=1))
        return
    for measure in measures:
        click.echo(f"{measure.name:<44} {measure.value:12,.2f} {measure.unit}")
