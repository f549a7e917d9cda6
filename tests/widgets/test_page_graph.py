"""Pages of two designs: what the graph says is what the machines did."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from mmulab import events as ev
from mmulab import paths
from mmulab.conform.recording import read_recording
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.design import DESIGNS
from mmulab.lab.cases.build import la57_switch_nested
from mmulab.report.page import remote_references
from mmulab.scenario.record import record
from mmulab.scenario.scenario import Scenario
from mmulab.widgets.page_graph import PageGraph, page_graph, sharing_graph, splits

NS = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def mode_switch() -> Scenario:
    """Tables that PAE paging and then 64-bit paging use."""
    return read_recording(paths.data("conformance/6.1.192/sh/mode-switch.jsonl.xz")).scenario


def graphs(scenario: Scenario, *names: str) -> list[PageGraph]:
    return [page_graph(scenario, DESIGNS[name]) for name in names]


def test_every_lookup_is_counted(mode_switch: Scenario) -> None:
    (graph,) = graphs(mode_switch, "cpu_mode")
    lookups = [
        e
        for e in record(mode_switch, kernel=LINUX_6_1.with_(design=DESIGNS["cpu_mode"])).events
        if isinstance(e, ev.kvm_mmu_get_page)
    ]
    assert sum(graph.pages.values()) == sum(e.created for e in lookups)
    assert sum(graph.found.values()) == sum(not e.created for e in lookups)


def test_links_lead_one_level_down(mode_switch: Scenario) -> None:
    (graph,) = graphs(mode_switch, "passthrough")
    assert graph.links
    for parent, child in graph.links:
        assert graph.facts(parent).level == graph.facts(child).level + 1
        assert {parent, child} <= graph.pages.keys()


def test_a_table_of_two_modes_is_shared_by_one_design_and_not_by_the_other(mode_switch: Scenario) -> None:
    found = splits(*graphs(mode_switch, "passthrough", "cpu_mode"))
    shared = {split.place[0]: split for split in found}
    assert 0x81 in shared
    assert all((len(split.one), len(split.other)) == (1, 2) for split in found)
    assert all(split.told_apart_by == ("efer_lma",) for split in found)
    assert splits(*graphs(mode_switch, "passthrough", "target_level")) == []


def test_the_wrongly_shared_page_of_the_la57_switch() -> None:
    wrong, right = graphs(la57_switch_nested("64", 5), "pre_fix", "passthrough")
    roots = {page for page in right.roots if right.facts(page).guest_mode}
    assert {(gfn, right.facts((gfn, role)).passthrough) for gfn, role in roots} == {
        (0x14, True),
        (0x14, False),
    }
    assert len({page for page in wrong.roots if wrong.facts(page).guest_mode}) == 1
    (split, *alone) = splits(wrong, right)
    assert split.place[:2] == (0x14, 5)
    assert split.told_apart_by == ("passthrough",)
    assert [len(found.one) for found in alone] == [0] * len(alone), "pages that the wrong design never made"


def test_picture_shows_split_pages_twice_in_the_same_place(mode_switch: Scenario) -> None:
    one, other = graphs(mode_switch, "passthrough", "cpu_mode")
    svg = sharing_graph(one, other, title="t")
    assert remote_references(str(svg)) == []
    items = list(ET.fromstring(str(svg)).iter(NS + "text"))
    at = [float(item.get("x", 0)) for item in items if item.text == "gfn 0x81"]
    assert len(at) == 3
    assert at[0] == pytest.approx((at[1] + at[2]) / 2), "the shared page is as wide as the two"
    texts = [item.text for item in items]
    assert texts.count("efer_lma=0") == texts.count("efer_lma=1") == len(splits(one, other))
    assert "D5 cpu_mode: 21 pages, 66 times found again" in texts
    assert all(float(item.get("x", 0)) < svg.width for item in items)


def test_nothing_split_is_a_picture_too(mode_switch: Scenario) -> None:
    svg = sharing_graph(*graphs(mode_switch, "passthrough", "target_level"), title="t")
    texts = [item.text for item in ET.fromstring(str(svg)).iter(NS + "text")]
    assert "D3 target_level: 17 pages, 68 times found again" in texts
    assert not [text for text in texts if text and text.startswith("gfn")]
