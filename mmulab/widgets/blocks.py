"""What a panel is made of, and its two forms: HTML for pages and widgets, text for a terminal.

What changed is marked by a triangle and by bold type besides its colour.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from html import escape

from mmulab.widgets.bitfield import Cell, strip

MARK = "▶"

COLUMNS = 3
"""Columns in which panels have their places; in a narrow window they stand one below the other."""

STYLE = """
.mml { container-type: inline-size; }
.mml { color: #1a1a1a; background: #fff; font: 13px/1.4 "DejaVu Sans", sans-serif; }
.mml .mml-grid, .mml .mml-columns { display: grid; gap: 6px; align-items: start; }
.mml .mml-grid { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.mml .mml-columns { margin-top: 6px; }
.mml .mml-columns > div { display: grid; gap: 6px; align-content: start; }
.mml .mml-columns, .mml .mml-columns > div { grid-template-columns: minmax(0, 1fr); }
.mml .mml-columns > div:empty { display: none; }
.mml section { border: 1px solid #bbb; padding: 3px 8px; min-width: 0; overflow-wrap: break-word; }
.mml .mml-wide { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 0 2rem; }
.mml .mml-wide > div { min-width: 0; }
.mml h4 { margin: 0 0 2px; font-size: 13px; }
.mml p { margin: 1px 0; }
.mml code, .mml td { font: 12px/1.35 "DejaVu Sans Mono", monospace; }
.mml table { border-collapse: collapse; margin: 1px 0; font-size: 12px; }
.mml th { text-align: left; font-weight: normal; color: #555; border-bottom: 1px solid #888; }
.mml th, .mml td { padding: 0 6px 0 0; border-bottom: 1px solid #e5e5e5; white-space: pre; }
.mml td { vertical-align: top; }
.mml td:last-child { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 1.5rem; }
.mml tr.mml-new td { font-weight: bold; background: #fff3bf; }
.mml .mml-wrong { font-weight: bold; border: 2px solid #d55e00; padding: 1px 6px; }
.mml svg { display: block; max-width: 100%; height: auto; }
@container (max-width: 30rem) {
  .mml th, .mml td { font-size: 11px; padding-right: 5px; white-space: pre-wrap; }
}
@container (min-width: 44rem) {
  .mml .mml-columns, .mml .mml-columns > :nth-child(3) { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .mml .mml-columns > :nth-child(2) { grid-column: 2; }
  .mml .mml-columns > :nth-child(3) { grid-column: 1 / -1; }
}
@container (min-width: 68rem) {
  .mml .mml-columns { grid-template-columns: minmax(0, 43fr) minmax(0, 52fr) minmax(0, 31fr); }
  .mml .mml-columns > :nth-child(3) { grid-column: 3; grid-template-columns: minmax(0, 1fr); }
}
"""
"""The panels' style sheet; everything in it begins with ``.mml``."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of words.

    Attributes
    ----------
    text : str
    code : bool
        It is quoted from a program: a fixed-width font.
    marked : bool
        It is new or wrong: it stands out.
    """

    text: str
    code: bool = False
    marked: bool = False

    def html(self) -> str:
        """Return the line as HTML."""
        inside = f"<code>{escape(self.text)}</code>" if self.code else escape(self.text)
        return f'<p class="mml-wrong">{inside}</p>' if self.marked else f"<p>{inside}</p>"

    def lines(self) -> list[str]:
        """Return the line as text."""
        return [f"{MARK} {self.text}" if self.marked else self.text]


@dataclass(frozen=True, slots=True)
class Table:
    """A table; rows whose numbers are in `marked` are new. Without a column's name it has no head."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Collection[int] = field(default_factory=tuple)

    def html(self) -> str:
        """Return the table as HTML."""
        cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *self.columns))
        head = f"<thead><tr>{cells}</tr></thead>" if any(self.columns) else ""
        body = "".join(self._row(number, row) for number, row in enumerate(self.rows))
        return f"<table>{head}<tbody>{body}</tbody></table>"

    def _row(self, number: int, row: Sequence[str]) -> str:
        new = number in self.marked
        cells = "".join(f"<td>{escape(text)}</td>" for text in (MARK if new else "", *row))
        return f'<tr class="mml-new">{cells}</tr>' if new else f"<tr>{cells}</tr>"

    def lines(self) -> list[str]:
        """Return the table as lines of text."""
        head = [list(self.columns)] if any(self.columns) else []
        rows = [*head, *(list(row) for row in self.rows)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(self.columns))]
        marks = [*("" for _ in head), *(MARK if n in self.marked else "" for n in range(len(self.rows)))]
        return [
            f"{mark:1} "
            + "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
            for mark, row in zip(marks, rows, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Strip:
    """A word in bit fields."""

    title: str
    cells: Sequence[Cell]

    def html(self) -> str:
        """Return the strip as an SVG picture."""
        return str(strip(self.cells, title=self.title))

    def lines(self) -> list[str]:
        """Return the fields that are set or differ, as text."""
        shown = [cell for cell in self.cells if cell.name and (cell.set or cell.was is not None)]
        words = [
            f"{cell.name}={cell.text}" + (f" ({MARK} was {cell.was})" if cell.was is not None else "")
            for cell in shown
        ]
        return [f"{self.title}: " + ("  ".join(words) or "no bit set")]


Block = Line | Table | Strip


@dataclass(frozen=True, slots=True)
class Panel:
    """Blocks under a title.

    Attributes
    ----------
    title : str
    blocks : sequence of Line, Table or Strip
    wide : bool
        It takes the whole width.
    column : int
        From 1 to :data:`COLUMNS`: it always stands in that column, below the panels without one.
    """

    title: str
    blocks: Sequence[Block]
    wide: bool = False
    column: int = 0

    def html(self) -> str:
        """Return the panel as HTML."""
        words = "".join(block.html() for block in self.blocks if not isinstance(block, Strip))
        strips = "".join(block.html() for block in self.blocks if isinstance(block, Strip))
        if not self.wide:
            return f"<section><h4>{escape(self.title)}</h4>{words}{strips}</section>"
        inside = f"<div><h4>{escape(self.title)}</h4>{words}</div>" + (strips and f"<div>{strips}</div>")
        return f'<section class="mml-wide">{inside}</section>'

    def lines(self) -> list[str]:
        """Return the panel as lines of text."""
        return [f"── {self.title}", *(f"   {line}" for block in self.blocks for line in block.lines())]


def panels_html(panels: Sequence[Panel], *, style: bool = True) -> str:
    """Return panels as one piece of HTML, with its style sheet if `style`."""
    sheet = f"<style>{STYLE}</style>" if style else ""
    return f'{sheet}<div class="mml">{arranged([(panel.column, panel.html()) for panel in panels])}</div>'


def arranged(panels: Sequence[tuple[int, str]]) -> str:
    """Return panels, each a column and its HTML, at their places: the columns are there even if empty."""
    places = ["".join(html for column, html in panels if column == at) for at in range(COLUMNS + 1)]
    columns = "".join(f"<div>{inside}</div>" for inside in places[1:])
    below = f'<div class="mml-columns">{columns}</div>' if any(column for column, _ in panels) else ""
    return f'<div class="mml-grid">{places[0]}</div>{below}'


def panels_text(panels: Sequence[Panel]) -> str:
    """Return panels as text, one below the other."""
    return "\n".join(line for panel in panels for line in panel.lines())
