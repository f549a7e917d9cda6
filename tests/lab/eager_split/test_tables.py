"""The tables of the series, in counts."""

from __future__ import annotations

import pytest

from mmulab.errors import InputError
from mmulab.lab.costs import TWO_VCPUS
from mmulab.lab.eager_split.passes import dirty_log_perf, phase
from mmulab.lab.eager_split.tables import (
    Runs,
    causes,
    costs,
    first_pass,
    first_version,
    fourth_version,
    limits,
    parse_numbers,
    parse_setups,
    recovery,
    setups_table,
    share_series,
)

PAGES = 512


@pytest.fixture(scope="module")
def runs() -> Runs:
    return Runs(passes=2)


def test_a_run_is_made_once(runs: Runs) -> None:
    assert runs.run("nested", eager=True) is runs.run("nested", eager=True)
    assert runs.run("nested", eager=True) == dirty_log_perf("nested", eager=True)


def test_the_first_versions_table(runs: Runs) -> None:
    table = first_version(runs, [2])
    assert table.columns[:3] == ("vCPUs", "iter-1 dirty, off", "iter-1 dirty, on")
    assert table.rows == ((2, 2 * PAGES, 0, 0, 2, 0, 2, 0, 0, 2 * PAGES, 2 * PAGES),)


def test_the_fourth_versions_table(runs: Runs) -> None:
    rows = {(row[0], row[1]): row[2:] for row in fourth_version(runs, [1, 2], [100, 5]).rows}
    assert rows[100, 2] == (1024, 1024, 1.0, 0, 2, 0, 2)
    assert rows[5, 1] == (493, 25, round(25 / 493, 3), 0, 1, 0, 1)


def test_each_pass_by_cause(runs: Runs) -> None:
    table = causes(runs, ["nested"], [5])
    assert table.rows == (
        ("nested", 5, "off", 1, PAGES, 1, 492, 0, 493, 0, 493),
        ("nested", 5, "off", 2, PAGES, 0, 19, 25, 44, 0, 44),
        ("nested", 5, "on", 1, PAGES, 0, 0, 25, 25, 0, 25),
        ("nested", 5, "on", 2, PAGES, 0, 0, 25, 25, 0, 25),
    )
    assert share_series(runs, "nested", [5, 100]) == {"off": [493, PAGES], "on": [25, PAGES]}
    labels, measures = first_pass(runs, ["nested"], [5])
    assert labels == ["nested, 5 % written, off", "nested, 5 % written, on"]
    assert measures == {
        "huge write-protected": [1, 0],
        "lower level missing": [492, 0],
        "4K write-protected": [0, 25],
    }


def test_recovery(runs: Runs) -> None:
    for row in recovery(runs, ["tdp_mmu", "nested"], 5).rows:
        assert row[2:] == (1, 0, 0, PAGES, 0, 0, 1, 0, 1)


def test_limits(runs: Runs) -> None:
    rows = {row[0].split(":")[0]: row[1:] for row in limits(runs, 100, huge_pages=3, spare=1).rows}
    assert rows["nothing"] == (3, 0, 0, 0, 3 * PAGES)
    assert rows["shadow pages"] == rows["the host's memory"] == (1, 2, 2, 2 * (PAGES - 1), PAGES)
    assert rows["the CPU, once (-EAGAIN)"] == rows["nothing"]


def test_a_verdict_needs_ranges_that_do_not_overlap(runs: Runs) -> None:
    verdicts = {(row[0], row[2]): row[-1] for row in costs(runs, ["nested"], [100, 5]).rows}
    assert verdicts == {
        ("2 vCPUs", 100): "overlap",
        ("2 vCPUs", 5): "eager",
        ("64 vCPUs", 100): "overlap",
        ("64 vCPUs", 5): "eager",
    }
    free = TWO_VCPUS.with_(fault=0, flush=0)
    (row,) = costs(runs, ["nested"], [100], {"faults cost nothing": free}).rows
    assert row[-1] == "lazy"


def test_an_estimate_is_its_counts_times_its_prices(runs: Runs) -> None:
    (row,) = costs(runs, ["nested"], [5], {"given": TWO_VCPUS.with_(fault=2, split=30, flush=1)}).rows
    enabled, first = (phase(dirty_log_perf("nested", eager=True, percent=5), n) for n in ("enable", "pass 1"))
    assert row[7] == 2 * first.faults + 30 * enabled.splits + enabled.flushes + first.flushes


def test_all_setups_are_explained() -> None:
    assert len(setups_table().rows) == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5,x", "expected numbers of 0 to 100"),
        ("101", "of 0 to 100"),
        ("5,5", "each number once"),
        ("", "expected numbers"),
    ],
)
def test_lists_of_numbers(text: str, says: str) -> None:
    assert parse_numbers("percents", "100, 5", 0, 100) == [100, 5]
    assert parse_numbers("percents", 5, 0, 100) == [5]
    with pytest.raises(InputError, match=says):
        parse_numbers("percents", text, 0, 100)


def test_lists_of_setups() -> None:
    assert parse_setups("nested, shadow") == ["nested", "shadow"]
    with pytest.raises(InputError, match="setup 'none'"):
        parse_setups("none")
