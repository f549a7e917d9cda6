"""Searching in columns finds what going through the events finds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.scenario.record import record
from mmulab.trace.recording import Recording
from mmulab.trace.search import SEARCHES, Grain, find, neighbour, run_to, step, stops
from tests.trace.conftest import scenario


def by_hand(recording: Recording, wanted: Callable[[ev.Event], bool]) -> list[int]:
    return [event + recording.op_of(event) for event, e in enumerate(recording.events) if wanted(e)]


@pytest.mark.parametrize(
    ("what", "argument", "wanted"),
    [
        ("unsync", "", lambda e: isinstance(e, ev.kvm_mmu_unsync_page)),
        ("zap-gfn", "26", lambda e: isinstance(e, ev.kvm_mmu_prepare_zap_page) and e.gfn == 0x26),
        ("page-gfn", "0x20", lambda e: isinstance(e, ev.kvm_mmu_get_page) and e.gfn == 0x20),
        ("spte-gfn", "101", lambda e: isinstance(e, ev.kvm_mmu_set_spte) and e.gfn == 0x101),
        ("fault", "", lambda e: isinstance(e, ev.kvm_page_fault)),
        ("flush", "", lambda e: type(e).__name__.startswith("kvm_flush_remote_tlbs")),
        ("event", "drop_spte", lambda e: isinstance(e, ev.drop_spte)),
        ("gfn", "26", lambda e: getattr(e, "gfn", None) == 0x26),
    ],
)
def test_found_as_by_hand(
    unsync: Recording, what: str, argument: str, wanted: Callable[[ev.Event], bool]
) -> None:
    found = find(unsync, what, argument).tolist()
    assert found == by_hand(unsync, wanted)
    assert found


def test_passthrough_roles() -> None:
    recording = record(scenario("nested57/nested-64-l2-64"))
    facts = recording.config.kernel.design.facts
    wanted = by_hand(recording, lambda e: isinstance(e, ev.kvm_mmu_get_page) and facts(e.role).passthrough)
    assert find(recording, "passthrough").tolist() == wanted
    assert wanted


def test_wrong_accesses_are_ends_of_ops(unsync: Recording) -> None:
    moments = [unsync.moment(number) for number in find(unsync, "wrong").tolist()]
    assert [moment.op for moment in moments] == sorted(unsync.verdicts)
    assert all(moment.event is None for moment in moments)


@pytest.mark.parametrize("what", SEARCHES)
def test_every_search_runs(unsync: Recording, what: str) -> None:
    argument = {"gfn": "20", "name": "kvm_exit", "": ""}[SEARCHES[what].argument]
    found = find(unsync, what, argument).tolist()
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("what", "argument", "says"),
    [
        ("nothing", "", "search 'nothing' is unknown; there are unsync, "),
        ("zap-gfn", "", "search 'zap-gfn': it needs a gfn besides, got ''"),
        ("unsync", "20", "search 'unsync': it needs nothing besides, got '20'"),
        ("zap-gfn", "xyz", "gfn 'xyz' is no hexadecimal number"),
        ("event", "kvm_none", "event 'kvm_none' is unknown; "),
    ],
)
def test_bad_searches_are_refused(unsync: Recording, what: str, argument: str, says: str) -> None:
    with pytest.raises(InputError) as raised:
        find(unsync, what, argument)
    assert str(raised.value).startswith(says)


@pytest.mark.parametrize("grain", Grain)
def test_steps_go_back_as_they_came(unsync: Recording, grain: Grain) -> None:
    way = [0]
    while (following := step(unsync, way[-1], grain)) != way[-1]:
        way.append(following)
    assert way[-1] == len(unsync) - 1
    back = [way[-1]]
    while (before := step(unsync, back[-1], grain, back=True)) != back[-1]:
        back.append(before)
    assert back[-1] == 0
    stop = stops(unsync, grain)
    places = list(range(len(unsync))) if stop is None else stop.tolist()
    assert set(way) == set(back) == {0, len(unsync) - 1, *places}


def test_neighbours() -> None:
    import numpy as np

    places = np.array([3, 5, 9])
    assert [neighbour(places, at) for at in (0, 3, 8, 9)] == [3, 5, 9, None]
    assert [neighbour(places, at, back=True) for at in (3, 4, 9, 99)] == [None, 3, 5, 9]


def read_only(event: ev.Event) -> bool:
    return isinstance(event, ev.kvm_mmu_set_spte) and not event.spte & 2


def test_predicate_of_the_readers_own(unsync: Recording) -> None:
    wanted = by_hand(unsync, read_only)
    found, at = [], 0
    while at := run_to(unsync, at, read_only) or 0:
        found.append(at)
    assert found == wanted
    assert run_to(unsync, wanted[-1], read_only, back=True) == wanted[-2]
    assert run_to(unsync, 5, lambda event: False) is None
