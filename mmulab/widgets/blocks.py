"""What a panel is made of, and its two forms: HTML for pages and widgets, text for a terminal.

What changed is marked by a triangle and by bold type besides its colour.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from html import escape

from mmulab.widgets.bitfield import Cell, strip

MARK = "▶"

STYLE = """
.mml { color: #1a1a1a; background: #fff; font: 13px/1.4 "DejaVu Sans", sans-serif; }
.mml .mml-grid { display: grid; gap: 8px; }
.mml .mml-grid { grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
.mml section { border: 1px solid #bbb; padding: 4px 8px; overflow-x: auto; min-width: 0; }
.mml h4 { margin: 0 0 4px; font-size: 13px; }
.mml p { margin: 2px 0; }
.mml code, .mml td { font: 12px/1.4 "DejaVu Sans Mono", monospace; }
.mml table { border-collapse: collapse; margin: 2px 0; font-size: 12px; }
.mml th { text-align: left; font-weight: normal; color: #555; border-bottom: 1px solid #888; }
.mml th, .mml td { padding: 1px 8px 1px 0; border-bottom: 1px solid #e5e5e5; white-space: pre; }
.mml td:last-child { white-space: normal; }
.mml tr.mml-new td { font-weight: bold; background: #fff3bf; }
.mml .mml-wrong { font-weight: bold; border: 2px solid #d55e00; padding: 2px 6px; }
.mml svg { display: block; max-width: none; }
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
    """A table; rows whose numbers are in `marked` are new."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Collection[int] = field(default_factory=tuple)

    def html(self) -> str:
        """Return the table as HTML."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *self.columns))
        body = "".join(self._row(number, row) for number, row in enumerate(self.rows))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _row(self, number: int, row: Sequence[str]) -> str:
        new = number in self.marked
        cells = "".join(f"<td>{escape(text)}</td>" for text in (MARK if new else "", *row))
        return f'<tr class="mml-new">{cells}</tr>' if new else f"<tr>{cells}</tr>"

    def lines(self) -> list[str]:
        """Return the table as lines of text."""
        rows = [list(self.columns), *(list(row) for row in self.rows)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(self.columns))]
        marks = ["", *(MARK if number in self.marked else "" for number in range(len(self.rows)))]
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
    """

    title: str
    blocks: Sequence[Block]
    wide: bool = False

    def html(self) -> str:
        """Return the panel as HTML."""
        style = ' style="grid-column: 1 / -1"' if self.wide else ""
        inside = "".join(block.html() for block in self.blocks)
        return f"<section{style}><h4>{escape(self.title)}</h4>{inside}</section>"

    def lines(self) -> list[str]:
        """Return the panel as lines of text."""
        return [f"── {self.title}", *(f"   {line}" for block in self.blocks for line in block.lines())]


def panels_html(panels: Sequence[Panel], *, style: bool = True) -> str:
    """Return panels as one piece of HTML, with its style sheet if `style`."""
    inside = "".join(panel.html() for panel in panels)
    sheet = f"<style>{STYLE}</style>" if style else ""
    return f'{sheet}<div class="mml"><div class="mml-grid">{inside}</div></div>'


def panels_text(panels: Sequence[Panel]) -> str:
    """Return panels as text, one below the other."""
    return "\n".join(line for panel in panels for line in panel.lines())
