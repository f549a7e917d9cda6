"""Sync policies side by side as tables: what each is, what it counted, and what that may cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any

from mmulab.errors import InputError
from mmulab.kvm.sync.find import find_sync
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.table import Case
from mmulab.lab.costs import CostModel, Estimate, estimate, winners
from mmulab.lab.sync.compare import SyncCell
from mmulab.report.results import Table
from mmulab.widgets.regions import Region, regions_picture
from mmulab.widgets.scene_svg import Svg

__all__ = [
    "costs_table",
    "counts_table",
    "measures",
    "outcomes_table",
    "parse_policies",
    "policies_table",
    "priced",
    "prices_table",
    "regions",
    "result_lines",
    "shares_table",
    "short",
    "span",
    "two_prices",
    "upkeep_table",
    "winners_picture",
]

PRICED = ("exit", "fault", "emulation", "walk_level", "sync_entry", "page", "flush")
"""The parameters that the counts of a policy are priced with."""


def parse_policies(text: str) -> list[SyncPolicy]:
    """Return the policies of a list, ``oos_2008,mine.py:Mine``.

    Raises
    ------
    InputError
        One is unknown.
    """
    return [find_sync(word.strip()) for word in text.split(",")]


def policies_table(policies: Sequence[SyncPolicy]) -> Table:
    """Return what each policy is, and the memory that it takes."""
    return Table(
        "policies",
        ["policy", "in words", "bytes a page", "bytes a VM", "source"],
        [[str(p), p.summary, p.page_bytes, p.vm_bytes, p.source] for p in policies],
        "Sync policies, and the memory of their bookkeeping in the header of each shadow page and in the VM.",
    )


def short(case: Case) -> str:
    """Return a case's name without what all of its kind share."""
    if case.kind is CaseKind.BOOT:
        return case.stream
    if case.kind is CaseKind.RECORDING:
        return case.recording.rpartition("/")[2]
    return case.name.removeprefix("workload/").removesuffix("/shadow")


def counts_table(cells: Sequence[SyncCell]) -> Table:
    """Return what each policy did on each piece of work."""
    rows = []
    for cell in cells:
        found = cell.counts
        did = [found.emulated_writes, found.write_protect_faults, cell.page_faults, found.unsyncs]
        did += [found.syncs, found.entries, found.cr3_writes, found.idle_cr3_writes]
        rows.append([short(cell.case), str(cell.policy), *did])
    columns = ["work", "policy", "emulated writes", "write-protect faults", "all faults", "unsynced"]
    columns += ["synced", "entries compared", "CR3 loads", "idle ones"]
    caption = "What each policy did. Entries: also those that INVLPG compares. Idle: that synced nothing."
    return Table("counts", columns, rows, caption)


def upkeep_table(cells: Sequence[SyncCell]) -> Table:
    """Return what else is priced: what the guest and KVM did to the tables whatever was out of sync."""
    rows = [
        [short(cell.case), str(cell.policy), cell.invlpgs, cell.pages_made, cell.pages_zapped, cell.flushes]
        for cell in cells
    ]
    columns = ["work", "policy", "INVLPG", "pages made", "pages zapped", "flushes"]
    return Table("upkeep", columns, rows, "What else has a price: INVLPG, shadow pages, flushes of the TLBs.")


def outcomes_table(cells: Sequence[SyncCell]) -> Table:
    """Return which pages stayed in sync, the memory, and whether the guest noticed anything."""
    rows = []
    for cell in cells:
        refused, wrong = cell.counts.refused, cell.wrong
        stayed = [sum(refused.values()), reasons(refused), cell.counts.peak_bytes]
        ended = [cell.judged, int(wrong is not None), None if wrong is None else str(wrong)]
        rows.append([short(cell.case), str(cell.policy), *stayed, *ended])
    columns = ["work", "policy", "stayed in sync", "why", "bytes", "judged", "wrong accesses", "the first"]
    caption = "Stayed in sync: pages that were written and could not go out of it. Bytes: at most."
    return Table("outcomes", columns, rows, caption)


def reasons(refused: Mapping[str, int]) -> str:
    """Return why pages stayed in sync, in words."""
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in refused.items())


def measures(cells: Sequence[SyncCell]) -> dict[str, Any]:
    """Return the counts as :func:`mmulab.widgets.multiples.multiples` takes them: a row a cell."""
    return {
        "labels": [f"{short(cell.case)}, {cell.policy}" for cell in cells],
        "measures": {
            "emulated writes": [cell.counts.emulated_writes for cell in cells],
            "all faults": [cell.page_faults for cell in cells],
            "synced": [cell.counts.syncs for cell in cells],
            "entries compared": [cell.counts.entries for cell in cells],
            "idle CR3 loads": [cell.counts.idle_cr3_writes for cell in cells],
        },
        "marked": [number for number, cell in enumerate(cells) if cell.wrong is not None],
    }


def result_lines(policies: Sequence[SyncPolicy], cells: Sequence[SyncCell]) -> list[str]:
    """Return of each policy what it did on all work, in a line."""
    lines = []
    for policy in map(str, policies):
        row = [cell for cell in cells if str(cell.policy) == policy]
        emulated, entries = (
            sum(getattr(c.counts, name) for c in row) for name in ("emulated_writes", "entries")
        )
        wrong = sum(cell.wrong is not None for cell in row)
        lines.append(
            f"{policy}: emulated writes {emulated:,}, entries compared {entries:,}, "
            f"wrong on {wrong} of {len(row)}"
        )
    return lines


