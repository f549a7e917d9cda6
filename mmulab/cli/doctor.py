"""``mmulab doctor``: what this machine can do of the notebooks, of ``--scheduler``, of ``mmulab record``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import click

from mmulab.checks import Check
from mmulab.cli.progress import working
from mmulab.report import doctor as install


class Group(NamedTuple):
    """Things that serve one purpose."""

    what: str
    look: Callable[[], list[Check]]
    needed: bool = False
    """Whether the report and the notebooks want it."""


def _record() -> list[Check]:
    try:
        from mmulab.record.doctor import checks
    except ImportError as error:  # what is missing has its line in the group python
        return [Check("mmulab.record", False, f"{error}; mmulab doctor python")]
    return checks()


GROUPS = {
    "python": Group("the packages of pyproject.toml", install.python, needed=True),
    "widgets": Group("widgets show in JupyterLab", install.widgets, needed=True),
    "notebooks": Group("notebooks can be run", install.notebooks, needed=True),
    "cluster": Group("other machines, by --scheduler", install.cluster),
    "dev": Group("tests and lint", install.dev),
    "record": Group("mmulab record", _record),
}


@click.command()
@click.argument("groups", metavar="[GROUP]...", nargs=-1, type=click.Choice(list(GROUPS)))
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.pass_context
def doctor(ctx: click.Context, groups: tuple[str, ...], as_json: bool) -> None:
    """Say whether each thing that mmulab needs is here, and what to do if not.

    GROUP is python, widgets, notebooks, cluster, dev or record. Without one, all are shown, and the exit
    code is 0 if the report and the notebooks have what they need (the first three groups). With groups,
    only these are shown, and the exit code is 0 if they have what they need: 'mmulab doctor record' for
    'mmulab record --deb'. A line begins with 'yes'; with 'no' where something needed is missing; with '-'
    where something optional is.
    """
    found: dict[str, list[Check]] = {}
    for name in dict.fromkeys(groups or GROUPS):
        with working(f"doctor {name}"):
            found[name] = GROUPS[name].look()
    fine = {name: all(check.ok for check in checks if check.needed) for name, checks in found.items()}
    ok = all(fine[name] for name in found if groups or GROUPS[name].needed)
    if as_json:
        told = {
            name: {"ok": fine[name], "checks": [check._asdict() for check in checks]}
            for name, checks in found.items()
        }
        click.echo(json.dumps({"ok": ok, "groups": told}))
    else:
        for name, checks in found.items():
            click.echo(f"{name}: {GROUPS[name].what}: {'yes' if fine[name] else 'no'}")
            for check in checks:
                mark = "yes" if check.ok else "no " if check.needed else "-  "
                click.echo(f"  {mark} {check.name}: {check.says}")
    if not ok:
        ctx.exit(1)
