"""A session in a recording: where it stands after each order, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.trace.recording import Recording
from mmulab.trace.search import Grain
from mmulab.widgets.session import KEPT, Session


@settings(max_examples=30)
@given(st.data())
def test_steps_on_and_back_meet(unsync: Recording, data: st.DataObject) -> None:
    session = Session(unsync, at=data.draw(st.integers(0, len(unsync) - 1)))
    grain = data.draw(st.sampled_from(list(Grain)))
    start = session.at
    session.step(grain)
    assert start < session.at or session.at == start == session.last or grain is not Grain.EVENT
    arrived = session.at
    session.step(grain, back=True)
    session.step(grain)
    assert session.at == arrived


def test_the_ends_hold(unsync: Recording) -> None:
    for grain in Grain:
        session = Session(unsync)
        session.step(grain, back=True)
        assert session.at == 0
        session.goto(session.last)
        session.step(grain)
        assert session.at == session.last


def test_a_search_keeps_all_it_found_and_goes_to_the_next(unsync: Recording) -> None:
    session = Session(unsync)
    assert session.find("unsync")
    found = session.found.tolist()
    assert session.at == found[0]
    assert session.find("unsync")
    assert session.at == found[1]
    assert session.find("unsync", back=True)
    assert session.at == found[0]
    assert not session.find("unsync", back=True)
    assert session.at == found[0], "nowhere to go: it stays"
    assert not session.find("zap-gfn", "ffffff")
    assert session.found.tolist() == []


def test_breakpoints_are_predicates_over_events(unsync: Recording) -> None:
    def made(event: ev.Event) -> bool:
        return isinstance(event, ev.kvm_mmu_get_page) and event.created

    session = Session(unsync, breakpoints={"made": made})
    stops = []
    while session.run("made"):
        stops.append(session.look().event)
    assert stops == [event for event in unsync.events if made(event)]
    assert session.run("made", back=True)
    with pytest.raises(InputError, match="breakpoint 'found' is unknown; there are: made"):
        session.run("found")


@pytest.mark.parametrize("number", [-1, 10**9])
def test_moments_that_are_not_there(unsync: Recording, number: int) -> None:
    session = Session(unsync, at=3)
    with pytest.raises(InputError, match=f"moment {number}: the recording has 0 to {session.last}"):
        session.goto(number)
    assert session.at == 3
    with pytest.raises(InputError, match="the recording has 0 to"):
        Session(unsync, at=number)


def test_another_address_makes_other_looks(unsync: Recording) -> None:
    session = Session(unsync, at=100)
    as_it_comes = session.look()
    session.address = 0x1000
    followed = session.look()
    assert followed is not as_it_comes
    assert followed.address == 0x1000
    assert session.look() is followed
    session.address = None
    assert session.look().address == as_it_comes.address


def test_looks_are_kept_while_one_goes_back_and_forth(unsync: Recording) -> None:
    session = Session(unsync)
    first = session.look(0)
    for number in range(1, KEPT):
        session.look(number)
    assert session.look(0) is first
    session.look(KEPT)
    assert session.look(0) is not first


def test_panels_show_what_changed_since_the_moment_before(unsync: Recording) -> None:
    event = next(n for n, e in enumerate(unsync.events) if isinstance(e, ev.kvm_mmu_set_spte))
    at = unsync.number(unsync.at(event).moment)
    session = Session(unsync, at=at)
    there = [panel.html() for panel in session.panels()]
    session.goto(at - 1)
    session.panels()
    session.goto(at)
    assert [panel.html() for panel in session.panels()] == there
    assert session.found.dtype == np.int64
