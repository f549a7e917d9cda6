"""notebooks/record_and_compare.ipynb: a page with no network and no script, whose ops open at a click."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.reported import Reports

if TYPE_CHECKING:
    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]
NAME = "record_and_compare"


@pytest.fixture(scope="module")
def exported(reported: Reports) -> Path:
    """The exported page."""
    return reported(NAME).page


def test_it_is_on_the_index(offline_page: OpenPage, exported: Path) -> None:
    page = offline_page(exported.parents[1] / "index.html").page
    link = page.get_by_role("heading", name="Record and compare").get_by_role("link")
    assert link.get_attribute("href") == f"{NAME}/{NAME}.html"


def test_an_op_opens_at_a_click_and_needs_no_script(offline_page: OpenPage, exported: Path) -> None:
    opened = offline_page(exported, scripts=False)
    first, second = opened.page.locator(".mml-sides").all()
    assert first.locator("table").filter(visible=True).count() == 1
    first.locator("summary", has_text="invlpg 40001000").click()
    assert first.locator("table").filter(visible=True).count() == 2
    assert first.locator("tr.other").count() == 0
    second.locator("summary", has_text="init").click()
    marked = second.locator("mark").filter(visible=True).all_inner_texts()
    assert marked == ["mask=ffffffffffffffff", "mask=f"] * 2
    assert opened.complaints == []


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_cut_at_the_right(offline_page: OpenPage, exported: Path, width: int) -> None:
    page = offline_page(exported).page
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    main = page.locator("main").bounding_box()
    assert main is not None
    for side in page.locator(".mml-sides table").filter(visible=True).all():
        box = side.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= main["x"] + main["width"]
