"""The density of events along a run: every event once, faults among them, places where they lie."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mmulab import events as ev
from mmulab.trace.recording import Recording
from mmulab.trace.search import find
from mmulab.widgets.density import BINS, Density


def test_every_event_is_counted_once(unsync: Recording) -> None:
    density = Density(unsync)
    assert density.events.sum() == len(unsync.events)
    assert density.faults.sum() == sum(isinstance(e, ev.kvm_page_fault) for e in unsync.events)
    assert np.all(density.faults <= density.events)
    assert len(density.events) == BINS


def test_bins_are_stretches_of_moments(unsync: Recording) -> None:
    """The k-th of all moments lies in bin k * bins / moments."""
    density = Density(unsync)
    total = len(unsync)
    counted = np.zeros(BINS, int)
    for number in range(total):
        if unsync.moment(number).event is not None:
            counted[min(number * BINS // total, BINS - 1)] += 1
    assert density.events.tolist() == counted.tolist()


def test_shares_rise_from_one_end_to_the_other(unsync: Recording) -> None:
    density = Density(unsync)
    shares = [density.share(number) for number in range(len(unsync))]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.02
    assert 0.98 < shares[-1] < 1
    middle = density.share((len(unsync) - 1) // 2)
    assert middle == pytest.approx(0.5, abs=0.01)


def triangles(markup: str) -> list[float]:
    return [float(x) for x in re.findall(r'<polygon points="([\d.]+),', markup)]


def test_marks_lie_at_their_moments_and_near_ones_are_one(unsync: Recording) -> None:
    density = Density(unsync)
    found = find(unsync, "unsync")
    drawn = triangles(density.picture(None, found).markup)
    assert 0 < len(drawn) <= len(found)
    places = [760 * density.share(number) for number in found.tolist()]
    assert all(min(abs(x - place) for place in places) < 4 for x in drawn)
    assert all(min(abs(x - place) for x in drawn) < 4 for place in places)
    assert triangles(density.picture(None, np.array([5, 5, 5])).markup) == drawn[:0] + triangles(
        density.picture(None, np.array([5])).markup
    )


def test_the_place_is_told_and_drawn(unsync: Recording) -> None:
    density = Density(unsync)
    shown, still = density.picture(7), density.picture(None)
    assert shown.title.startswith(f"moment 7 of {len(unsync) - 1}: ")
    assert not still.title.startswith("moment")
    assert shown.markup.count("<polyline") == still.markup.count("<polyline") + 1


def test_a_stretch_counts_its_own_events_only(unsync: Recording) -> None:
    density = Density(unsync, 50, 90)
    moments = [unsync.moment(number).event for number in range(50, 91)]
    assert density.events.tolist() == [event is not None for event in moments]
    faults = [event for event in moments if event is not None]
    assert density.faults.sum() == sum(isinstance(unsync.events[at], ev.kvm_page_fault) for at in faults) > 0
    assert (density.share(50), density.share(70)) == (0.5 / 41, 0.5)