def priced(cell: SyncCell) -> dict[str, int]:
    """Return the counts of a cell by the names that :data:`~mmulab.lab.costs.PRICES` has.

    A fault that ended in an emulated write is paid as that: an exit and an instruction.
    """
    found = cell.counts
    emulated = min(found.emulated_writes, found.write_protect_faults)
    return {
        "emulated_writes": found.emulated_writes,
        "faults": cell.page_faults - emulated,
        "syncs": found.syncs,
        "entries_compared": found.entries,
        "cr3_switches": found.cr3_writes,
        "invlpgs": cell.invlpgs,
        "pages_made": cell.pages_made,
        "pages_zapped": cell.pages_zapped,
        "flushes": cell.flushes,
    }


def prices_table(model: CostModel) -> Table:
    """Return the prices that count here, each with its source."""
    return Table(
        "prices",
        ["parameter", "low", "default", "high", "source"],
        [row for row in model.table() if row[0] in PRICED],
        "Microseconds.",
    )


def by_work(cells: Sequence[SyncCell]) -> dict[str, list[SyncCell]]:
    """Return by short name the cells of each piece of work that no policy went wrong on."""
    found: dict[str, list[SyncCell]] = {}
    for cell in cells:
        found.setdefault(short(cell.case), []).append(cell)
    return {name: row for name, row in found.items() if all(cell.wrong is None for cell in row)}


def costs_table(cells: Sequence[SyncCell], model: CostModel) -> Table:
    """Return what each policy may cost on each piece of work, and beside the cheapest."""
    rows = []
    for name, row in by_work(cells).items():
        found = [estimate(priced(cell), model) for cell in row]
        least = min(found, key=lambda one: one.default)
        for cell, one in zip(row, found, strict=True):
            ends = [round(end) for end in (one.low, one.default, one.high)]
            rows.append([name, str(cell.policy), *ends, _against(one, least)])
    return Table(
        "costs",
        ["work", "policy", "low", "default", "high", "against the cheapest"],
        rows,
        "Microseconds, estimated: emulated writes, faults, syncs, loads of CR3, INVLPG, pages made and "
        "zapped, and flushes.",
    )


def _against(one: Estimate, least: Estimate) -> str:
    if isclose(one.default, least.default):
        return "cheapest"
    times = "" if not least.default else f"{one.default / least.default:.2f} times"
    return f"{times}, ranges overlap" if one.overlaps(least) else times


def two_prices(across: str, up: str) -> tuple[str, str]:
    """Return the prices of a plot.

    Raises
    ------
    InputError
        Both are one.
    """
    if across == up:
        raise InputError(f"parameters 'across' and 'up' are both '{across}'; plot two prices")
    return across, up


def span(model: CostModel, name: str, *, factor: float = 10, steps: int = 15) -> list[float]:
    """Return prices from a `factor` below a parameter's range to a `factor` above it, evenly by ratio."""
    low, _, high, _ = next(row[1:] for row in model.table() if row[0] == name)
    first, last = max(low, 0.001) / factor, max(high, 0.001) * factor
    return [first * (last / first) ** (number / (steps - 1)) for number in range(steps)]


def regions(cells: Sequence[SyncCell], model: CostModel, across: str, up: str) -> list[Region]:
    """Return for each piece of work which policy is the cheapest where two prices vary.

    Policies with the same counts are one: they draw whatever the prices.
    """
    x, y = span(model, across), span(model, up)
    found = []
    for name, row in by_work(cells).items():
        alike: dict[tuple[int, ...], list[SyncCell]] = {}
        for cell in row:
            alike.setdefault(tuple(priced(cell).values()), []).append(cell)
        counts = {" = ".join(str(c.policy) for c in same): priced(same[0]) for same in alike.values()}
        won = winners(counts, (across, x), (up, y), model)
        default = min(counts, key=lambda policy: estimate(counts[policy], model).default)
        found.append(Region(name, x, y, won, default))
    return found


def winners_picture(found: Sequence[Region], model: CostModel, across: str, up: str) -> Svg:
    """Return the regions as a picture."""
    ends = {name: (low, default, high) for name, low, default, high, _ in model.table()}
    title = f"The cheapest policy as {across} and {up} vary"
    return regions_picture(found, title=title, x=(across, ends[across]), y=(up, ends[up]))


def shares_table(found: Sequence[Region]) -> Table:
    """Return who wins at the default prices, and in how much of each region."""
    rows = []
    for region in found:
        cells = [winner for line in region.winners for winner in line]
        shares = {winner: cells.count(winner) for winner in dict.fromkeys(cells)}
        by_share = sorted(shares.items(), key=lambda item: -item[1])
        words = ", ".join(f"{winner} {100 * count / len(cells):.0f} %" for winner, count in by_share)
        rows.append([region.title, region.default, len(shares), words])
    return Table(
        "winners",
        ["work", "cheapest at the defaults", "winners", "share of the plot"],
        rows,
        "Who is the cheapest in the plot.",
    )
