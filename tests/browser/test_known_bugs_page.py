"""notebooks/known_bugs.ipynb: a page with no network and no script, and its links to what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.lab import PATIENCE, jupyterlab, notebook_of, run_all
from tests.reported import Reports

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]
NAME = "known_bugs"
CELLS = (
    """
from mmulab.lab.known_bugs.follow import Search
from mmulab.lab.known_bugs.view import BugPage

page = BugPage(Search("6.1.192", ("paths-32",), 0, 20.0), "found").search("B28")
page.chooser
""",
    "page.words",
    "page.stepper",
    "print('shown')",
)


@pytest.fixture(scope="module")
def exported(reported: Reports) -> Path:
    """The exported page of a short search."""
    return reported(NAME).page


@pytest.mark.parametrize("scripts", [True, False])
def test_every_picture_is_visible(offline_page: OpenPage, exported: Path, scripts: bool) -> None:
    opened = offline_page(exported, scripts=scripts)
    seen = opened.pictures("main .figure svg")
    assert [picture.title for picture in seen if not picture.visible] == []
    titles = [picture.title for picture in seen]
    for title in ("states so far", "random ops so far", "by place; hatched: where it was found"):
        assert sum(title in known for known in titles) == 1, title
    assert "Time to find each bug; hatched: not found in this time" in titles
    assert opened.complaints == []


def test_a_line_leads_to_the_sequence_that_was_found(offline_page: OpenPage, exported: Path) -> None:
    opened = offline_page(exported, scripts=False)
    places = opened.page.locator(".places").first
    views = places.locator("section.view")
    assert views.filter(visible=True).count() == 0
    places.get_by_role("link", name="B17").click()
    text = views.filter(visible=True).inner_text()
    assert "what the search has just found" in text
    assert "op 0 has ended, and it is wrong" in text
    places.get_by_role("link", name="B28").click()
    text = views.filter(visible=True).inner_text()
    assert "B28: not found in" in text
    assert "has ended, and it is wrong" not in text
    ids = opened.ids()
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("width", [1200, 1600])
def test_no_table_is_cut(offline_page: OpenPage, exported: Path, width: int) -> None:
    assert offline_page(exported).cut_tables(width) == []


@pytest.mark.slow
def test_another_bug_is_chosen_in_jupyterlab(chromium: Browser, tmp_path: Path) -> None:
    source = notebook_of(CELLS, tmp_path / "bugs.ipynb")
    (tmp_path / "served").mkdir()
    context = chromium.new_context(viewport={"width": 1400, "height": 3000})
    page = context.new_page()
    with jupyterlab(source, tmp_path / "served") as server:
        remote = run_all(page, server, last="shown")
        page.get_by_text("B28: not found in").wait_for(timeout=PATIENCE)
        page.get_by_role("combobox", name="bug").select_option(index=14)
        page.get_by_role("button", name="Search").click()
        page.get_by_text("B17: found in paths-32").first.wait_for(timeout=PATIENCE)
        page.get_by_text("Without B17: the same outcome").wait_for(timeout=PATIENCE)
        page.get_by_role("button", name="Next ▶").wait_for(timeout=PATIENCE)
        assert remote == []
    context.close()
