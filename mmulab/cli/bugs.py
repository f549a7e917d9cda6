"""``mmulab bugs`` and ``mmulab affected``: the historical bugs of KVM's MMU, and which a release has."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from mmulab.kvm.bug import Affects, Bug
from mmulab.kvm.bugs import BUGS, find_bug
from mmulab.kvm.release import find_release
from mmulab.paths import checkout

WIDTH = 110
INDENT = " " * 6
VERDICTS = {True: "affected", False: "not affected", None: "not known"}


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of lines.")
def bugs(ids: tuple[str, ...], as_json: bool) -> None:
    """Show the historical bugs of KVM's MMU, or everything known about those named.

    A bug with a switch can be given to a kernel by its id: '--kernel 6.1+B2' is 6.1.192 without the fix.
    """
    known = [find_bug(id) for id in ids] or list(BUGS.values())
    if as_json:
        click.echo(json.dumps([asdict(bug) for bug in known]))
        return
    for bug in known:
        for line in _whole(bug) if ids else [_row(bug)]:
            click.echo(line)
    if not ids:
        click.echo(f"bugs: {len(known)}, {sum(bug.has_switch for bug in known)} with a switch")


@click.command()
@click.option(
    "--kernel",
    "release",
    required=True,
    metavar="RELEASE",
    help="A release of Linux: 5.15.200, 6.12-rc3, 6.1.0-31-amd64.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of lines.")
def affected(release: str, as_json: bool) -> None:
    """Show which bugs of the catalogue a release of Linux has, as far as they are known.

    Each with what its fix needs before it, and the shortest sequence of operations that shows it.
    """
    asked = find_release(release)
    if not asked.is_plain:
        click.echo(f"mmulab: release {release}: {asked.said()}", err=True)
    found = [(bug, bug.affects(release)) for bug in BUGS.values()]
    if as_json:
        click.echo(json.dumps([_record(bug, said) for bug, said in found]))
        return
    for bug, said in found:
        if said.has is not False:
            for line in _affected(bug, said):
                click.echo(line)
    counts = Counter(said.has for _, said in found)
    told = ", ".join(f"{verdict} {counts[has]}" for has, verdict in VERDICTS.items())
    click.echo(f"{release}: {told}; bugs {len(found)}")


def _row(bug: Bug) -> str:
    switch, breaks = "switch" if bug.has_switch else "-", ",".join(bug.breaks) or "-"
    return f"{bug.id:5} {switch:7} {breaks:8} {bug.commit or 'not known':13} {bug.cve or '-':15} {bug.title}"


def _whole(bug: Bug) -> Iterator[str]:
    yield f"{bug.id}: {bug.title}"
    yield f"{INDENT}fix {bug.commit or 'not known'}" + (f", {bug.cve}" if bug.cve else "")
    since = bug.introduced or "no source says since when"
    by = f" ({bug.introduced_by})" if bug.introduced_by else ""
    yield f"{INDENT}since {since}{by}, fixed in {bug.fixed or 'a release that no source names'}"
    if bug.backports:
        yield from _wrapped(f"stable releases with the fix: {', '.join(bug.backports.values())}")
    if bug.seen_in:
        yield from _wrapped(f"the fix was read in: {', '.join(bug.seen_in)}")
    yield from _wrapped(bug.mechanism)
    yield from _wrapped(f"breaks {', '.join(bug.breaks) or 'none of I1 to I16: an outcome is wrong'}")
    if bug.needs:
        yield from _wrapped(f"its fix needs {'; '.join(bug.needs)}")
    yield from _wrapped(f"switch: 6.1+{bug.id}" if bug.has_switch else f"no switch: {bug.missing}")
    yield from _wrapped(f"source: {bug.source}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=INDENT,
        subsequent_indent=INDENT,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _affected(bug: Bug, said: Affects) -> Iterator[str]:
    yield f"{bug.id:5} {VERDICTS[said.has]:9} {bug.title} ({bug.commit or 'commit not known'})"
    yield from _wrapped(said.why)
    yield from _wrapped(f"its fix needs {'; '.join(bug.needs) or 'nothing before it that is known'}")
    sequence = _sequence(bug)
    yield from _wrapped(f"sequence: {'none yet' if sequence is None else sequence}")


def _sequence(bug: Bug) -> Path | None:
    """Return the shortest sequence that the checker found, if it found one."""
    path = checkout() / "data" / "sequences" / f"{bug.id}.mmu"
    return path if path.exists() else None


def _record(bug: Bug, said: Affects) -> dict[str, object]:
    sequence = _sequence(bug)
    return {
        "id": bug.id,
        "affected": said.has,
        "why": said.why,
        "commit": bug.commit,
        "needs": bug.needs,
        "sequence": None if sequence is None else str(sequence),
    }
