"""One switch after another: what was found, what was not, and where each line leads."""

from __future__ import annotations

import re

import pytest

from mmulab.check.hunt import Hunted
from mmulab.lab.known_bugs import flips as module
from mmulab.lab.known_bugs.flips import flip, flips_chart, flips_places
from mmulab.lab.known_bugs.follow import Followed, Search

# B17 shows in the first op of this scope; B29 needs another sync policy.
SEARCH = Search("6.1.192", ("paths-32",), 0, 60.0)


@pytest.fixture(scope="module")
def flips() -> list[Followed]:
    return [*flip(["B17"], SEARCH), *flip(["B29"], SEARCH._replace(budget=0.5))]


def test_the_chart_says_what_is_only_a_bound(flips: list[Followed]) -> None:
    texts = re.findall(r"<title>([^<]*)</title></rect>", str(flips_chart(flips).svg))
    assert texts[0].startswith("B17: ")
    assert ": > " not in texts[0]
    assert re.search(r"^B29: .*: &gt; 0\.[0-9]$", texts[1])


def test_each_line_leads_to_its_sequence(flips: list[Followed]) -> None:
    places = flips_places(flips, "6.1.192")
    rows = [dict(zip(places.columns, row, strict=True)) for row in places.rows]
    assert [row["found"] for row in rows] == ["yes", "no"]
    assert (rows[0]["ops"], rows[0]["place"]) == ("1", "paths-32")
    assert rows[1]["seconds"].startswith("> ")
    assert rows[1]["ops"] == ""
    html = places.html()
    assert "what the search has just found" in html
    assert "B29: not found in" in html
    places.open(0)
    assert "B17: found in paths-32" in places.view.children[1].children[0].value
    places.open(1)
    assert "B29: not found" in places.view.children[1].children[0].value


def test_every_turn_is_told() -> None:
    told: list[tuple[int, str]] = []
    flip(["B17"], SEARCH, lambda number, one: told.append((number, one.bug.id)))
    assert set(told) == {(0, "B17")}


def test_an_interrupt_leaves_the_rest_out(monkeypatch: pytest.MonkeyPatch, flips: list[Followed]) -> None:
    stopped = Followed(flips[1].bug, Hunted(flips[1].hunted.job, interrupted=True))
    monkeypatch.setattr(module, "follow", lambda bug, search, tell: stopped)
    assert flip(["B29", "B17"], SEARCH) == [stopped]
    assert dict(zip(module._COLUMNS, module._row(stopped), strict=True))["found"] == "interrupted"
