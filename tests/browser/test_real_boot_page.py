"""The page of the real boot, opened with no network: every figure can be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]

FIGURES = [
    "linux-686-nonpae-1: leaf entries by level and flag",
    "linux-686-nonpae-1: the 1024 entries of the page directory at gfn ",
    "Page faults so far, by access",
    "Page faults so far, by KVM's answer",
    "Shadow pages in use, by level",
    "Shadow pages in use, by role without its quadrant",
    "Shadow pages in use at the end, by quadrant",
    "Shadow pages in use, by quadrant",
]
CUT_TEXTS = """() => [...document.querySelectorAll('main svg')].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.left < frame.left - 1 || box.right > frame.right + 1
            || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
    }).map(text => svg.getAttribute('aria-label') + ': ' + text.textContent);
})"""


@pytest.mark.parametrize("scripts", [True, False])
def test_every_figure_is_visible(offline_page: OpenPage, boot_report: Path, scripts: bool) -> None:
    opened = offline_page(boot_report / "real_boot" / "real_boot.html", scripts=scripts)
    seen = opened.pictures()
    assert len(seen) == len(FIGURES)
    for picture, title in zip(seen, FIGURES, strict=True):
        assert picture.title.startswith(title)
        assert picture.visible, picture
        assert min(picture.width, picture.height) >= 150
    assert opened.complaints == []


def test_no_label_is_cut(offline_page: OpenPage, boot_report: Path) -> None:
    opened = offline_page(boot_report / "real_boot" / "real_boot.html")
    assert opened.page.locator("main svg text").count() > 100
    assert opened.page.evaluate(CUT_TEXTS) == []


def test_tables_are_visible(offline_page: OpenPage, boot_report: Path) -> None:
    opened = offline_page(boot_report / "real_boot" / "real_boot.html", scripts=False)
    tables = opened.page.locator("main table").all()
    assert len(tables) == 5
    boxes = [table.bounding_box() for table in tables[:-1]]
    assert all(box and box["width"] > 200 and box["height"] > 60 for box in boxes)
    assert not tables[-1].is_visible(), "the long list of inputs is folded"
    tables[-1].locator("xpath=ancestor::details[1]/summary").click()
    assert tables[-1].is_visible()
    assert opened.page.get_by_text("An interactive control stands here").count() == 0


def test_page_does_not_scroll_sideways(offline_page: OpenPage, boot_report: Path) -> None:
    opened = offline_page(boot_report / "real_boot" / "real_boot.html")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 1100
