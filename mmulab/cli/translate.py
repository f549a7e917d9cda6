"""``mmulab translate``: the walk against translations that came with real kernels' tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mmulab.cli.path import PATH
from mmulab.cli.progress import working
from mmulab.workload.translate import Translation, translate_files

SHOWN_DIFFERENCES = 10


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE.npz...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.pass_context
def translate(ctx: click.Context, files: tuple[Path, ...], as_json: bool) -> None:
    """Walk every sampled address of snapshots of page tables and compare with what was recorded.

    It compares the physical address (or the lack of one), the page's size and the leaf entry's bits.
    Exit code 1 if an address disagrees.
    """
    if as_json:
        with working("translate"):
            summary = translate_files(files, None)
    else:
        summary = translate_files(files, _print_lines)
    if as_json:
        answer = {
            "agree": summary.agree,
            "total": summary.total,
            "snapshots": [_as_json(translation) for translation in summary.translations],
        }
        click.echo(json.dumps(answer, indent=1))
    else:
        click.echo(
            f"translate: {summary.agree}/{summary.total} addresses agree in {summary.snapshots} snapshots"
        )
    if summary.agree != summary.total:
        ctx.exit(1)


def _print_lines(translation: Translation) -> None:
    snapshot = translation.snapshot
    masked = f", bit 5 masked in {snapshot.masked_pdptes} PDPTEs" if snapshot.masked_pdptes else ""
    click.echo(
        f"{snapshot.name}: {translation.agree}/{translation.total} agree, {snapshot.mode.name} paging, "
        f"{len(snapshot.gfn)} tables{masked}"
    )
    for difference in translation.differences[:SHOWN_DIFFERENCES]:
        gva, field, recorded, walked = difference
        click.echo(f"  {gva:#x}: {field} recorded {recorded}, walked {walked}")
    rest = len(translation.differences) - SHOWN_DIFFERENCES
    if rest > 0:
        click.echo(f"  and {rest} more")


def _as_json(translation: Translation) -> dict[str, Any]:
    snapshot = translation.snapshot
    return {
        "name": snapshot.name,
        "mode": snapshot.mode.name,
        "agree": translation.agree,
        "total": translation.total,
        "masked_pdptes": snapshot.masked_pdptes,
        "differences": [
            {**difference._asdict(), "gva": f"{difference.gva:#x}"} for difference in translation.differences
        ],
    }
