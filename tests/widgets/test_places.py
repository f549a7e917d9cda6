"""Places: each can be opened, in JupyterLab and on a page."""

from __future__ import annotations

import re
from types import SimpleNamespace

import ipywidgets
import pytest

from mmulab.report.page import remote_references
from mmulab.widgets.places import Places

ROWS = [("op 3", "0x10"), ("op <7>", "0x11")]


@pytest.fixture
def opened() -> list[int]:
    return []


@pytest.fixture
def places(opened: list[int]) -> Places:
    def live(number: int) -> SimpleNamespace:
        opened.append(number)
        return SimpleNamespace(widget=ipywidgets.HTML(f"view {number}"))

    return Places(["where", "table"], ROWS, still=lambda n: f"<p>view of {n}</p>", live=live, name="run")


def test_a_link_leads_to_each_view(places: Places) -> None:
    html = places.html()
    links = re.findall(r'href="#(plc\w+-\d+)">([^<]*)<', html)
    assert [text for _, text in links] == ["op 3", "op &lt;7&gt;"]
    for number, (anchor, _) in enumerate(links):
        assert f'<section class="view" id="{anchor}"><p>view of {number}</p>' in html
    assert len(set(re.findall(r'id="([^"]+)"', html))) == 3
    assert remote_references(html) == []
    assert "<script" not in html


def test_a_button_opens_its_view(places: Places, opened: list[int]) -> None:
    assert opened == []
    places.buttons[1].click()
    assert opened == [1]
    title, view = places.view.children
    assert "op &lt;7&gt;, 0x11" in title.value
    assert view.value == "view 1"
    assert "2" in repr(places)
    bundle = places._repr_mimebundle_()
    assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
