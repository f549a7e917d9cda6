"""The tests' own notebook in a real JupyterLab: the interactive twins are what shows there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import look
from tests.browser.lab import PATIENCE, jupyterlab, run_all

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NOTEBOOK = Path(__file__).parents[1] / "report" / "notebooks" / "small.ipynb"


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page as high as the notebook, which JupyterLab otherwise draws only in part."""
    context = chromium.new_context(viewport={"width": 1400, "height": 3600})
    yield context.new_page()
    context.close()


@pytest.mark.slow
def test_interactive_figures_show(page: Page, tmp_path: Path) -> None:
    with jupyterlab(NOTEBOOK, tmp_path) as server:
        remote = run_all(page, server, last="the end")
        page.locator(".jp-OutputArea-output .bqplot").nth(3).locator(
            "rect.heatmapcell, .heatmapcell"
        ).first.wait_for(state="attached", timeout=PATIENCE)
        figures = [look(item) for item in page.locator(".jp-OutputArea-output .bqplot").all()]
        assert [figure.visible for figure in figures] == [True] * 4
        assert page.locator(".jp-RenderedSVG img").count() == 1
        assert remote == []
