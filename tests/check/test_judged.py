"""Recordings that the oracle has judged: accesses of L2, the walks behind them, the page found wrongly."""

from __future__ import annotations

import pytest

from mmulab.check.judged import record_judged
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.cases.build import LOWER, UPPER, la57_switch_nested
from mmulab.lab.designs.found_wrongly import mark_found_wrongly
from mmulab.trace.file import open_recording, save
from mmulab.widgets.blocks import panels_text
from mmulab.widgets.session import Session

OLD = LINUX_6_1.with_(design=DESIGNS["pre_fix"])
READ = 8
"""The read of L2 after the switch, as `mmulab run` numbers it."""


@pytest.fixture(scope="module")
def session() -> Session:
    scenario = la57_switch_nested("64", 5)
    recording, ops = record_judged(scenario, kernel=OLD)
    mark_found_wrongly(recording, scenario, OLD)
    assert list(recording.verdicts) == [ops[READ]]
    return Session(recording)


def test_search_finds_the_wrong_read_of_l2(session: Session) -> None:
    session.goto(0)
    assert session.find("wrong")
    look = session.look()
    assert (look.op_name, look.event) == (f"op {READ}", None)
    assert (look.registers.guest_mode, look.verdict is not None) == (True, True)
    assert f"expected gpa {UPPER:#x}; reached gpa {LOWER:#x}" in str(look.verdict)
    assert "the page of op 0 is found again in op 7" in str(look.verdict)


def test_both_walks_and_the_page_found_wrongly_stand_there(session: Session) -> None:
    session.goto(0)
    session.find("wrong")
    look = session.look()
    assert look.guest is not None
    assert look.nested is not None
    assert (look.guest.gpa, look.nested.address, look.nested.gpa) == (0x3000, 0x3000, UPPER)
    assert [step.level for step in look.nested.steps] == [5, 4, 3, 2, 1]
    assert (look.path[-1].gfn, look.path_address) == (LOWER >> 12, 0x3000)
    assert look.found_wrongly
    assert look.page is not None
    assert (look.page.page.gfn, look.page.page.level) == (0x14, 5)
    text = "\n".join(panels_text(session.panels()).splitlines())
    assert "L1's nested tables for L2's 0x3000: 5level" in text
    assert "found wrongly: shadow page" in text


def test_a_right_run_has_no_verdict() -> None:
    scenario = la57_switch_nested("64", 5)
    recording, _ = record_judged(scenario)
    mark_found_wrongly(recording, scenario, LINUX_6_1)
    assert (recording.verdicts, recording.found_wrongly) == ({}, {})


def test_ops_are_numbered_as_the_run_prints_them(session: Session) -> None:
    recording = session.recording
    names = [recording.name_of_op(op) for op in range(len(recording.ops))]
    assert names[:4] == ["op -1", "op 0, helper", "op 0", "op 1"]
    assert names[-1] == "op 10"


def test_a_file_keeps_what_was_judged(session: Session, tmp_path: object) -> None:
    path = f"{tmp_path}/a.mmr"
    save(session.recording, path)
    again = open_recording(path)
    assert again.found_wrongly == session.recording.found_wrongly
    assert again.name_of_op(11) == session.recording.name_of_op(11)
    assert again.verdicts == session.recording.verdicts
