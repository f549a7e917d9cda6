"""Tables of sync policies: what the cells say, what it costs, and who is the cheapest where."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from mmulab.errors import InputError
from mmulab.lab.cases.works import find_works
from mmulab.lab.costs import TWO_VCPUS
from mmulab.lab.sync import tables
from mmulab.lab.sync.compare import SyncCell, compare_syncs
from mmulab.report.results import Table

POLICIES = ("write_protect", "oos_2008", "unsync_children")
WORK = "workload/fork-exec/64/shadow"
FIXED = TWO_VCPUS.with_(
    exit=1, fault=10, emulation=100, walk_level=1000, sync_entry=10_000, page=100_000, flush=1_000_000
)


@pytest.fixture(scope="module")
def cells() -> list[SyncCell]:
    return compare_syncs(POLICIES, find_works([WORK, "sync/two-modes-64"]))


def rows(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_rows_are_the_cells(cells: list[SyncCell]) -> None:
    counted, ended = rows(tables.counts_table(cells)), rows(tables.outcomes_table(cells))
    assert [(row["work"], row["policy"]) for row in counted[:3]] == [
        ("fork-exec/64", name) for name in POLICIES
    ]
    for cell, count, end in zip(cells, counted, ended, strict=True):
        assert count["emulated writes"] == cell.counts.emulated_writes
        assert count["entries compared"] == cell.counts.entries
        assert count["idle ones"] == cell.counts.idle_cr3_writes
        assert end["stayed in sync"] == sum(cell.counts.refused.values())
        assert end["wrong accesses"] == int(cell.wrong is not None)
    for cell, row in zip(cells, rows(tables.upkeep_table(cells)), strict=True):
        made = row["pages made"], row["pages zapped"], row["flushes"]
        assert made == (cell.pages_made, cell.pages_zapped, cell.flushes)
        assert row["pages made"] > 0
    assert ended[1]["why"].startswith("upper level ")
    assert sum(row["wrong accesses"] for row in ended) == 1


def test_every_count_has_its_price(cells: list[SyncCell]) -> None:
    """An emulated write is an exit and an instruction, any other fault a fault; added up by hand."""
    for row, cell in zip(rows(tables.costs_table(cells, FIXED)), cells, strict=False):
        count = cell.counts
        others = cell.page_faults - min(count.emulated_writes, count.write_protect_faults)
        wanted = 101 * count.emulated_writes + 10 * others + 1000 * count.syncs + 10000 * count.entries
        wanted += count.cr3_writes + cell.invlpgs + 100_000 * (cell.pages_made + cell.pages_zapped)
        assert row["low"] == row["default"] == row["high"] == wanted + 1_000_000 * cell.flushes


def test_work_that_someone_gets_wrong_costs_nothing_to_compare(cells: list[SyncCell]) -> None:
    assert {row["work"] for row in rows(tables.costs_table(cells, TWO_VCPUS))} == {"fork-exec/64"}


def test_the_cheapest_wins_at_its_prices(cells: list[SyncCell]) -> None:
    (region,) = tables.regions(cells, TWO_VCPUS, "exit", "sync_entry")
    assert region.default == "unsync_children"
    priced = {str(cell.policy): tables.priced(cell) for cell in cells[:3]}
    for row, up in enumerate(region.y):
        for column, across in enumerate(region.x):
            emulated = {name: counts["emulated_writes"] * (across + 1.0) for name, counts in priced.items()}
            total = {
                name: emulated[name]
                + counts["faults"] * 1.2
                + counts["syncs"] * 0.04
                + counts["entries_compared"] * up
                + (counts["cr3_switches"] + counts["invlpgs"]) * across
                + counts["pages_made"]
                + counts["pages_zapped"]
                + counts["flushes"]
                for name, counts in priced.items()
            }
            assert region.winners[row][column] == min(total, key=lambda name: total[name])
    assert rows(tables.shares_table([region]))[0]["share of the plot"].endswith(" %")


def test_policies_that_count_alike_are_one() -> None:
    works = find_works(["workload/text-patching/64/shadow"])
    cells = compare_syncs(["oos_2008", "oos_2008+index=lru"], works)
    (region,) = tables.regions(cells, TWO_VCPUS, "fault", "emulation")
    assert {name for row in region.winners for name in row} == {"oos_2008 = oos_2008+index=lru"}


def test_prices_of_a_plot_reach_beyond_their_range() -> None:
    found = tables.span(TWO_VCPUS, "exit", factor=10, steps=5)
    assert found[0] == pytest.approx(0.03)
    assert found[-1] == pytest.approx(9.6)
    ratios = [more / less for less, more in pairwise(found)]
    assert ratios == pytest.approx([ratios[0]] * 4)
    assert tables.span(TWO_VCPUS.with_(exit=0), "exit")[0] > 0
    with pytest.raises(InputError, match="'across' and 'up' are both 'exit'"):
        tables.two_prices("exit", "exit")


def test_a_policy_has_its_line(cells: list[SyncCell]) -> None:
    found = tables.result_lines(tables.parse_policies("oos_2008, unsync_children"), cells)
    assert [line.partition(":")[0] for line in found] == ["oos_2008", "unsync_children"]
    assert [line.rpartition(", ")[2] for line in found] == ["wrong on 1 of 2", "wrong on 0 of 2"]
    with pytest.raises(InputError, match="'no'"):
        tables.parse_policies("no")


def test_names_are_short() -> None:
    names = ["stream/boot-amd64-4l", "conformance/6.1.192/sh/os-32-00", WORK, "sync/two-modes-64"]
    found = [tables.short(case) for case in find_works(names)]
    assert found == ["boot-amd64-4l", "os-32-00", "fork-exec/64", "sync/two-modes-64"]
