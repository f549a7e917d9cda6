"""Pages in a headless Chromium with the network off.

Without Chromium the tests that need it are skipped, each by its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mmulab.report.doctor import BROWSERS
from tests.browser.png import pixels

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Request

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
    "--disable-component-update",
    "--disable-quic",
]
LOCAL = ("file:", "data:", "blob:", "about:")


@dataclass(frozen=True)
class Picture:
    """What can be seen of one figure.

    Attributes
    ----------
    title : str
    width, height : float
        Of its box on the page, in pixels.
    ink : float
        Share of its pixels that differ from its most frequent colour.
    colors : int
        Number of different colours.
    """

    title: str
    width: float
    height: float
    ink: float
    colors: int

    @property
    def visible(self) -> bool:
        """Whether somebody could see a figure here."""
        return self.width >= 50 and self.height >= 30 and self.ink > 0.002 and self.colors > 1


def look(item: Locator) -> Picture:
    """Return what can be seen of one element."""
    title, box = item.get_attribute("aria-label") or "", item.bounding_box()
    if box is None or not (box["width"] and box["height"]):
        return Picture(title, 0, 0, 0.0, 0)
    seen = pixels(item.screenshot()).reshape(-1, 3).astype(np.uint32)
    _, counts = np.unique(seen @ np.array([1 << 16, 1 << 8, 1], np.uint32), return_counts=True)
    return Picture(title, box["width"], box["height"], 1 - int(counts.max()) / len(seen), len(counts))


class OfflinePage:
    """A page opened from a file; everything that it wanted from elsewhere is in `complaints`."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("request", self._requested)
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(path.resolve().as_uri())

    def _requested(self, request: Request) -> None:
        if not request.url.startswith(LOCAL):
            self.complaints.append(request.url)

    def pictures(self, selector: str = "main svg") -> list[Picture]:
        """Return what can be seen of every element that `selector` finds."""
        return [look(item) for item in self.page.locator(selector).all()]

    def ids(self) -> list[str]:
        """Return the id of every element that has one."""
        found: list[str] = self.page.locator("[id]").evaluate_all("nodes => nodes.map(node => node.id)")
        return found

    def cut_tables(self, width: int) -> list[str]:
        """Return how the tables begin that do not fit where they stand, in a window of this width."""
        self.page.set_viewport_size({"width": width, "height": 1000})
        cut: list[str] = self.page.locator("main table").evaluate_all(
            "tables => tables.filter(t => t.offsetParent && t.scrollWidth > t.parentElement.clientWidth + 1)"
            ".map(t => t.innerText.slice(0, 60))"
        )
        return cut


@pytest.fixture(scope="session")
def _browser() -> Iterator[Browser | None]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def chromium(request: pytest.FixtureRequest, _browser: Browser | None) -> Browser:
    """A headless Chromium."""
    if _browser is None:
        pytest.skip(f"{request.node.name}: Chromium is not installed")
    return _browser


@pytest.fixture
def offline_page(chromium: Browser) -> Iterator[object]:
    """Return a function that opens a file as an :class:`OfflinePage`; ``scripts=False`` forbids scripts."""
    contexts = []

    def open_page(path: Path, *, scripts: bool = True) -> OfflinePage:
        context = chromium.new_context(
            offline=True, java_script_enabled=scripts, viewport={"width": 1100, "height": 900}
        )
        contexts.append(context)
        return OfflinePage(context.new_page(), path)

    yield open_page
    for context in contexts:
        context.close()
