"""The panels show what the recording has, and mark what a step changed."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.conform.recording import read_recording
from mmulab.ftrace.wording import event_text
from mmulab.scenario.record import record
from mmulab.trace.recording import Recording
from mmulab.widgets.blocks import MARK, Panel, Strip, Table, panels_text
from mmulab.widgets.session import Session
from tests.widgets.conftest import UNSYNC


def at_event(recording: Recording, kind: type, number: int = 0) -> tuple[Session, ev.Event]:
    event = int(recording.events.places(kind)[number])
    session = Session(recording, at=recording.number(recording.at(event).moment))
    return session, recording.events[event]


def mapped(recording: Recording) -> tuple[Session, ev.Event]:
    """Return the moment at which the second fault's own spte is set; prefetched ones follow it."""
    session, wanted = at_event(recording, ev.kvm_mmu_spte_requested, 1)
    session.goto(session.at + 1)
    event = session.look().event
    assert isinstance(event, ev.kvm_mmu_set_spte)
    assert event.gfn == wanted.gfn
    return session, event


def panel(session: Session, beginning: str) -> Panel:
    return next(found for found in session.panels() if found.title.startswith(beginning))


def test_moment_names_op_outcome_and_event(unsync: Recording) -> None:
    session, event = at_event(unsync, ev.kvm_mmu_set_spte, 3)
    text = panels_text([session.panels()[0]])
    assert event_text(event) in text
    assert f"event {unsync.moment(session.at).event}" in text
    assert "vCPU 0" in text


def test_wrong_access_stands_out(unsync: Recording) -> None:
    session = Session(unsync)
    assert session.find("wrong")
    (line,) = [line for line in session.panels()[0].lines() if MARK in line]
    assert unsync.verdicts[unsync.moment(session.at).op] in line


def test_walk_has_every_level_and_the_path_its_pages(unsync: Recording) -> None:
    session, event = mapped(unsync)
    guest, host = panel(session, "the guest's tables"), panel(session, "the host's tables")
    tables = [next(block for block in found.blocks if isinstance(block, Table)) for found in (guest, host)]
    assert [[row[0] for row in table.rows] for table in tables] == [["4", "3", "2", "1"]] * 2
    assert tables[0].rows[-1][-1] in ("wux", "w-x", "-ux", "--x")
    assert f"{event.spte:x}" in tables[1].rows[-1]
    assert list(tables[1].marked) == [3]
    assert guest.lines()[-1].strip() == f"→ gpa {event.gfn << 12 | session.look().address & 0xFFF:#x}"
    assert host.lines()[-1].strip() == f"→ gfn {event.gfn:#x}"


def test_entries_of_nested_tables_have_the_names_of_ept() -> None:
    recording = record(read_recording(UNSYNC.parents[1] / "nested-ept/ept-basic-ad.jsonl.xz").scenario)
    session = Session(recording)
    seen = set()
    while session.find("event", "kvm_mmu_paging_element"):
        nested, event = session.look().nested, session.look().event
        assert isinstance(event, ev.kvm_mmu_paging_element)
        if nested is None or (event.level, event.pte) not in [(s.level, s.entry) for s in nested.steps]:
            continue
        table = next(b for b in panel(session, "L1's nested tables").blocks if isinstance(b, Table))
        bits = next(row[-2] for row in table.rows if row[0] == str(event.level))
        names = {0: "R", 1: "W", 2: "X", 6: "IPAT", 7: "PS", 8: "A", 9: "D"}
        assert bits == " ".join(name for bit, name in names.items() if event.pte >> bit & 1)
        (strip,) = [b for b in session.panels()[0].blocks if isinstance(b, Strip)]
        assert {cell.name: cell.text for cell in strip.cells}["X"] == str(event.pte >> 2 & 1)
        seen.add(bits)
    assert {"", "R W X A"} <= seen


