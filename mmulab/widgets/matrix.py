"""A matrix of verdicts, designs by cases: a wrong cell leads to a view of what went wrong.

In JupyterLab the wrong cells are buttons. Everywhere else the matrix is a table
whose wrong cells are links to views further down in the same output; a style
sheet shows the one that was asked for, so neither a kernel nor a script is needed.

Cases that are right under every design are folded away, by group. ``!`` marks a cell
that is wrong and not by the design, ``†`` one whose case the design is too old for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

import ipywidgets
from ipywidgets.widgets.widget_string import HTMLStyle

__all__ = ["Column", "Matrix", "Row", "Verdict"]

_LABEL, _CELL = "21rem", "4.3rem"
_OPEN = "3px solid #0072b2"
"""Border of the cell whose view is open."""
_STYLE = """
.ID { font: 13px/1.35 "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff; overflow-x: auto; }
.ID > table { border-collapse: collapse; margin: 0.5rem 0; font-size: 13px; }
.ID .head, .ID .cell { box-sizing: border-box; min-width: CELL; text-align: center; white-space: nowrap; }
.ID > table th, .ID > table td { border: 1px solid #ccc; padding: 2px 4px; }
.ID > table th, .ID > table td { font-weight: normal; vertical-align: middle; }
.ID .head b { display: block; }
.ID .head span { font-size: 10px; line-height: 1.2; display: block; }
.ID .head b { font-size: 13px; }
.ID .case { font: 12px/1.35 "DejaVu Sans Mono", monospace; text-align: left; white-space: nowrap; }
.ID .case small { display: block; font: 11px/1.3 "DejaVu Sans", sans-serif; color: #555; }
.ID .case small { white-space: normal; }
.ID .group th, .ID .group td { background: #f2f2f2; border-top: 2px solid #888; }
.ID .group .name { text-align: left; font-weight: bold; }
.ID .group .wrong, .ID div.wrong { font-weight: bold; color: #7a2e00; }
.ID .right { color: #0b6b4a; }
.ID td.wrong { background: #fbd9c6; padding: 0; }
.ID td.wrong a { display: block; padding: 2px 4px; color: #7a2e00; font-weight: bold; }
.ID td.known { background: #fff3bf; }
.ID .group .known, .ID div.known { font-weight: bold; color: #5c4600; }
.ID td.known a { color: #5c4600; }
.ID td.wrong a:focus-visible { outline: 3px solid #0072b2; }
.ID details { padding: 1px 0; }
.ID details summary { cursor: pointer; color: #555; }
.ID details p { margin: 2px 0 4px; font: 11px/1.5 "DejaVu Sans Mono", monospace; }
.ID .view { display: none; border: 2px solid #d55e00; padding: 0.5rem 0.75rem; margin: 0.75rem 0; }
.ID .view:target { display: block; }
.ID .view h4 { margin: 0 0 0.4rem; font-size: 14px; }
"""


class Column(NamedTuple):
    """A design: its id, its name, and what it is in one line."""

    id: str
    name: str
    tip: str = ""


class Verdict(NamedTuple):
    """What came of a case under a design.

    Attributes
    ----------
    wrong : bool
    text : str
        Where, if it is wrong: ``op 8``.
    tip : str
        What happened, in a sentence.
    known : bool
        It is wrong, and the design is not to blame: marked with ``!`` instead of ``✗``.
    later : bool
        The design is older than what the case needs: marked with ``†``.
    """

    wrong: bool
    text: str = ""
    tip: str = ""
    known: bool = False
    later: bool = False

    @property
    def mark(self) -> str:
        """The verdict in a few characters."""
        sign = "✓" if not self.wrong else f"! {self.text}" if self.known else f"✗ {self.text}"
        return sign + ("†" if self.later else "")

    @property
    def kind(self) -> str:
        """The style of the verdict's cell."""
        return "right" if not self.wrong else "wrong known" if self.known else "wrong"


class Row(NamedTuple):
    """A case.

    Attributes
    ----------
    group : str
        Its kind; rows of a group follow each other.
    name : str
    verdicts : tuple of Verdict
        One a column.
    note : str
        What a reader should know of it.
    """

    group: str
    name: str
    verdicts: tuple[Verdict, ...]
    note: str = ""

    @property
    def right(self) -> bool:
        """Whether no design is wrong."""
        return not any(verdict.wrong for verdict in self.verdicts)


Place = tuple[int, int]
"""Numbers of a row and of a column."""


class _Looks:
    """Layouts and styles, each once for all that look alike.

    Each is a model of its own, and JupyterLab reads all models when a notebook is opened again on a live
    Jupyter kernel.
    """

    def __init__(self) -> None:
        self._layouts: dict[tuple[tuple[str, str], ...], Any] = {}
        self.button = ipywidgets.ButtonStyle()
        self._words = HTMLStyle()

    def layout(self, **how: str) -> Any:
        key = tuple(sorted(how.items()))
        if key not in self._layouts:
            self._layouts[key] = ipywidgets.Layout(**how)
        return self._layouts[key]

    def cell(self, *, opened: bool) -> Any:
        """Return the layout of a wrong cell."""
        return self.layout(width=_CELL, margin="1px", padding="0", **({"border": _OPEN} if opened else {}))

    def html(self, words: str, **how: str) -> Any:
        return ipywidgets.HTML(words, layout=self.layout(**how), style=self._words)


class Matrix:
    """Verdicts by case and design.

    Parameters
    ----------
    columns : sequence of Column
    rows : sequence of Row
    still : callable
        ``still(row, column) -> str``: HTML of the view of a wrong cell, which needs no script.
        Cells whose views are equal share one.
    live : callable
        ``live(row, column)``: an object whose ``widget`` is that view with controls.
    name : str
        Says what the matrix is of.

    Attributes
    ----------
    widget : ipywidgets.VBox
    view : ipywidgets.VBox
        Holds the view that was opened last.
    buttons : dict of (int, int) to ipywidgets.Button
        The wrong cells, by row and column; the one whose view is open has a border.
    opened : (int, int) or None
    back : ipywidgets.Button
        Stands above the view, leads from it to its cell.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: Sequence[Row],
        *,
        still: Callable[[int, int], str],
        live: Callable[[int, int], Any],
        name: str,
    ) -> None:
        self.columns = tuple(columns)
        self.rows = tuple(rows)
        self.name = name
        self._still, self._live = still, live
        shape = repr((self.columns, self.rows, name))
        self._id = "mtx" + hashlib.sha256(shape.encode()).hexdigest()[:12]
        self._html: str | None = None
        self._looks = _Looks()
        self.view = ipywidgets.VBox([])
        self.buttons: dict[Place, Any] = {}
        self.opened: Place | None = None
        self.back = ipywidgets.Button(description="▲ to the open cell", tooltip="its view is below")
        self.back.on_click(lambda _: self._back())
        self.widget = ipywidgets.VBox([*self._lines(), self.back, self.view])

    @property
    def wrong(self) -> list[Place]:
        """The wrong cells, in reading order."""
        return [
            (row, column)
            for row, found in enumerate(self.rows)
            for column, verdict in enumerate(found.verdicts)
            if verdict.wrong
        ]

    def _groups(self) -> list[tuple[str, list[int]]]:
        numbers = groupby(range(len(self.rows)), key=lambda number: self.rows[number].group)
        return [(group, list(found)) for group, found in numbers]

    # A page ---------------------------------------------------------------------------

    def html(self) -> str:
        """Return the matrix and the views of its wrong cells as HTML that needs no script."""
        if self._html is None:
            views = self._views()
            head = "".join(f'<th scope="col" class="head">{_head(column)}</th>' for column in self.columns)
            body = "".join(self._group(group, numbers, views) for group, numbers in self._groups())
            sections = "".join(self._section(views, html) for html in dict.fromkeys(views.values()))
            self._html = (
                f'{self._style()}{self._marks(views)}<div class="{self._id} matrix" id="{self._id}">'
                f'<table aria-label="{escape(self.name)}"><thead><tr><th scope="col">{self._count()}</th>'
                f"{head}</tr></thead><tbody>{body}</tbody></table>{sections}</div>"
            )
        return self._html

    def _style(self) -> str:
        return f"<style>{_STYLE.replace('ID', self._id).replace('CELL', _CELL)}</style>"

    def _marks(self, views: dict[Place, str]) -> str:
        """Return the style that marks the cells whose view is open."""
        anchors = dict.fromkeys(map(self._anchor, views.values()))
        rules = [f'.{self._id}:has(#{a}:target) a[href="#{a}"] {{ outline: {_OPEN}; }}' for a in anchors]
        return f"<style>{' '.join(rules)}</style>" if rules else ""

    def _count(self) -> str:
        return ", ".join((_plural(len(self.rows), "case"), _plural(len(self.wrong), "wrong cell")))

    def _views(self) -> dict[Place, str]:
        return {place: self._still(*place) for place in self.wrong}

    def _anchor(self, html: str) -> str:
        return f"{self._id}-{hashlib.sha256(html.encode()).hexdigest()[:8]}"

    def _group(self, group: str, numbers: list[int], views: dict[Place, str]) -> str:
        cells = "".join(f'<td class="{kind} cell">{text}</td>' for kind, text in self._sums(numbers))
        lines = [f'<tr class="group"><th scope="rowgroup" class="name">{escape(group)}</th>{cells}</tr>']
        lines += [self._row(number, views) for number in numbers if not self.rows[number].right]
        folded = self._folded(numbers)
        if folded:
            lines.append(f'<tr><td colspan="{len(self.columns) + 1}">{folded}</td></tr>')
        return "".join(lines)

    def _sums(self, numbers: list[int]) -> list[tuple[str, str]]:
        """Return for each design how many of some cases are wrong, with the class of the cell."""
        return [self._sum([self.rows[n] for n in numbers], at) for at in range(len(self.columns))]

    @staticmethod
    def _sum(rows: list[Row], at: int) -> tuple[str, str]:
        found = [row.verdicts[at] for row in rows]
        wrong = [verdict for verdict in found if verdict.wrong]
        blamed = [verdict for verdict in wrong if not verdict.known]
        count = f"{len(blamed or wrong)} of {len(rows)}" if wrong else f"{len(rows)}"
        later = "†" if any(verdict.later for verdict in found) else ""
        sign, kind = ("✗", "wrong") if blamed else ("!", "wrong known") if wrong else ("✓", "right")
        return kind, f"{sign} {count}{later}"

    def _folded(self, numbers: list[int]) -> str:
        names = [self.rows[number].name for number in numbers if self.rows[number].right]
        if not names:
            return ""
        count = f"{_plural(len(names), 'case')}, right under every design"
        return f"<details><summary>{count}</summary><p>{escape(', '.join(names))}</p></details>"

    def _row(self, number: int, views: dict[Place, str]) -> str:
        row = self.rows[number]
        cells = "".join(
            f'<td class="{verdict.kind} cell">{self._link(views.get((number, at)), verdict)}</td>'
            for at, verdict in enumerate(row.verdicts)
        )
        return f'<tr><th scope="row" class="case">{_case(row)}</th>{cells}</tr>'

    def _link(self, view: str | None, verdict: Verdict) -> str:
        mark = escape(verdict.mark)
        if view is None:
            return mark
        return f'<a href="#{self._anchor(view)}" title="{escape(verdict.tip)}">{mark}</a>'

    def _section(self, views: dict[Place, str], html: str) -> str:
        row, column = next(place for place, view in views.items() if view == html)
        shared = [self.columns[at].id for (n, at), view in views.items() if n == row and view == html]
        title = f"{self.rows[row].name} under {', '.join(shared)}: {self.rows[row].verdicts[column].tip}"
        back = f'<p><a href="#{self._id}">back to the matrix</a></p>'
        return (
            f'<section class="view" id="{self._anchor(html)}"><h4>{escape(title)}</h4>{html}{back}</section>'
        )

    # JupyterLab -----------------------------------------------------------------------

    def _lines(self) -> list[Any]:
        cells = [self._label(f'<div class="head">{_head(column)}</div>') for column in self.columns]
        lines = [ipywidgets.HTML(self._style()), self._line(f"<div>{self._count()}</div>", cells)]
        for group, numbers in self._groups():
            sums = [self._label(f'<div class="{kind}">{text}</div>') for kind, text in self._sums(numbers)]
            lines.append(self._line(f"<b>{escape(group)}</b>", sums, "1px solid #888"))
            lines += [self._live_row(number) for number in numbers if not self.rows[number].right]
            folded = self._folded(numbers)
            if folded:
                lines.append(self._text(folded, "100%"))
        return lines

    def _text(self, html: str, width: str) -> Any:
        return self._looks.html(f'<div class="{self._id}">{html}</div>', width=width)

    def _label(self, html: str) -> Any:
        centred = f'<div class="{self._id}" style="text-align: center">{html}</div>'
        return self._looks.html(centred, width=_CELL, margin="1px")

    def _line(self, label: str, cells: Sequence[Any], top: str = "0") -> Any:
        layout = self._looks.layout(border_top=top, align_items="center")
        return ipywidgets.HBox([self._text(label, _LABEL), *cells], layout=layout)

    def _live_row(self, number: int) -> Any:
        row = self.rows[number]
        cells = [
            self._button((number, at), verdict)
            if verdict.wrong
            else self._label(f'<div class="right">{verdict.mark}</div>')
            for at, verdict in enumerate(row.verdicts)
        ]
        return self._line(f'<div class="case">{_case(row)}</div>', cells)

    def _button(self, place: Place, verdict: Verdict) -> Any:
        button = ipywidgets.Button(
            description=verdict.mark,
            tooltip=verdict.tip,
            button_style="warning" if verdict.known else "danger",
            layout=self._looks.cell(opened=False),
            style=self._looks.button,
        )
        button.on_click(lambda _: self.open(*place))
        self.buttons[place] = button
        return button

    def open(self, row: int, column: int) -> None:
        """Show the view of a wrong cell below the matrix.

        Raises
        ------
        ValueError
            The cell is not wrong.
        """
        if (row, column) not in self.buttons:
            raise ValueError(
                f"{self.name}: row {row}, column {column} is not wrong; there is nothing to show"
            )
        found = self.rows[row]
        title = f"<b>{escape(found.name)} under {escape(self.columns[column].id)}</b>: "
        line = ipywidgets.HTML(title + escape(found.verdicts[column].tip))
        self.view.children = [line, self._live(row, column).widget]
        self.opened = (row, column)
        for place, button in self.buttons.items():
            button.layout = self._looks.cell(opened=place == self.opened)
        # What has the keyboard is scrolled to; the view itself is not drawn yet.
        self.back.focus()

    def _back(self) -> None:
        if self.opened is not None:
            self.buttons[self.opened].focus()

    def __repr__(self) -> str:
        return f"<Matrix {self.name!r}: {len(self.columns)} designs, {self._count()}>"

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        bundle = dict(self.widget._repr_mimebundle_())
        return {**bundle, "text/html": self.html(), "text/plain": repr(self)}


def _head(column: Column) -> str:
    # A long name breaks at its underscores.
    name = escape(column.name).replace("_", "_<wbr>")
    return f'<span title="{escape(column.tip)}"><b>{escape(column.id)}</b>{name}</span>'


def _case(row: Row) -> str:
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    return f"{escape(row.name)}{note}"


def _plural(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")
