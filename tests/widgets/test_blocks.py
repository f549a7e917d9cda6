"""Panels as HTML and as text say the same."""

from __future__ import annotations

from mmulab.report.page import remote_references
from mmulab.widgets.bitfield import Cell
from mmulab.widgets.blocks import MARK, Line, Panel, Strip, Table, panels_html, panels_text

PANELS = [
    Panel(
        "a < b",
        [
            Line("words & more"),
            Line("kvm_exit: x", code=True),
            Line("wrong", marked=True),
            Table(("one", "two"), [["1", "22"], ["333", "4"]], [1]),
            Strip("word 3", [Cell("W", "1", "1", True, "0"), Cell("P", "1", "0", True), Cell("U", "0", "2")]),
        ],
        wide=True,
    )
]


def test_html() -> None:
    html = panels_html(PANELS)
    assert remote_references(html) == []
    assert "a &lt; b" in html
    assert "words &amp; more" in html
    assert "<code>kvm_exit: x</code>" in html
    assert f'<tr class="mml-new"><td>{MARK}</td><td>333</td>' in html
    assert html.count("<svg") == 1
    assert "<style>" in html
    assert "<style>" not in panels_html(PANELS, style=False)


def test_text() -> None:
    assert panels_text(PANELS).splitlines() == [
        "── a < b",
        "   words & more",
        "   kvm_exit: x",
        f"   {MARK} wrong",
        "     one  two",
        "     1    22",
        f"   {MARK} 333  4",
        f"   word 3: W=1 ({MARK} was 0)  P=1",
    ]


def test_panels_stand_in_their_columns_and_empty_ones_are_kept() -> None:
    html = panels_html([*PANELS, Panel("left", [], column=1), Panel("right", [], column=3)], style=False)
    grid, columns = html.split('<div class="mml-columns">')
    assert "a &lt; b" in grid
    left, middle, right, *_ = columns.split("</div>")
    assert "<h4>left</h4>" in left
    assert middle == "<div>"
    assert "<h4>right</h4>" in right
    assert "mml-columns" not in panels_html(PANELS, style=False)


def test_table_without_names_has_no_head() -> None:
    table = Table(("", ""), [["CR3", "0x1000"]])
    assert "<thead>" not in table.html()
    assert table.lines() == ["  CR3  0x1000"]


def test_strips_of_a_wide_panel_stand_beside_its_words() -> None:
    words, strips = PANELS[0].html().split("</div><div>")
    assert "<table>" in words
    assert "<svg" not in words
    assert strips.startswith("<svg")
    narrow = Panel("a", PANELS[0].blocks).html()
    assert narrow.index("<table>") < narrow.index("<svg")
    assert "<div>" not in narrow
