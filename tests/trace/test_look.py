"""Looks say what the recording says."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12
from mmulab.kvm.spte import spte_to_pfn
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.record import record
from mmulab.trace.look import PAGE_EVENTS, TableCopy, take
from mmulab.trace.recording import Recording
from tests.kvm.guest import DATA, GVA, Guest
from tests.trace.conftest import scenario


def events_of(recording: Recording, kind: type) -> list[int]:
    return recording.events.places(kind).tolist()


def test_set_spte_is_the_change_of_its_step(unsync: Recording) -> None:
    places = events_of(unsync, ev.kvm_mmu_set_spte)
    assert len(places) > 10
    for event in places:
        spte = unsync.events[event]
        look = take(unsync, unsync.at(event).moment)
        assert look.event == spte
        changed = {change.sptep: change for change in look.changes}
        assert changed[spte.sptep].new == spte.spte
        assert changed[spte.sptep].old != spte.spte
        assert look.rmap is not None
        assert look.rmap.gfn == spte.gfn
        assert look.page is not None
        assert look.page.page.frame == spte.sptep >> 12


def test_page_of_an_event_is_the_one_it_names(unsync: Recording) -> None:
    for kind in PAGE_EVENTS:
        places = events_of(unsync, kind)
        assert places
        for event in places:
            named = unsync.events[event]
            look = take(unsync, unsync.at(event).moment)
            assert look.page is not None
            page = look.page.page
            assert (page.gfn, page.role, page.root_count) == (named.gfn, named.role, named.root_count)
            assert page.unsync == named.unsync
            assert all(other.gfn == named.gfn and other.frame != page.frame for other in look.page.siblings)


def test_reused_frame_shows_no_old_entries() -> None:
    """A frame that was freed and handed out again is empty, not changed to zero."""
    recording = record(scenario("sh/mmu-pages-limit-64"))
    created = [n for n in events_of(recording, ev.kvm_mmu_get_page) if recording.events[n].created]
    reused = 0
    frames: dict[int, None] = {}
    for event in created:
        look = take(recording, recording.at(event).moment)
        assert look.page is not None
        frame = look.page.page.frame
        reused += frame in frames
        frames[frame] = None
        assert [c for c in look.changes if c.sptep >> 12 == frame and c.new == 0] == []
    assert reused


def test_parents_and_unsync_bitmap(unsync: Recording) -> None:
    event = events_of(unsync, ev.kvm_mmu_unsync_page)[0]
    gone = unsync.events[event]
    look = take(unsync, unsync.moment(unsync.number(unsync.at(event).moment) + 1))
    assert look.page is not None
    marked = [step for step in look.path if step.page is not None and step.page.unsync_children]
    assert marked
    for step in marked:
        assert step.page is not None
        assert bin(step.page.unsync_child_bitmap).count("1") == step.page.unsync_children
    assert gone.unsync is False


def test_statistics_and_outcome_are_the_recordings(unsync: Recording) -> None:
    last = unsync.number(unsync.after(len(unsync.ops) - 2).moment)
    look = take(unsync, unsync.moment(last))
    assert look.stats["pf_taken"] == len(events_of(unsync, ev.kvm_page_fault))
    assert look.outcome == unsync.outcome(len(unsync.ops) - 2)
    assert look.event is None


def test_followed_address(unsync: Recording) -> None:
    op = next(n for n, op in enumerate(unsync.ops) if isinstance(op, ops.Read))
    look = take(unsync, unsync.after(op).moment, address=0x1000)
    assert (look.address, look.path_address) == (0x1000, 0x1000)
    assert look.guest is not None
    assert look.guest.address == 0x1000
    assert take(unsync, unsync.after(op).moment).address == unsync.op(op).gva  # type: ignore[attr-defined]


def test_two_dimensions_follow_the_physical_address() -> None:
    recording = record(scenario("tdp1/dirtylog-64"))
    event = events_of(recording, ev.kvm_page_fault)[-1]
    look = take(recording, recording.at(event).moment)
    assert recording.config.host.tdp
    assert look.guest is not None
    assert look.path_address == look.guest.gpa
    assert recording.events[event].fault_address == look.path_address


@pytest.mark.parametrize("name", ["nested48/nested-fuzz-64-00", "ept0/basic-pae", "sh/mode-switch"])
def test_every_moment_can_be_looked_at(name: str) -> None:
    recording = record(scenario(name))
    for number in range(0, len(recording), 7):
        look = take(recording, recording.moment(number))
        assert look.number == number
        assert TableCopy(recording.visit(look.moment).machine) is not None


@pytest.mark.parametrize("tdp", [False, True])
def test_empty_entries_of_a_new_table_are_no_change(tdp: bool) -> None:
    """Linux 6.12 fills a table with bit 63, and leaves special roots 0."""
    changed, host = {}, HostConfig(tdp=tdp, tdp_mmu=tdp)
    for kernel in (LINUX_6_1, LINUX_6_12):
        guest = Guest("32", behaviours=kernel.behaviours, host=host).map(GVA, DATA)
        copy = TableCopy(guest.machine)
        guest.read(GVA)
        changed[kernel.name] = copy.changes(guest.machine)
    old, new = changed.values()
    assert [change.new for change in new] == [change.new for change in old]
    assert {change.old for change in new if change.page is not None} == {1 << 63}
    assert {change.old for change in old} == {0}


def test_in_smm_the_reverse_map_is_that_of_its_address_space() -> None:
    """One gfn, two memories: the host frame that the look leads to is the one that SMM sees."""
    made = ScenarioBuilder("np", mem=0x800000).slot(0x10000, 0, 0x300000).value(4, 0x300000, 1)
    made.slot(0x10001, 0x300000, 0x1000, 0, 0x500000)
    for op in ("rd s 4 300000", "smm on", "rd s 4 300000"):
        made.op(op)
    recording = record(made.build())
    inside = max(n for n, op in enumerate(recording.ops) if isinstance(op, ops.Read))
    look = take(recording, recording.after(inside).moment)
    assert look.rmap is not None
    assert (look.rmap.gfn, len(look.rmap.sptes)) == (0x300, 1)
    hidden = recording.visit(look.moment).machine.memory.backing + 0x500
    assert spte_to_pfn(look.rmap.sptes[0][1]) == hidden
