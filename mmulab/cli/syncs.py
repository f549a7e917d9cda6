"""``mmulab compare --syncs``: the same work under several sync policies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import click

from mmulab.cli import signals
from mmulab.cli.progress import progress
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.sync.find import find_sync
from mmulab.kvm.sync.stat import SYNC_STATS
from mmulab.lab.cases.table import Case
from mmulab.lab.sync.compare import SyncCell, syncs_each
from mmulab.pool import Jobs

_SUMS = tuple(name for name in SYNC_STATS if name != "most_pages")
_HEADS = ("correct", "page faults", *(name.replace("_", " ") for name in _SUMS), "most bytes")


def compare_policies(
    names: str,
    works: Sequence[Case],
    *,
    kernel: Kernel | None,
    jobs: Jobs,
    details: bool,
    wrong_only: bool,
    as_json: bool,
) -> None:
    """Show who is wrong where, and what each policy costs.

    Raises
    ------
    InputError
        A policy is unknown, or named twice.
    """
    policies = [find_sync(name.strip()) for name in names.split(",")]
    texts = [str(policy) for policy in policies]
    cells: list[SyncCell] = []

    def show() -> None:
        wrong = {cell.case.name for cell in cells if cell.wrong is not None}
        rows = [cell for cell in cells if not wrong_only or cell.case.name in wrong]
        if as_json:
            click.echo(json.dumps([cell.record() for cell in rows], indent=1))
            return
        for line in _lines(texts, cells, rows, details=details):
            click.echo(line)

    with signals.shown(show):
        for row in progress(syncs_each(policies, works, kernel=kernel, jobs=jobs), len(works), "case"):
            cells += row


def _lines(
    texts: Sequence[str], cells: Sequence[SyncCell], rows: Sequence[SyncCell], *, details: bool
) -> Iterator[str]:
    yield from _matrix(texts, rows)
    yield ""
    yield from _costs(texts, cells)
    for cell in cells:
        if cell.wrong is not None:
            yield f"{cell.policy} on {cell.case.name}: wrong at {cell.wrong}"
            if cell.case.note:
                yield f"    foretold: {cell.case.note}"
    if details:
        for cell in cells:
            yield f"{cell.case.name}: judged {cell.judged} of {cell.ops}; {cell.counts}"


def _matrix(texts: Sequence[str], cells: Sequence[SyncCell]) -> Iterator[str]:
    width = max([len("case"), *(len(cell.case.name) for cell in cells)])
    columns = [max(len(text), 9) for text in texts]
    yield _row("case", width, texts, columns)
    for at in range(0, len(cells), len(texts)):
        row = cells[at : at + len(texts)]
        yield _row(row[0].case.name, width, [_verdict(cell) for cell in row], columns)
    yield "ok; ok N/M: of M ops N could be judged; the op of the first wrong access"


def _verdict(cell: SyncCell) -> str:
    if cell.wrong is not None:
        return f"op {cell.wrong.op}"
    return "ok" if cell.judged == cell.ops else f"ok {cell.judged}/{cell.ops}"


def _costs(texts: Sequence[str], cells: Sequence[SyncCell]) -> Iterator[str]:
    width = max(len("policy"), *map(len, texts))
    columns = [max(len(head), 9) for head in _HEADS]
    yield _row("policy", width, _HEADS, columns)
    for at, text in enumerate(texts):
        of = cells[at :: len(texts)]
        right = sum(cell.wrong is None for cell in of)
        sums = [sum(getattr(cell.counts, name) for cell in of) for name in _SUMS]
        most = max((cell.counts.peak_bytes for cell in of), default=0)
        numbers = [sum(cell.page_faults for cell in of), *sums, most]
        yield _row(text, width, [f"{right}/{len(of)}", *map(str, numbers)], columns)
    for at, text in enumerate(texts):
        reasons: Counter[str] = Counter()
        for cell in cells[at :: len(texts)]:
            reasons.update(cell.counts.refused)
        said = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in reasons.items())
        yield f"could not go out of sync under {text}: {said or 'none'}"


def _row(name: str, width: int, cells: Sequence[str], columns: Sequence[int]) -> str:
    return f"{name:{width}}  " + " ".join(f"{c:>{w}}" for c, w in zip(cells, columns, strict=True))
