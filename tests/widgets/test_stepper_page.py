"""The page that steps without a kernel: what is in it, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmulab.errors import InputError
from mmulab.trace.recording import Recording
from mmulab.trace.search import find
from mmulab.widgets.blocks import arranged
from mmulab.widgets.session import Session
from mmulab.widgets.stepper_page import stepper_page, write_stepper_page


def steps_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="steps">(.*?)</script>', page, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_page_holds_the_panels_of_every_moment(unsync: Recording) -> None:
    counted: list[int] = []
    page = stepper_page(unsync, title="a <title>", first=50, last=90, progress=counted.append)
    data = steps_of(page)
    assert len(data["steps"]) == 41 == counted[-1]
    for number in (50, 67, 90):
        shown = [data["panels"][n] for n in data["steps"][number - 50]["panels"]]
        assert shown == [[panel.column, panel.html()] for panel in Session(unsync, at=number).panels()]
    assert data["finds"]["unsync"] == [n - 50 for n in find(unsync, "unsync").tolist() if 50 <= n <= 90]
    assert len(data["panels"]) < sum(len(step["panels"]) for step in data["steps"]) * 0.7
    assert "<title>a &lt;title&gt;</title>" in page
    assert "default-src 'none'" in page


def test_first_step_shows_without_a_script(unsync: Recording) -> None:
    page = stepper_page(unsync, first=60, last=70, at=67)
    body = page.split('id="body">')[1].split("<script")[0]
    panels = Session(unsync, at=67).panels()
    assert body.startswith(arranged([(panel.column, panel.html()) for panel in panels]))
    assert "This is moment 67; the others need scripts" in page
    assert steps_of(page)["at"] == 7


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"first": 5, "last": 4}, "moments 5 to 4: the recording has 0 to"),
        ({"last": 10**6}, "the recording has 0 to"),
        ({"first": 5, "last": 9, "at": 4}, "moment 4: the page has 5 to 9"),
        ({"first": 5, "last": 9, "at": 10}, "moment 10: the page has 5 to 9"),
    ],
)
def test_no_such_moments(unsync: Recording, options: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        stepper_page(unsync, **options)


def test_too_long(unsync: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmulab.widgets.stepper_page.MOST", 20)
    with pytest.raises(InputError, match="21 moments are too many for a page; name a part of at most 20"):
        stepper_page(unsync, last=20)


def test_written_whole_or_not_at_all(unsync: Recording, tmp_path: Path) -> None:
    write_stepper_page(unsync, tmp_path / "a.html", last=3)
    assert (tmp_path / "a.html").read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(InputError, match="cannot be written"):
        write_stepper_page(unsync, tmp_path / "none" / "a.html", last=3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
