"""Figures of shadow pages: what is drawn is what the machine has."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import bqplot
import numpy as np
import pytest

from mmulab.conform.recording import read_recording
from mmulab.kvm.spte import is_shadow_present_pte
from mmulab.machine.machine import Machine
from mmulab.report.page import remote_references
from mmulab.scenario.record import record
from mmulab.trace.recording import Recording
from mmulab.widgets.figures import occupancy, page_tree, sharing, timeline, tree_rows
from tests.widgets.conftest import UNSYNC

NS = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def shared() -> Recording:
    return record(read_recording(UNSYNC.with_name("shared-pt-64.jsonl.xz")).scenario)


@pytest.fixture
def machine(shared: Recording) -> Machine:
    """The machine before it is torn down."""
    return shared.after(len(shared.ops) - 2).machine


def texts(svg: object) -> list[str]:
    return [item.text or "" for item in ET.fromstring(str(svg)).iter(NS + "text")]


def test_tree_has_every_page_once_in_full(machine: Machine) -> None:
    rows = tree_rows(machine)
    full = [row.frame for row in rows if row.state != "again" and row.frame in machine.kvm.pages]
    assert sorted(full) == sorted(machine.kvm.pages)
    for row in rows:
        if row.above >= 0:
            above = rows[row.above]
            assert above.depth == row.depth - 1
            parents = [sptep >> 12 for head in machine.kvm.pages[row.frame].parent_ptes for sptep in head]
            assert above.frame in parents
    again = [row for row in rows if row.state == "again"]
    assert again, "this guest shares a table"


def test_tree_figure(machine: Machine) -> None:
    figure = page_tree(machine)
    labels = [row.label for row in tree_rows(machine)]
    assert [text for text in texts(figure.svg) if text in labels] == labels
    kinds = {type(mark) for mark in figure.widget.marks}
    assert kinds == {bqplot.Lines, bqplot.Scatter, bqplot.Label}, "bqplot's Graph does not update"
    assert remote_references(str(figure.svg)) == []


def test_occupancy_counts_entries(machine: Machine) -> None:
    frame = next(frame for frame, sp in machine.kvm.pages.items() if sp.level == 1)
    figure = occupancy(machine, frame)
    present = sum(map(is_shadow_present_pte, machine.memory.frames[frame].tolist()))
    tips = [item.text or "" for item in ET.fromstring(str(figure.svg)).iter(NS + "title")]
    assert sum(tip.endswith(("page", "table", "MMIO")) for tip in tips) == present > 0
    assert sum(tip.endswith("empty") for tip in tips) == 512 - present


def test_timeline_counts_every_event(shared: Recording) -> None:
    figure = timeline(shared)
    tops = [np.asarray(mark.y) for mark in figure.widget.marks]
    assert max(top.sum() for top in tops) == len(shared.events)


def test_sharing_marks_gfns_of_several_roles(machine: Machine) -> None:
    found = texts(sharing(machine).svg)
    gfns = [sp.gfn for sp in machine.kvm.pages.values() if sp.has_gptes]
    assert {f"{gfn:#x}" for gfn in gfns} <= set(found)
    assert len(set(gfns)) < len(gfns)


def test_nothing_to_share(shared: Recording) -> None:
    assert "no guest table is shadowed" in " ".join(texts(sharing(shared.begin()).svg))
