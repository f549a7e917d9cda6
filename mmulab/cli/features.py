"""``mmulab features``: which features of KVM's x86 MMU the model has, and what shows it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby

import click

from mmulab.check.features import STATES, Feature
from mmulab.check.features import features as table
from mmulab.cli.progress import working
from mmulab.kvm.kernels import KERNELS

WIDTH = 110
COLUMN = 14
INDENT = " " * (7 + COLUMN * len(KERNELS))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of lines.")
@click.option("--state", type=click.Choice(STATES), help="Only the features in this state for some kernel.")
def features(as_json: bool, state: str | None) -> None:
    """Show each feature of KVM's x86 MMU, its state in the model of each kernel, and the evidence.

    conformant: recordings of the kernel exercise it, and the model agrees with them. modelled: a test
    shows it, but no recording. not modelled: neither; the row says why.
    """
    with working("features"):
        every = table()
    rows = [row for row in every if state is None or state in row.states.values()]
    known = [{"section": row.section, **row._asdict()} for row in rows]
    for line in [json.dumps(known)] if as_json else _lines(rows):
        click.echo(line)


def _lines(rows: list[Feature]) -> Iterator[str]:
    yield " " * 7 + "".join(f"{kernel:{COLUMN}}" for kernel in KERNELS).rstrip()
    for section, inside in groupby(rows, key=lambda row: row.section):
        yield section
        for row in inside:
            states = "".join(f"{state:{COLUMN}}" for state in row.states.values())
            yield from _wrapped(f"  {row.id:4} {states}", row.feature)
            if row.evidence:
                yield from _wrapped(INDENT, "shown by " + ", ".join(row.evidence))
            if row.shows:
                yield from _wrapped(INDENT, "there: " + "; ".join(row.shows))
            if row.remark:
                yield from _wrapped(INDENT, ("but: " if row.evidence else "because: ") + row.remark)
        yield ""
    for kernel in KERNELS:
        yield _counts(rows, kernel)


def _wrapped(lead: str, text: str) -> Iterable[str]:
    """Wrap at spaces only, so that a name can be copied whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=lead,
        subsequent_indent=INDENT,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _counts(rows: list[Feature], kernel: str) -> str:
    counts = " ".join(f"{state} {sum(row.states[kernel] == state for row in rows)}," for state in STATES)
    return f"{kernel}: {counts} rows {len(rows)}"
