"""``mmulab kernels``: which kernels the model can be, and in what they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest

import click

from mmulab.cli.group import Group
from mmulab.cli.options import kernel_name
from mmulab.events import FUNCTIONS
from mmulab.kvm.behaviours import CHANGES
from mmulab.kvm.bug import SWITCHES
from mmulab.kvm.bugs import BUGS
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import KERNELS, LINUX_6_1, find_kernel


@click.group(cls=Group, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.pass_context
def kernels(ctx: click.Context, as_json: bool) -> None:
    """Show the kernels with their behaviours.

    A name such as '6.12' can be changed: '6.12+unprotect_on_reinjection' turns a behaviour on,
    '6.12-dummy_root' turns one off. 'file.py:KERNEL' names a kernel of your own: a value such as
    mmulab.kvm.kernels.LINUX_6_12.with_(design=..).
    """
    if ctx.invoked_subcommand is not None:
        return
    if as_json:
        click.echo(json.dumps({"kernels": [_record(k) for k in KERNELS.values()], "behaviours": _table()}))
        return
    for kernel in KERNELS.values():
        click.echo(f"{kernel.name:12} {kernel.source}")
        rules = f"{kernel.derivation.name}, {kernel.root_strategy.name} roots, {kernel.sync}"
        click.echo(f"{'':12} design {kernel.design.id} {kernel.design.name}, {rules}")
        for name in kernel.behaviours.names():
            click.echo(f"{'':12} + {name}")
    click.echo("\nbehaviours")
    for change in CHANGES.values():
        for line in _lines(change.name):
            click.echo(line)


@kernels.command()
@click.argument("one")
@click.argument("other")
@click.option("--json", "as_json", is_flag=True, help="A JSON object instead of lines.")
def diff(one: str, other: str, as_json: bool) -> None:
    """Show what kernel OTHER does differently from kernel ONE, with the commits.

    '+': OTHER has a behaviour or a bug that ONE lacks; '-': ONE has it and OTHER lacks it; '~': both have
    it under another name or number.
    """
    before, after = find_kernel(kernel_name(one)), find_kernel(kernel_name(other))
    found = after.changes_from(before)
    bugs = {name: name in after.bugs.names() for name in SWITCHES if _differs(name, before, after)}
    if as_json:
        changes = {name: {"on": on, **CHANGES[name]._asdict()} for name, on in found.items()}
        said = {"behaviours": changes, "bugs": bugs, "words": list(_words(before, after))}
        click.echo(json.dumps(said))
        return
    for name, on in found.items():
        first, *rest = _lines(name)
        for line in [f"{'+' if on else '-'} {first}", *(f"  {line}" for line in rest)]:
            click.echo(line)
    for name, on in bugs.items():
        click.echo(f"{'+' if on else '-'} bug {name}: {BUGS[name].title}")
    for line in _words(before, after):
        click.echo(f"~ {line}")
    click.echo(f"kernels: {len(found)} behaviours differ" + (f", {len(bugs)} bugs" if bugs else ""))


def _differs(bug: str, before: Kernel, after: Kernel) -> bool:
    return bool(getattr(before.bugs, bug) != getattr(after.bugs, bug))


def _words(before: Kernel, after: Kernel) -> Iterator[str]:
    """Yield what is called or numbered in another way."""
    for kind in FUNCTIONS:
        was, now = before.events.name(kind), after.events.name(kind)
        if was != now:
            yield f"{was} is {now}"
    numbers = zip_longest(before.events.ret_pf, after.events.ret_pf, fillvalue="none")
    for number, (was, now) in enumerate(numbers):
        if was != now:
            yield f"RET_PF number {number}: {was} is {now}"


def _lines(name: str) -> Iterator[str]:
    change = CHANGES[name]
    word = "until" if change.removed else "since"
    yield f"{name}: " + (f"{word} {change.release}, {change.commit}" if change.release else "in no release")
    yield f"    {change.summary}"
    yield f"    {change.source}" + (f"; first in {change.shows}" if change.shows else "")


def _record(kernel: Kernel) -> dict[str, object]:
    return {
        "name": kernel.name,
        "source": kernel.source,
        "default": kernel is LINUX_6_1,
        "design": kernel.design.name,
        "derivation": kernel.derivation.name,
        "root_strategy": kernel.root_strategy.name,
        "sync": str(kernel.sync),
        "behaviours": list(kernel.behaviours.names()),
    }


def _table() -> list[dict[str, object]]:
    return [change._asdict() for change in CHANGES.values()]
