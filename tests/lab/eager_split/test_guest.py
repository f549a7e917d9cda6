"""Faults of a logged nested guest, by kind."""

from __future__ import annotations

import pytest

from mmulab.lab.eager_split.guest import HUGE, count_faults, eager_split, is_written

PAGES = HUGE >> 12


@pytest.mark.parametrize("percent", [0, 1, 5, 50, 99, 100])
def test_the_share_is_met_and_spread_evenly(percent: int) -> None:
    written = [page for page in range(1000) if is_written(page, percent)]
    assert len(written) == 10 * percent
    for first in range(0, 1000, 100):
        assert len([page for page in written if first <= page < first + 100]) == percent


def test_the_shape_of_the_series_figures() -> None:
    """As many faults if all is written, and the share of the written pages if the rest is read."""
    table = {(row.written_percent, row.eager): row for row in eager_split((100, 50, 5))}
    for percent in (100, 50, 5):
        lazy, eager = table[percent, False], table[percent, True]
        written = [page for page in range(PAGES) if is_written(page, percent)]
        # What is read before the first write is still mapped; nothing is afterwards.
        assert lazy[2:5] == (1, PAGES - 1 - written[0], 0)
        assert eager[2:5] == (0, 0, len(written))
        assert eager.dirty == len(written)
        assert lazy.dirty == PAGES - written[0]
        assert (lazy.splits, lazy.flushes) == (0, 1)
        assert (eager.splits, eager.flushes) == (2, 2)


@pytest.mark.parametrize("l1", ["32", "pae", "57"])
def test_the_form_of_the_nested_tables_does_not_matter(l1: str) -> None:
    for eager in (False, True):
        assert count_faults(10, eager=eager, huge_pages=2, l1=l1) == count_faults(
            10, eager=eager, huge_pages=2
        )
