"""What counts may mean in time: parameters with a range and a source each, and an estimate with both ends.

The model counts and times nothing. To say whether ten emulated writes weigh
more than a sync of 512 entries one has to price them, and prices differ by processor, by kernel and by
how many vCPUs want one lock. So each parameter has a low end, a default and a
high end, in microseconds, and says where they come from: a published measurement, taken apart by the counts
that the model finds for it, or an assumption, named as such. An estimate has a
low and a high end too: two estimates whose ranges overlap are not told apart.

The measurements are those of the eager-splitting series, ``dirty_log_perf_test`` with 1 GiB a vCPU, that
is 262,144 small pages in 513 huge ones (512 of 2 MiB, one of 1 GiB): its first version
(20220203010051.2813563-1) for one table of the host, its fourth (20220422210546.458943-1) for L2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

from mmulab.errors import InputError, quoted

__all__ = [
    "MANY_VCPUS",
    "PRICES",
    "TWO_VCPUS",
    "Cost",
    "CostModel",
    "Estimate",
    "estimate",
    "parse_costs",
    "winners",
]


class Cost(NamedTuple):
    """One parameter, in microseconds.

    Attributes
    ----------
    low, default, high : float
    source : str
        Message-Id of a measurement and how it was taken apart, or why the range is what it is.
    assumed : bool
        Nobody has measured it for this purpose.
    """

    low: float
    default: float
    high: float
    source: str
    assumed: bool


def _assumed(low: float, default: float, high: float, why: str) -> Cost:
    return Cost(low, default, high, f"assumption: {why}", assumed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Prices of what KVM and the processor do.

    Attributes
    ----------
    exit : Cost
        Leaving the guest and going back, with nothing in between.
    fault : Cost
        A page fault under the MMU lock, exit and access again included.
    fast_fault : Cost
        One that needs no lock (``fast_page_fault``).
    emulation : Cost
        Decoding and executing one instruction in KVM.
    sync_entry : Cost
        Comparing one entry of a guest table with its spte.
    walk_level : Cost
        Reading one level of a guest's table.
    page : Cost
        Making a shadow page, or taking one apart.
    flush : Cost
        A flush of the TLBs, kicking the other vCPUs included.
    split : Cost
        Splitting one huge page into 512.
    """

    exit: Cost
    fault: Cost
    fast_fault: Cost
    emulation: Cost
    sync_entry: Cost
    walk_level: Cost
    page: Cost
    flush: Cost
    split: Cost

    def with_(self, **defaults: float) -> Self:
        """Return the model with some parameters fixed: their range shrinks to one number.

        Raises
        ------
        InputError
            No such parameter, or a negative number.
        """
        changes = {}
        for name, value in defaults.items():
            if name not in self.names():
                raise InputError(f"cost '{name}': unknown; the parameters are {', '.join(self.names())}")
            if not 0 <= value < float("inf"):
                raise InputError(f"cost '{name}' is {value}, expected microseconds, 0 or more")
            changes[name] = Cost(value, value, value, "given", assumed=True)
        return replace(self, **changes)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the parameters."""
        return tuple(field.name for field in fields(cls))

    def table(self) -> list[tuple[str, float, float, float, str]]:
        """Return name, low end, default, high end and source of each."""
        return [(name, *getattr(self, name)[:4]) for name in self.names()]


TWO_VCPUS = CostModel(
    exit=_assumed(0.3, 0.6, 0.96, "a fault contains one, so it costs less than the cheapest fault"),
    fault=Cost(
        0.96,
        1.2,
        1.42,
        "2 vCPUs, first pass, all written: (0.311 s - 0.059 s) / 262,144 with the legacy MMU, "
        "0.373 s / 262,144 with ept=N (20220203010051.2813563-1); L2's 0.367 s / 262,144 lies between",
        assumed=False,
    ),
    fast_fault=_assumed(0.3, 0.9, 1.42, "an exit at least, a fault with little contention at most"),
    emulation=_assumed(0.3, 1.0, 3.0, "some hundred to some thousand instructions of the host"),
    sync_entry=_assumed(0.005, 0.02, 0.046, "less than to make an entry of a split: 23.4 us / 512"),
    walk_level=_assumed(0.01, 0.04, 0.15, "one read of guest memory, with a miss of the cache or without"),
    page=_assumed(0.3, 1.0, 5.0, "clearing 4 KiB, the hash, the lists; a split does it too, and more"),
    flush=_assumed(0.2, 1.0, 5.0, "the own TLB at the low end, an interrupt of other CPUs at the high one"),
    split=Cost(
        23.4,
        28.0,
        33.4,
        "dirty logging turned on, on - off: (0.854 s - 0.086 s) / (64 x 513) for L2 "
        "(20220422210546.458943-1), (1.200 s - 0.104 s) / (64 x 513) with the legacy MMU "
        "(20220203010051.2813563-1)",
        assumed=False,
    ),
)
"""Hardly anybody waits for the MMU lock."""
MANY_VCPUS = replace(
    TWO_VCPUS,
    fault=Cost(
        62.6,
        70.0,
        78.0,
        "64 vCPUs, first pass, all written: (16.50 s - 0.084 s) / 262,144 with the legacy MMU "
        "(20220203010051.2813563-1), 20.44 s / 262,144 for L2 (20220422210546.458943-1)",
        assumed=False,
    ),
)
"""64 vCPUs fault at once: a fault is a wait for the MMU lock before all."""

PRICES: dict[str, dict[str, int]] = {
    "exits": {"exit": 1},
    "cr3_switches": {"exit": 1},
    "invlpgs": {"exit": 1},
    "emulated_writes": {"exit": 1, "emulation": 1},
    "write_protect_faults": {"fault": 1},
    "faults": {"fault": 1},
    "fast_faults": {"fast_fault": 1},
    "huge_write_protect": {"fault": 1},
    "not_present": {"fault": 1},
    "write_protect": {"fault": 1},
    "syncs": {"walk_level": 1},
    "entries_compared": {"sync_entry": 1},
    "walk_levels": {"walk_level": 1},
    "pages_made": {"page": 1},
    "pages_zapped": {"page": 1},
    "flushes": {"flush": 1},
    "splits": {"split": 1},
}
"""What each count is made of: parameter to how often. A sync is its entries, and finding the page."""


class Estimate(NamedTuple):
    """An overhead, in microseconds.

    Attributes
    ----------
    low, default, high : float
    parts : dict of str to float
        The default, by count.
    """

    low: float
    default: float
    high: float
    parts: dict[str, float]

    def overlaps(self, other: Estimate) -> bool:
        """Whether the ranges share a point, so that nobody can say which is less."""
        return self.low <= other.high and other.low <= self.high


def parse_costs(text: str) -> dict[str, float]:
    """Return the parameters that a list fixes, ``fault=2.5,split=40``; ``-`` fixes none.

    Raises
    ------
    InputError
        A word that is no ``NAME=MICROSECONDS``.
    """
    found: dict[str, float] = {}
    for word in text.split(",") if text != "-" else []:
        name, _, value = word.strip().partition("=")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise InputError(f"costs '{quoted(text)}': expected NAME=MICROSECONDS,.. or -") from error
    TWO_VCPUS.with_(**found)
    return found


def estimate(
    counts: Mapping[str, int],
    model: CostModel = TWO_VCPUS,
    prices: Mapping[str, Mapping[str, int]] = PRICES,
) -> Estimate:
    """Return what counts may cost.

    Parameters
    ----------
    counts : mapping of str to int
        By the names of `prices`.
    model : CostModel
    prices : mapping
        Further counts of the caller's may be added.

    Raises
    ------
    InputError
        A count without a price: nothing is passed over.
    """
    for name in counts:
        if name not in prices:
            raise InputError(f"count '{name}': it has no price; priced are {', '.join(prices)}")
    ends = [
        {
            name: number * sum(times * getattr(model, cost)[end] for cost, times in prices[name].items())
            for name, number in counts.items()
        }
        for end in range(3)
    ]
    low, default, high = (sum(parts.values()) for parts in ends)
    return Estimate(low, default, high, ends[1])


def winners(
    counts: Mapping[str, Mapping[str, int]],
    x: tuple[str, Sequence[float]],
    y: tuple[str, Sequence[float]],
    model: CostModel = TWO_VCPUS,
) -> list[list[str]]:
    """Return the cheapest by name where two parameters vary, the others being at their defaults.

    Parameters
    ----------
    counts : mapping of str to mapping
        Counts by the name of what is compared; the first one wins a draw.
    x, y : (str, sequence of float)
        A parameter's name and its values.

    Returns
    -------
    list of list of str
        A row for each value of `y`.
    """

    def cheapest(across: float, up: float) -> str:
        fixed = model.with_(**{x[0]: across, y[0]: up})
        return min(counts, key=lambda name: estimate(counts[name], fixed).default)

    return [[cheapest(across, up) for across in x[1]] for up in y[1]]