def test_page_shows_its_role_and_what_its_parent_has(unsync: Recording) -> None:
    places = unsync.events.places(ev.kvm_mmu_set_spte)
    session, _ = at_event(unsync, ev.kvm_mmu_set_spte, len(places) // 2)
    text = panels_text([panel(session, "shadow page in frame")])
    page = session.look().page
    assert page is not None
    assert f"role {page.page.role:#x}" in text
    assert f"level={page.page.level:x} ({MARK} was {page.page.level + 1:x})" in text
    assert f"frame {page.parents[0].sptep >> 12:#x}" in text


def test_sibling_roles_are_compared() -> None:
    recording = record(read_recording(UNSYNC.with_name("multi-role-64.jsonl.xz")).scenario)
    facts = recording.config.kernel.design.facts
    session = Session(recording)
    seen = 0
    while session.find("event", "kvm_mmu_get_page"):
        look = session.look()
        assert look.page is not None
        for sibling in look.page.siblings:
            seen += 1
            text = panels_text([panel(session, "shadow page in frame")])
            ours, theirs = facts(look.page.page.role), facts(sibling.role)
            differing = [name for name in ours._fields if getattr(ours, name) != getattr(theirs, name)]
            row = [line for line in text.splitlines() if f"frame {sibling.frame:#x}," in line][-1]
            assert all(f"{name} " in row for name in differing)
    assert seen


def test_changed_sptes_old_to_new(unsync: Recording) -> None:
    session, event = at_event(unsync, ev.kvm_mmu_set_spte, 5)
    text = panels_text([panel(session, "shadow entries changed")])
    (change,) = [found for found in session.look().changes if found.sptep == event.sptep]
    assert f"{change.old:x} → {event.spte:x}" in text
    assert f"{MARK} {event.sptep:#x}" in text


def test_no_panel_where_nothing_changed(unsync: Recording) -> None:
    session = Session(unsync)
    assert not session.look().changes
    assert not [found for found in session.panels() if found.title.startswith("shadow entries changed")]


def test_every_panel_but_the_first_has_its_column(unsync: Recording) -> None:
    session, _ = mapped(unsync)
    columns = {found.title.partition(" for ")[0]: found.column for found in session.panels()[1:]}
    assert columns["the guest's tables"] == 1
    assert columns["the host's tables"] == 2
    assert columns["registers and lists"] == columns["statistics"] == 3
    assert set(columns.values()) == {1, 2, 3}


def test_unsync_children_are_listed(unsync: Recording) -> None:
    session = Session(unsync)
    assert session.find("unsync")
    session.goto(session.at + 1)
    text = panels_text([panel(session, "out-of-sync children")])
    marked = [step for step in session.look().path if step.page and step.page.unsync_children]
    assert len(text.splitlines()) == 2 + len(marked)


def test_statistics_mark_what_the_step_changed(unsync: Recording) -> None:
    session = Session(unsync)
    session.find("unsync")
    session.goto(session.at + 1)
    lines = panel(session, "statistics").lines()
    assert any(line.split() == [MARK, "mmu_unsync", "1", "+1"] for line in lines)
    before = Session(unsync, at=session.at - 1)
    assert not any("mmu_unsync" in line for line in panel(before, "statistics").lines())


@pytest.mark.parametrize(
    "name", ["nested48/nested-basic-64", "tdp1/dirtylog-64", "ept0/basic-pae", "sh/mmio-32"]
)
def test_every_moment_has_panels(name: str) -> None:
    recording = record(read_recording(UNSYNC.parents[1] / f"{name}.jsonl.xz").scenario)
    session = Session(recording)
    for number in range(0, len(recording), 23):
        session.goto(number)
        titles = [found.title for found in session.panels()]
        assert len(set(titles)) == len(titles)
        assert titles[-1] == "statistics" or not any(session.look().stats.values())
        assert "registers and lists" in titles
        assert panels_text(session.panels())
