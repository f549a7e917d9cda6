"""``mmulab doctor``: what this machine can do of ``mmulab record``."""

from __future__ import annotations

import json

import click

from mmulab.record.doctor import checks


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say of each thing that recording needs whether it is here, and what to install.

    Exit code 0 if 'mmulab record --deb' can run, 1 otherwise.
    """
    found = checks()
    can_record = all(check.ok for check in found if check.needed)
    if as_json:
        click.echo(json.dumps({"can_record": can_record, "checks": [check._asdict() for check in found]}))
    else:
        for check in found:
            click.echo(
                f"{'yes' if check.ok else 'no ' if check.needed else '-  '} {check.name}: {check.says}"
            )
    if not can_record:
        ctx.exit(1)
