"""The matrix of role designs on a page with the network off: its wrong cells lead to the wrong access."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab.lab.report import report

if TYPE_CHECKING:
    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "role_designs.ipynb"
CASE = "la57-switch-npt-4to5-l0-5"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report with few cases."""
    given = {"designs": "D0,D4,D8", "cases": "la57-switch-*,nonpt-shadow-32-l2-np-l0-4"}
    out = report([NOTEBOOK], tmp_path_factory.mktemp("run") / "out", given).parent
    return out / "role_designs" / "role_designs.html"


@pytest.mark.parametrize("scripts", [True, False])
def test_every_picture_is_visible(offline_page: OpenPage, exported: Path, scripts: bool) -> None:
    opened = offline_page(exported, scripts=scripts)
    seen = opened.pictures("main .figure svg")
    assert len(seen) >= 6
    assert [picture.title for picture in seen if not picture.visible] == []
    assert opened.complaints == []


def test_wrong_cell_leads_to_its_steps(offline_page: OpenPage, exported: Path) -> None:
    opened = offline_page(exported, scripts=False)
    page = opened.page
    matrix = page.locator(".matrix").first
    views = matrix.locator("section.view")
    assert views.count() == 5, "two switches under two designs, and one that Linux gets wrong by itself"
    assert views.filter(visible=True).count() == 0
    row = matrix.locator("tr", has=page.get_by_role("rowheader", name=CASE, exact=True))
    cells = row.locator("td")
    assert [text.strip("†") for text in cells.all_inner_texts()] == ["✗ op 8", "✓", "✗ op 8"]
    cells.nth(0).get_by_role("link").click()
    view = views.filter(visible=True)
    assert view.count() == 1
    text = view.inner_text()
    assert f"{CASE} under D0" in text
    assert "expected gpa 0x300000; reached gpa 0x100000" in text
    assert "op 7: the page is found, though it is not the one wanted" in text
    view.locator("label", has_text="Next").filter(visible=True).click()
    assert "event" in view.locator("h4").filter(visible=True).nth(1).inner_text()
    cells.nth(2).get_by_role("link").click()
    other = views.filter(visible=True)
    assert other.count() == 1
    assert f"{CASE} under D8" in other.inner_text()
    other.get_by_role("link", name="back to the matrix").click()
    assert views.filter(visible=True).count() == 0
    assert opened.complaints == []


def test_no_id_is_there_twice(offline_page: OpenPage, exported: Path) -> None:
    ids = offline_page(exported).page.locator("[id]").evaluate_all("nodes => nodes.map(node => node.id)")
    assert len(set(ids)) == len(ids) > 20


def test_folded_cases_can_be_read(offline_page: OpenPage, exported: Path) -> None:
    page = offline_page(exported, scripts=False).page
    folded = page.locator(".matrix details").first
    assert not folded.locator("p").is_visible()
    folded.locator("summary").click()
    assert "la57-switch-tdp-4to5-l0-5" in folded.locator("p").inner_text()


def test_matrix_fits_the_page(offline_page: OpenPage, exported: Path) -> None:
    page = offline_page(exported).page
    for table in page.locator(".matrix > table").all():
        assert table.evaluate("node => node.scrollWidth <= node.parentElement.clientWidth")
    sizes = page.locator(".matrix th, .matrix td").evaluate_all(
        "cells => cells.map(cell => parseFloat(getComputedStyle(cell).fontSize))"
    )
    assert min(sizes) >= 11
