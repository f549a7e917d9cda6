"""A list of places in a run: each leads to a view of it.

In JupyterLab the places are buttons. Everywhere else they are links to views
further down in the same output, which need neither a Jupyter kernel nor a script.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets

__all__ = ["Places"]

_FIRST, _WIDTH = "13rem", "9rem"
_STYLE = """
.ID { font: 13px/1.35 "DejaVu Sans", sans-serif; color: #1a1a1a; background: #fff; overflow-x: auto; }
.ID > table { border-collapse: collapse; margin: 0.5rem 0; font-size: 13px; }
.ID > table th, .ID > table td { border: 1px solid #ccc; padding: 2px 8px; font-weight: normal; }
.ID > table th { text-align: left; background: #f2f2f2; }
.ID > table a:focus-visible { outline: 3px solid #0072b2; }
.ID .view { display: none; border: 2px solid #0072b2; padding: 0.5rem 0.75rem; margin: 0.75rem 0; }
.ID .view:target { display: block; }
"""


class Places:
    """Places by number, each a line of a table.

    Parameters
    ----------
    columns : sequence of str
    rows : sequence of sequence of str
        One a place; the first word of a row is what leads to its view.
    still : callable
        ``still(number) -> str``: HTML of a place's view, which needs no script.
    live : callable
        ``live(number)``: an object whose ``widget`` is that view with controls.
    name : str
        Says what the places are of.

    Attributes
    ----------
    widget : ipywidgets.VBox
    view : ipywidgets.VBox
        Holds the view that was opened last.
    buttons : list of ipywidgets.Button
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        still: Callable[[int], str],
        live: Callable[[int], Any],
        name: str,
    ) -> None:
        self.columns, self.rows, self.name = tuple(columns), [tuple(row) for row in rows], name
        self._still, self._live = still, live
        self._id = "plc" + hashlib.sha256(repr((self.columns, self.rows, name)).encode()).hexdigest()[:12]
        self._html: str | None = None
        self.view = ipywidgets.VBox([])
        self.buttons = [self._button(number) for number in range(len(self.rows))]
        lines = [self._line(ipywidgets.HTML(f"<b>{escape(self.columns[0])}</b>"), self.columns[1:])]
        lines += [self._line(button, row[1:]) for button, row in zip(self.buttons, self.rows, strict=True)]
        self.widget = ipywidgets.VBox([*lines, self.view])

    def _button(self, number: int) -> Any:
        button = ipywidgets.Button(description=self.rows[number][0], tooltip=f"open {self.name} there")
        button.on_click(lambda _: self.open(number))
        return button

    @staticmethod
    def _line(first: Any, words: Sequence[str]) -> Any:
        first.layout = {"width": _FIRST}
        cells = [ipywidgets.HTML(escape(word), layout={"width": _WIDTH}) for word in words]
        return ipywidgets.HBox([first, *cells])

    def open(self, number: int) -> None:
        """Show the view of a place below the list."""
        title = ipywidgets.HTML(f"<b>{escape(self.name)}</b>: {escape(', '.join(self.rows[number]))}")
        self.view.children = [title, self._live(number).widget]

    def html(self) -> str:
        """Return the list and all views as HTML that needs no script."""
        if self._html is None:
            head = "".join(f'<th scope="col">{escape(column)}</th>' for column in self.columns)
            body = "".join(self._row(number) for number in range(len(self.rows)))
            views = "".join(self._section(number) for number in range(len(self.rows)))
            table = f'<table aria-label="{escape(self.name)}"><thead><tr>{head}</tr></thead>'
            table += f"<tbody>{body}</tbody></table>"
            self._html = (
                f"<style>{_STYLE.replace('ID', self._id)}</style>"
                f'<div class="{self._id} places" id="{self._id}">{table}{views}</div>'
            )
        return self._html

    def _row(self, number: int) -> str:
        first, *others = self.rows[number]
        cells = "".join(f"<td>{escape(word)}</td>" for word in others)
        return f'<tr><td><a href="#{self._id}-{number}">{escape(first)}</a></td>{cells}</tr>'

    def _section(self, number: int) -> str:
        back = f'<p><a href="#{self._id}">back to the list</a></p>'
        return f'<section class="view" id="{self._id}-{number}">{self._still(number)}{back}</section>'

    def __repr__(self) -> str:
        return f"<Places {self.name!r}: {len(self.rows)}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        bundle = dict(self.widget._repr_mimebundle_())
        return {**bundle, "text/html": self.html(), "text/plain": repr(self)}
