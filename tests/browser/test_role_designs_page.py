"""The matrix of role designs on a page with the network off: its wrong cells lead to the wrong access."""

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
CASE = "la57-switch-npt-4to5-l0-5"
CELLS = (
    """
from mmulab.lab.designs.compare import compare
from mmulab.lab.designs.view import design_matrix
from mmulab.lab.cases.works import find_works

design_matrix(compare(["D0", "D4"], find_works(["la57-switch-npt-*"])))
""",
    "print('shown')",
)


@pytest.fixture(scope="module")
def exported(reported: Reports) -> Path:
    """The page of a report with few cases."""
    return reported("role_designs").page


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
    assert [text.strip("†") for text in cells.all_inner_texts()] == ["✗ op 8", "✓", "✗ op 8", "✓"]
    cells.nth(0).get_by_role("link").click()
    view = views.filter(visible=True)
    assert view.count() == 1
    text = view.inner_text()
    assert f"{CASE} under M" in text
    assert "expected gpa 0x300000; reached gpa 0x100000" in text
    assert "op 8 'rd s 4 3000' has ended, and it is wrong" in text, "it opens at the access"
    assert "L1's nested tables for L2's 0x3000" in text
    marked = "node => getComputedStyle(node).outlineStyle"
    assert [cells.nth(at).get_by_role("link").evaluate(marked) for at in (0, 2)] == ["solid", "none"]
    assert "3 of 3: op 8" in text
    for _ in range(2):
        view.locator("label", has_text="Previous").filter(visible=True).click()
    assert "op 7: the page is found, though it is not the one wanted" in view.inner_text()
    cells.nth(2).get_by_role("link").click()
    other = views.filter(visible=True)
    assert other.count() == 1
    assert f"{CASE} under D8" in other.inner_text()
    other.get_by_role("link", name="back to the matrix").click()
    assert views.filter(visible=True).count() == 0
    assert opened.complaints == []


def test_no_id_is_there_twice(offline_page: OpenPage, exported: Path) -> None:
    ids = offline_page(exported).ids()
    assert len(set(ids)) == len(ids) > 20


def test_panels_keep_their_own_style(offline_page: OpenPage, exported: Path) -> None:
    page = offline_page(exported).page
    page.locator(".matrix").first.get_by_role("link", name="✗ op 8").first.click()
    cell = page.locator(".matrix section.view td").filter(visible=True).first
    assert cell.evaluate("cell => getComputedStyle(cell).borderLeftWidth") == "0px"


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


@pytest.mark.slow
def test_click_in_jupyterlab_opens_the_stepper_at_the_access(chromium: Browser, tmp_path: Path) -> None:
    source = notebook_of(CELLS, tmp_path / "matrix.ipynb")
    (tmp_path / "served").mkdir()
    context = chromium.new_context(viewport={"width": 1400, "height": 3000})
    page = context.new_page()
    with jupyterlab(source, tmp_path / "served") as server:
        remote = run_all(page, server, last="shown")
        wrong = page.get_by_role("button", name="✗ op 8")
        assert wrong.count() == 2
        assert not page.get_by_role("slider").first.is_visible()
        wrong.first.click()
        page.get_by_role("button", name="Next ▶").wait_for(timeout=PATIENCE)
        output = page.locator(".jp-OutputArea-output", has=wrong.first)
        text = output.inner_text()
        assert "op 8, the end of the op" in text, "at the access"
        assert "found wrongly: shadow page in frame" in text
        borders = [button.evaluate("node => getComputedStyle(node).borderTopWidth") for button in wrong.all()]
        assert borders[0] == "3px" != borders[1]
        back = page.get_by_role("button", name="▲ to the open cell")
        assert back.evaluate("node => node === document.activeElement"), "it is scrolled to"
        assert f"{CASE} under D0: op 8" in output.inner_text()
        assert remote == []
    context.close()
