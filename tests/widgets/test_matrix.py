"""The matrix: every wrong cell can be opened, in JupyterLab and on a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import ipywidgets
import pytest

from mmulab.report.page import remote_references
from mmulab.widgets.matrix import Column, Matrix, Row, Verdict

COLUMNS = [Column("D0", "pre_fix", "before"), Column("D4", "passthrough"), Column("D8", "cr4_pae")]
RIGHT = Verdict(False)


def wrong(op: int, **more: bool) -> Verdict:
    return Verdict(True, f"op {op}", f"op {op} went <astray>", **more)


ROWS = [
    Row("switch", "nested", (wrong(8), RIGHT, wrong(8))),
    Row("switch", "plain", (RIGHT,) * 3),
    Row("no NPT", "own", (wrong(3, known=True),) * 3, "6.1's own"),
    Row("no NPT", "other", (Verdict(False, later=True), RIGHT, RIGHT)),
]


@pytest.fixture
def opened() -> list[tuple[int, int]]:
    return []


@pytest.fixture
def matrix(opened: list[tuple[int, int]]) -> Matrix:
    def live(row: int, column: int) -> Any:
        opened.append((row, column))
        return SimpleNamespace(widget=ipywidgets.HTML(f"view {row} {column}"))

    return Matrix(COLUMNS, ROWS, still=lambda row, column: f"<p>view of row {row}</p>", live=live, name="m")


class Cells(HTMLParser):
    """The text of every row, and where links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "a":
            self.links.append(values["href"] or "")
        if values.get("id"):
            self.ids.append(values["id"] or "")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_page_shows_every_case(matrix: Matrix) -> None:
    cells = Cells(matrix.html())
    assert cells.rows[0] == ["4 cases, 5 wrong cells", "D0pre_fix", "D4passthrough", "D8cr4_pae"]
    assert ["switch", "✗ 1 of 2", "✓ 2", "✗ 1 of 2"] in cells.rows
    assert ["nested", "✗ op 8", "✓", "✗ op 8"] in cells.rows
    assert ["no NPT", "! 1 of 2†", "! 1 of 2", "! 1 of 2"] in cells.rows
    assert ["own6.1's own", "! op 3", "! op 3", "! op 3"] in cells.rows
    assert "✗" not in "".join(cell for row in cells.rows[4:] for cell in row)
    assert ["1 case, right under every designplain"] in cells.rows
    assert "went &lt;astray&gt;" in matrix.html()
    assert remote_references(matrix.html()) == []


def test_wrong_cells_lead_to_views_and_equal_views_are_one(matrix: Matrix) -> None:
    cells = Cells(matrix.html())
    assert len(matrix.wrong) == 5
    targets = [link.removeprefix("#") for link in cells.links]
    assert set(targets) <= set(cells.ids)
    assert len(set(cells.ids)) == len(cells.ids) == 3, "the matrix and two views"
    assert matrix.html().count("view of row 0") == 1
    assert "nested under D0, D8: op 8" in matrix.html()


def test_views_are_shown_when_they_are_the_target(matrix: Matrix) -> None:
    style = re.sub(r"\s+", " ", matrix.html())
    assert ".view { display: none;" in style
    assert ".view:target { display: block; }" in style
    assert style.count(":target) a[href=") == 2, "one rule a view marks the cells that lead to it"


def test_a_click_opens_the_view(matrix: Matrix, opened: list[tuple[int, int]]) -> None:
    assert list(matrix.buttons) == matrix.wrong
    assert matrix.view.children == ()
    matrix.buttons[0, 2].click()
    assert opened == [(0, 2)]
    line, view = matrix.view.children
    assert "nested under D8" in line.value
    assert view.value == "view 0 2"
    matrix.buttons[2, 1].click()
    assert matrix.view.children[1].value == "view 2 1"
    assert [place for place, button in matrix.buttons.items() if button.layout.border_top] == [(2, 1)]
    with pytest.raises(ValueError, match="row 1, column 0 is not wrong"):
        matrix.open(1, 0)


def test_both_bodies_are_one_output(matrix: Matrix) -> None:
    bundle = matrix._repr_mimebundle_()
    assert bundle["text/html"] == matrix._repr_html_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == matrix.widget.model_id
    assert bundle["text/plain"] == "<Matrix 'm': 3 designs, 4 cases, 5 wrong cells>"
