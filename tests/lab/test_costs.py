"""The cost model: sources, ranges, and that nothing is passed over."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.errors import InputError
from mmulab.lab.costs import MANY_VCPUS, PRICES, TWO_VCPUS, Cost, CostModel, estimate, parse_costs, winners

counts = st.dictionaries(st.sampled_from(sorted(PRICES)), st.integers(0, 10**6))
PAGES, SPLITS = 262_144, 513


@pytest.mark.parametrize("model", [TWO_VCPUS, MANY_VCPUS])
@pytest.mark.parametrize("name", CostModel.names())
def test_a_parameter_has_a_range_and_says_where_from(model: CostModel, name: str) -> None:
    cost: Cost = getattr(model, name)
    assert 0 < cost.low <= cost.default <= cost.high
    assert cost.source.startswith("assumption: ") == cost.assumed
    assert cost.assumed or re.search(r"\d{14}\.\d+-\d", cost.source)


def test_what_is_measured_is_the_published_seconds_over_the_counts() -> None:
    """The seconds are those of the two cover letters; the counts are those of 1 GiB a vCPU."""
    fault, many, split = TWO_VCPUS.fault, MANY_VCPUS.fault, TWO_VCPUS.split
    assert fault.low == pytest.approx(1e6 * (0.311 - 0.059) / PAGES, abs=0.005)
    assert fault.high == pytest.approx(1e6 * 0.373 / PAGES, abs=0.005)
    assert fault.low < 1e6 * 0.367 / PAGES < fault.high
    assert many.low == pytest.approx(1e6 * (16.50 - 0.084) / PAGES, abs=0.05)
    assert many.high == pytest.approx(1e6 * 20.44 / PAGES, abs=0.05)
    assert split.low == pytest.approx(1e6 * (0.854 - 0.086) / (64 * SPLITS), abs=0.05)
    assert split.high == pytest.approx(1e6 * (1.200 - 0.104) / (64 * SPLITS), abs=0.05)


def test_assumptions_stay_below_what_contains_them() -> None:
    assert TWO_VCPUS.exit.high <= TWO_VCPUS.fault.low
    assert TWO_VCPUS.sync_entry.high * 512 <= TWO_VCPUS.split.low + 0.2
    assert TWO_VCPUS.page.high < TWO_VCPUS.split.low


@given(counts, counts)
def test_estimates_add_up(one: dict[str, int], other: dict[str, int]) -> None:
    both = {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
    a, b, c = (estimate(found) for found in (one, other, both))
    for end in range(3):
        assert c[end] == pytest.approx(a[end] + b[end])
    assert a.low <= a.default <= a.high
    assert sum(a.parts.values()) == pytest.approx(a.default)


def test_an_estimate_by_hand() -> None:
    found = estimate({"emulated_writes": 10, "entries_compared": 512, "flushes": 0})
    assert found.default == pytest.approx(10 * (0.6 + 1.0) + 512 * 0.02)
    assert found.low == pytest.approx(10 * 0.6 + 512 * 0.005)
    assert found.parts["flushes"] == 0


def test_a_fixed_parameter_has_no_range() -> None:
    model = TWO_VCPUS.with_(fault=2.0)
    found = estimate({"faults": 3}, model)
    assert (found.low, found.default, found.high) == (6, 6, 6)
    assert model.exit == TWO_VCPUS.exit
    assert model.table()[1][:4] == ("fault", 2.0, 2.0, 2.0)


def test_ranges_that_overlap_are_not_told_apart() -> None:
    ten, eleven, hundred = (estimate({"faults": number}) for number in (10, 11, 100))
    assert ten.overlaps(eleven)
    assert eleven.overlaps(ten)
    assert not ten.overlaps(hundred)
    assert not hundred.overlaps(ten)


def test_who_wins_depends_on_the_prices() -> None:
    """200 emulated writes, or one sync of 512 entries for each 20 of them."""
    compared = {
        "write_protect": {"emulated_writes": 200},
        "unsync": {"write_protect_faults": 10, "syncs": 10, "entries_compared": 5120},
    }
    found = winners(compared, ("emulation", [0.0, 5.0]), ("sync_entry", [0.001, 1.0]))
    assert found == [["unsync", "unsync"], ["write_protect", "write_protect"]]
    cheap = winners(compared, ("emulation", [0.0]), ("exit", [0.0]))
    assert cheap == [["write_protect"]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: estimate({"luck": 1}), "count 'luck': it has no price; priced are exits, "),
        (lambda: TWO_VCPUS.with_(luck=1), "cost 'luck': unknown; the parameters are exit, fault, "),
        (lambda: parse_costs("fault"), "costs 'fault': expected NAME=MICROSECONDS,.. or -"),
        (lambda: parse_costs("luck=1"), "cost 'luck': unknown"),
        (lambda: parse_costs("exit=nan"), "cost 'exit' is nan, expected microseconds"),
        (lambda: TWO_VCPUS.with_(exit=-1), "cost 'exit' is -1, expected microseconds"),
    ],
)
def test_refusals(make: object, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        make()  # type: ignore[operator]


def test_counts_of_the_callers_own() -> None:
    prices = {**PRICES, "descents": {"walk_level": 4}}
    assert estimate({"descents": 2}, prices=prices).default == pytest.approx(8 * 0.04)


def test_prices_are_given_as_text() -> None:
    assert parse_costs("-") == {}
    assert parse_costs("fault=2.5, split=40") == {"fault": 2.5, "split": 40}
