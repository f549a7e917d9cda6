"""notebooks/role_validity.ipynb: a page with no network and no script, and its lists in a real JupyterLab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab.lab.validity.matrix import markers, witnesses
from tests.browser.conftest import look
from tests.browser.lab import PATIENCE, jupyterlab, run_all, wait_until_idle
from tests.reported import Reports

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "role_validity.ipynb"


@pytest.fixture(scope="module")
def exported(reported: Reports) -> Path:
    """The exported page."""
    return reported("role_validity").page


@pytest.mark.parametrize("scripts", [True, False])
def test_every_figure_is_visible(offline_page: OpenPage, exported: Path, scripts: bool) -> None:
    opened = offline_page(exported, scripts=scripts)
    seen = [look(item) for item in opened.page.locator("main svg").filter(visible=True).all()]
    assert [picture.title for picture in seen if not picture.visible] == []
    assert [picture.title for picture in seen] == [
        "root_role calculated, compared with what it has",
        "guest-npt-narrows under force_role_reset",
        "root-shadow-gbpages under maxphyaddr",
        "guest-npt-in-l2 under valid",
    ]
    assert opened.complaints == []


def test_the_matrix_is_whole(offline_page: OpenPage, exported: Path) -> None:
    page = offline_page(exported).page
    matrix = page.locator("table.validity").first
    assert matrix.locator("tbody th").count() == len(witnesses())
    assert matrix.locator("thead th").count() == 1 + len(markers())
    box, main = matrix.bounding_box(), page.locator("main").bounding_box()
    assert box is not None
    assert main is not None
    assert box["x"] + box["width"] <= main["x"] + main["width"]
    told = matrix.locator("td", has_text="unseen").first.get_attribute("title")
    assert told == "op 3 'vmrun b000': nested_mmu is taken for valid, and nothing in it differs"


def test_the_steps_need_no_script(offline_page: OpenPage, exported: Path) -> None:
    page = offline_page(exported, scripts=False).page
    steps = page.locator(".steps > section").filter(visible=True)
    assert "5 of 7: vmrun b000" in steps.first.inner_text().replace("\n", " ")
    assert "nested_mmu is taken for valid, and nothing in it differs" in steps.first.inner_text()
    page.locator(".steps label", has_text="Previous").filter(visible=True).first.click()
    assert "cpuid maxphyaddr 24" in steps.first.inner_text()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page as high as the notebook, which JupyterLab otherwise draws only in part."""
    context = chromium.new_context(viewport={"width": 1400, "height": 11000})
    yield context.new_page()
    context.close()


@pytest.mark.slow
def test_another_cell_is_chosen_in_jupyterlab(page: Page, tmp_path: Path) -> None:
    with jupyterlab(NOTEBOOK, tmp_path) as server:
        remote = run_all(page, server, last="wrong for the guest: ")
        box = (
            page.locator(".jp-OutputArea-output", has=page.get_by_text("marker", exact=True))
            .filter(has=page.locator("select"))
            .last
        )  # the first has the lists of parameters
        box.locator("select").first.select_option("force_role_reset")
        box.locator("p b", has_text="force_role_reset").wait_for(timeout=PATIENCE)
        wait_until_idle(page)
        box.locator("select").nth(1).select_option("guest-npt-narrows")
        box.get_by_text("guest_mmu: unchanged: left as it is").wait_for(state="attached", timeout=PATIENCE)
        box.get_by_text("expected: vmexit code=400").wait_for(timeout=PATIENCE)
        assert remote == []
