"""The exported page of the tests' own notebook, opened with no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]


@pytest.mark.parametrize("scripts", [True, False])
def test_every_figure_is_visible(offline_page: OpenPage, small_report: Path, scripts: bool) -> None:
    opened = offline_page(small_report / "small" / "small.html", scripts=scripts)
    seen = opened.pictures()
    assert [picture.title for picture in seen] == ["Bars", "Lines", "Areas", "Heat map", "Table"]
    assert [picture.title for picture in seen if not picture.visible] == []
    assert min(picture.height for picture in seen) >= 100
    assert opened.complaints == []


def test_no_output_is_a_gap(offline_page: OpenPage, small_report: Path) -> None:
    opened = offline_page(small_report / "small" / "small.html", scripts=False)
    outputs = opened.page.locator(".output_area").all()
    assert len(outputs) == 10  # the parameters that can be chosen are one
    boxes = [output.bounding_box() for output in outputs]
    assert min(box["height"] for box in boxes if box) >= 15
    assert opened.page.get_by_text("In JupyterLab an interactive control stands here").is_visible()


def test_page_fits_a_narrow_window(offline_page: OpenPage, small_report: Path) -> None:
    opened = offline_page(small_report / "small" / "small.html")
    opened.page.set_viewport_size({"width": 400, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400


def test_index_leads_to_the_page(offline_page: OpenPage, small_report: Path) -> None:
    opened = offline_page(small_report / "index.html")
    opened.page.get_by_role("link", name="A small notebook").click()
    assert opened.page.title() == "small"
    assert opened.complaints == []
