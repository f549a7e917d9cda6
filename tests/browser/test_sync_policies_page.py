"""notebooks/sync_policies.ipynb: a page with no network and no script, and its links into the runs."""

from __future__ import annotations

import re
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
CELLS = (
    """
from mmulab.kvm.sync.oos_2008 import oos_2008
from mmulab.lab.cases.works import find_works
from mmulab.lab.sync.view import resynced

(work,) = find_works(["workload/context-switches/64/shadow"])
resynced(oos_2008, work, most=2)
""",
    "print('shown')",
)


@pytest.fixture(scope="module")
def exported(reported: Reports) -> Path:
    """The exported page of little work."""
    return reported("sync_policies").page


@pytest.mark.parametrize("scripts", [True, False])
def test_every_picture_is_visible(offline_page: OpenPage, exported: Path, scripts: bool) -> None:
    opened = offline_page(exported, scripts=scripts)
    seen = opened.pictures("main .figure svg")
    assert [picture.title for picture in seen if not picture.visible] == []
    titles = [picture.title for picture in seen]
    for policy in ("write_protect", "oos_2008", "unsync_children"):
        assert f"{policy}: three tables written, no flush yet" in titles
    assert "The cheapest policy as exit and sync_entry vary" in titles
    assert opened.complaints == []


def test_a_wrong_cell_leads_to_its_steps(offline_page: OpenPage, exported: Path) -> None:
    opened = offline_page(exported, scripts=False)
    matrix = opened.page.locator(".matrix").first
    views = matrix.locator("section.view")
    assert views.filter(visible=True).count() == 0
    matrix.get_by_role("link", name="✗ op 6").first.click()
    view = views.filter(visible=True)
    assert view.count() == 1
    text = view.inner_text()
    assert "sync/second-parent-pae under oos_2008" in text
    while (back := view.locator("label", has_text="Previous").filter(visible=True)).count():
        back.click()
        text += view.inner_text()
    assert "goes out of sync" in text
    assert "we no longer have to worry about multiple roots" in matrix.inner_text()


def test_places_lead_into_their_runs(offline_page: OpenPage, exported: Path) -> None:
    opened = offline_page(exported, scripts=False)
    broken, resynced = opened.page.locator(".places").all()
    broken.get_by_role("link", name="inuse=freed").click()
    assert "in which the MMU fails" in broken.locator("section.view").filter(visible=True).inner_text()
    links = resynced.locator("table").first.get_by_role("link")
    assert links.count() == 2
    links.nth(1).click()
    assert resynced.locator("section.view").filter(visible=True).count() == 1
    assert broken.locator("section.view").filter(visible=True).count() == 0
    resynced.get_by_role("link", name="back to the list").click()
    assert resynced.locator("section.view").filter(visible=True).count() == 0
    ids = opened.ids()
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("width", [1200, 1600])
def test_no_table_is_cut(offline_page: OpenPage, exported: Path, width: int) -> None:
    assert offline_page(exported).cut_tables(width) == []


@pytest.mark.slow
def test_click_in_jupyterlab_opens_the_stepper_where_the_page_came_back(
    chromium: Browser, tmp_path: Path
) -> None:
    source = notebook_of(CELLS, tmp_path / "places.ipynb")
    (tmp_path / "served").mkdir()
    context = chromium.new_context(viewport={"width": 1400, "height": 3000})
    page = context.new_page()
    with jupyterlab(source, tmp_path / "served") as server:
        remote = run_all(page, server, last="shown")
        place = page.get_by_role("button", name=re.compile(r"^op \d+(, helper)?$"))
        assert place.count() == 2
        place.first.click()
        page.get_by_role("button", name="Next ▶").wait_for(timeout=PATIENCE)
        output = page.locator(".jp-OutputArea-output", has=place.first)
        assert "kvm_mmu_sync_page" in output.inner_text()
        assert remote == []
    context.close()
