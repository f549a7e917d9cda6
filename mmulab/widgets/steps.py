"""Pictures and words in steps, with Previous and Next.

In JupyterLab it is a widget. Everywhere else it is HTML that steps with neither
a Jupyter kernel nor a script: radio buttons hold the position, labels are the buttons,
and the arrow keys work because radio buttons have them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import ipywidgets

__all__ = ["Step", "Steps"]

_STYLE = """
.ID { position: relative; border: 1px solid #999; padding: 0.5rem 0.75rem; margin: 1rem 0; }
.ID > input { position: absolute; opacity: 0; }
.ID > section { display: none; border: 0; padding: 0; }
.ID nav { display: flex; flex-wrap: wrap; gap: 0.5rem 0.75rem; align-items: center; margin-bottom: 0.5rem; }
.ID label, .ID nav > s { padding: 0.1rem 0.8rem; border: 1px solid #555; border-radius: 3px; }
.ID label, .ID nav > s { flex: none; white-space: nowrap; }
.ID label { cursor: pointer; background: #eee; }
.ID nav > span { overflow-wrap: anywhere; min-width: 12rem; flex: 1; }
.ID nav > s { color: #767676; border-color: #bbb; text-decoration: none; }
.ID > input:focus-visible ~ section label { outline: 2px solid #0072b2; }
@media print { .ID > section { display: block; } .ID nav label, .ID nav > s { display: none; } }
"""


class Step(NamedTuple):
    """One position: what it is called, and the HTML that shows it."""

    title: str
    html: str


class Steps:
    """Steps to walk through, one at a time.

    Parameters
    ----------
    steps : sequence of Step
    name : str
        Says what is walked through.
    at : int
        The position at the beginning.

    Attributes
    ----------
    at : int
        The position; setting it shows that step.
    widget : ipywidgets.VBox
    """

    def __init__(self, steps: Sequence[Step], *, name: str, at: int = 0) -> None:
        self.steps = tuple(steps)
        self.name = name
        last = len(self.steps) - 1
        self._slider = ipywidgets.IntSlider(
            at, 0, last, description="step", tooltip="arrow keys step", readout=False
        )
        self._previous = ipywidgets.Button(description="◀ Previous", tooltip="one step back")
        self._next = ipywidgets.Button(description="Next ▶", tooltip="one step on")
        self._title = ipywidgets.HTML()
        self._body = ipywidgets.HTML()
        self._previous.on_click(lambda _: self._go(self.at - 1))
        self._next.on_click(lambda _: self._go(self.at + 1))
        self._slider.observe(lambda _: self._show(), "value")
        bar = ipywidgets.HBox([self._previous, self._next, self._slider, self._title])
        self.widget = ipywidgets.VBox([bar, self._body])
        self._show()

    @property
    def at(self) -> int:
        """The position."""
        return int(self._slider.value)

    @at.setter
    def at(self, position: int) -> None:
        if not 0 <= position < len(self.steps):
            raise IndexError(f"{self.name}: step {position}, there are {len(self.steps)}")
        self._slider.value = position

    def _go(self, position: int) -> None:
        self._slider.value = min(max(position, 0), len(self.steps) - 1)

    def _show(self) -> None:
        step = self.steps[self.at]
        self._title.value = f"<b>{self.at + 1} of {len(self.steps)}</b>: {escape(step.title)}"
        self._body.value = step.html
        self._previous.disabled = self.at == 0
        self._next.disabled = self.at == len(self.steps) - 1

    def html(self) -> str:
        """Return the steps as HTML that needs no script."""
        content = "".join(step.title + step.html for step in self.steps) + self.name
        name = "mml" + hashlib.sha256(content.encode()).hexdigest()[:12]
        numbers = range(len(self.steps))
        shown = "".join(f"#{name}-{n}:checked ~ #{name}-s{n} {{ display: block; }}\n" for n in numbers)
        radios = "".join(
            f'<input type="radio" name="{name}" id="{name}-{n}" aria-label="step {n + 1}"'
            f"{' checked' if n == self.at else ''}>"
            for n in numbers
        )
        sections = "".join(self._section(name, n, step) for n, step in enumerate(self.steps))
        style = f"<style>{_STYLE.replace('ID', name)}{shown}</style>"
        role = f'role="group" aria-label="{escape(self.name)}"'
        return f'{style}<div class="{name} steps" {role}>{radios}{sections}</div>'

    def _section(self, name: str, number: int, step: Step) -> str:
        buttons = "".join(
            f'<label for="{name}-{to}">{text}</label>' if 0 <= to < len(self.steps) else f"<s>{text}</s>"
            for text, to in (("◀ Previous", number - 1), ("Next ▶", number + 1))
        )
        title = f"<b>{number + 1} of {len(self.steps)}</b>: {escape(step.title)}"
        return f'<section id="{name}-s{number}"><nav>{buttons}<span>{title}</span></nav>{step.html}</section>'

    def __repr__(self) -> str:
        return f"<Steps {self.name!r}, {len(self.steps)} steps>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        bundle = dict(self.widget._repr_mimebundle_())
        return {**bundle, "text/html": self.html(), "text/plain": repr(self)}
