"""A notebook's parameters as lists to choose from, beside the cell that sets them.

A list cannot run cells, so a choice waits until the notebook is run again:
:func:`mmulab.report.parameters.check` then puts it in the place of what the
parameters' cell says. Where there is no live view, a line has the values instead.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from html import escape
from typing import Any, NamedTuple

import ipywidgets

__all__ = ["Choice", "Choices"]

_UNUSED = "A choice counts when the notebook is run again: <b>Run ▸ Run All Cells</b>."
_USED = "<b>Run ▸ Run All Cells</b> takes it up; a Jupyter kernel that is restarted forgets it."


class Choice(NamedTuple):
    """What was chosen for a parameter, and what it stands in place of."""

    written: Any
    value: Any


class Choices:
    """Lists of the parameters that can be listed.

    Parameters
    ----------
    values : mapping of str to object
        What every parameter is.
    options : mapping of str to sequence of str
        What those may be that have a list.
    chosen : dict of str to Choice
        What was chosen so far; it is kept up to date.

    Attributes
    ----------
    lists : dict of str to ipywidgets.Dropdown
    widget : ipywidgets.VBox
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        options: Mapping[str, Sequence[str]],
        chosen: MutableMapping[str, Choice],
    ) -> None:
        self.values, self.chosen = dict(values), chosen
        self._written = {name: chosen[name].written if name in chosen else values[name] for name in options}
        self.lists = {name: self._list(name, names) for name, names in options.items()}
        self._said = ipywidgets.HTML()
        row = ipywidgets.HBox(list(self.lists.values()), layout={"flex_flow": "row wrap"})
        self.widget = ipywidgets.VBox([row, self._said])
        self._say()

    def _list(self, name: str, options: Sequence[str]) -> Any:
        """Return the list of one parameter; what is set now is in it, and what the cell says."""
        known = dict.fromkeys([self._written[name], self.values[name], *options])
        dropdown = ipywidgets.Dropdown(
            options=list(known),
            value=self.values[name],
            description=name,
            style={"description_width": "initial"},
            layout={"width": "auto", "max_width": "24rem"},
        )
        dropdown.observe(lambda change: self._choose(name, change["new"]), "value")
        return dropdown

    def _choose(self, name: str, value: Any) -> None:
        if value == self._written[name]:
            self.chosen.pop(name, None)
        else:
            self.chosen[name] = Choice(self._written[name], value)
        self._say()

    def _say(self) -> None:
        said = [
            f"<code>{escape(name)}</code> is <b>{escape(str(choice.value))}</b> in place of "
            f"{escape(str(choice.written))}"
            for name, choice in self.chosen.items()
        ]
        self._said.value = f"{'; '.join(said)}. {_USED}" if said else _UNUSED

    def html(self) -> str:
        """Return the values as a line that needs no script."""
        said = (
            f"<code>{escape(name)}</code> {escape(str(value)) or '(empty)'}"
            for name, value in self.values.items()
        )
        return f'<p class="ran-with">Run with {", ".join(said)}.</p>'

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.values.items())

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        bundle = dict(self.widget._repr_mimebundle_())
        return {**bundle, "text/html": self.html(), "text/plain": repr(self)}
