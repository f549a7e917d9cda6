"""The picture of what remembers pages that are out of sync: what it draws is what the machine has."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from mmulab.kvm.sync.find import find_sync
from mmulab.kvm.sync.oos_state import OosState
from mmulab.lab.sync.picture import stopped
from mmulab.report.page import remote_references
from mmulab.widgets.bookkeeping import bookkeeping_picture

NS = "{http://www.w3.org/2000/svg}"
POLICIES = ("write_protect", "oos_2008", "oos_2008+globals=list", "unsync_children")


def drawing(policy: str) -> tuple[list[str], list[ET.Element]]:
    """Return the texts and the thick lines of a policy's picture."""
    svg = bookkeeping_picture(stopped(find_sync(policy)), title="t")
    assert remote_references(str(svg)) == []
    root = ET.fromstring(str(svg))
    lines = [line for line in root.iter(NS + "polyline") if line.get("stroke-width") == "3"]
    return [text.text or "" for text in root.iter(NS + "text")], lines


@pytest.mark.parametrize("policy", POLICIES)
def test_every_unsync_page_is_named_and_nothing_else(policy: str) -> None:
    kvm = stopped(find_sync(policy)).kvm
    texts, _ = drawing(policy)
    unsync = [page.gfn for page in kvm.pages.values() if page.unsync]
    assert len(unsync) == (0 if policy == "write_protect" else 3)
    assert texts.count("out of sync") == len(unsync)
    for gfn in unsync:
        assert f"gfn {gfn:#x}" in texts


def test_a_parent_says_how_many_are_below_and_each_bit_is_a_thick_line() -> None:
    texts, lines = drawing("unsync_children")
    kvm = stopped(find_sync("unsync_children")).kvm
    marked = [page for page in kvm.pages.values() if page.unsync_children]
    assert sorted(text for text in texts if text.startswith("unsync_children")) == sorted(
        f"unsync_children {page.unsync_children}" for page in marked
    )
    in_key = 1
    assert len(lines) == sum(page.unsync_children for page in marked) + in_key


@pytest.mark.parametrize(("policy", "free"), [("oos_2008", 6), ("oos_2008+globals=list", 0)])
def test_lists_are_dashed_and_the_array_has_its_places(policy: str, free: int) -> None:
    texts, lines = drawing(policy)
    state = stopped(find_sync(policy)).kvm.sync_state
    assert isinstance(state, OosState)
    assert texts.count("free") == state.global_pages.count(-1) == free
    assert "2 on its list" in texts
    assert [line.get("stroke-dasharray") for line in lines] == ["6 4"] * 3


def test_nothing_is_remembered_where_all_is_protected() -> None:
    texts, lines = drawing("write_protect")
    assert lines == []
    assert not {"free", "a bit of the parent's bitmap", "on the list of its root"} & {*texts}
