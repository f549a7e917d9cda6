"""A long table folded by kind, in Chromium with neither network nor script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmulab.report import page
from mmulab.report.results import Table

if TYPE_CHECKING:
    from tests.browser.conftest import OfflinePage

OpenPage = Callable[..., "OfflinePage"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two kinds of cases, two of them wrong, one with a later verdict of its own."""
    rows = [
        [f"case-{n}", "switch" if n < 10 else "plain", "wrong" if n in (3, 12) else "right", n == 3]
        for n in range(30)
    ]
    found = Table("cases", ["case", "kind", "verdict", "known"], rows, fold="kind")
    path = tmp_path / "page.html"
    path.write_text(page.shell("cases", found._repr_html_() + Table("t", ["kind"], [["x"]])._repr_html_()))
    return path


def seen(opened: OfflinePage) -> list[str]:
    cells = opened.page.locator(".folded td:first-child").filter(visible=True)
    return cells.all_inner_texts()


def test_groups_open_and_rows_filter(offline_page: OpenPage, table: Path) -> None:
    opened = offline_page(table, scripts=False)
    document = opened.page
    assert seen(opened) == []
    document.locator("summary", has_text="switch: 10; verdict: 1 wrong, 9 right").click()
    assert len(seen(opened)) == 10
    verdicts = document.get_by_role("group", name="verdict")
    verdicts.get_by_label("wrong").check()
    assert seen(opened) == ["case-3", "case-12"], "the folded group shows its row too"
    document.get_by_role("group", name="known").get_by_label("True").check()
    assert seen(opened) == ["case-3"]
    assert document.locator("summary").filter(visible=True).count() == 1, "no group without a row"
    document.get_by_role("group", name="known").get_by_label("all").check()
    verdicts.get_by_label("all").check()
    assert len(seen(opened)) == 10, "as it was before"
    assert document.locator("table").last.is_visible(), "another table is left alone"
    assert opened.complaints == []


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut(offline_page: OpenPage, table: Path, width: int) -> None:
    opened = offline_page(table)
    opened.page.locator(".folded").get_by_label("wrong").check()
    assert opened.cut_tables(width) == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
