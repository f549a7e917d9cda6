"""``mmulab bench``: how fast the walk is, against unicorn in the same run."""

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
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def bench(seed: int, translations: int, repeat: int, as_json: bool) -> None:
    """Measure translations a second over the same random pages, of this package and of unicorn.

    The walks check rights and set A bits. The last column says how many times as fast the compiled
    batch walk is. A line of unicorn that hits its TLB makes no walk and is there for comparison.
    """
    rates = bench_walk(seed=seed, translations=translations, repeat=repeat)
    if as_json:
        click.echo(
            json.dumps({"translations": translations, "rates": [rate._asdict() for rate in rates]}, indent=1)
        )
        return
    for rate in rates:
        click.echo(f"{rate.name:<36} {rate.per_second / 1e6:9.2f} M/s  batch walk x {rate.ratio:.2f}")
