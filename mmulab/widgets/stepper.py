"""The stepper: walk through a recorded fault as if standing in it.

>>> Stepper(recording)  # doctest: +SKIP

as the last line of a cell shows it. In an exported page, which has no kernel,
the step that it stands on stays as a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets

from mmulab.errors import InputError
from mmulab.trace.look import Look
from mmulab.trace.recording import Recording
from mmulab.trace.search import SEARCHES, Grain, Predicate
from mmulab.widgets.blocks import panels_html
from mmulab.widgets.density import Density
from mmulab.widgets.session import Session

__all__ = ["Stepper"]

PLAY_MILLISECONDS = 800
_TIMELINE = """<style>
.mml-timeline { position: relative; z-index: 1; height: 50px !important; margin: -54px 2px 0 !important; }
.mml-timeline .slider-container { height: 50px; padding: 0 !important; }
.mml-timeline .noUi-base::before { content: ""; position: absolute; inset: 0 -8px; }
.mml-timeline .noUi-target, .mml-timeline .noUi-connects, .mml-timeline .noUi-connect {
  height: 50px !important; top: 0 !important; background: none !important; border: 0 !important;
  box-shadow: none !important; cursor: pointer; }
.mml-timeline .noUi-handle { width: 12px !important; height: 50px !important; top: 0 !important;
  right: -6px !important; background: none !important; border: 0 !important; box-shadow: none !important; }
.mml-timeline .noUi-handle:focus { outline: 2px solid #0072b2 !important; }
.mml-timeline .noUi-active { background: #0003 !important; }
.NAME .slider-container { margin: 0 INSET% !important; }
</style>"""
"""Lays the slider, unseen, on the picture of the run: its ends stand on the first and the last moment."""


class Stepper:
    """A recording to step through, forward and back.

    Parameters
    ----------
    recording : Recording
    at : int
        Number of the moment to begin at.
    breakpoints : mapping of str to callable, optional
        Names to predicates over events, for the search "breakpoint".
    address : int, optional
        Guest-virtual address to follow instead of the one that each moment is about.

    Attributes
    ----------
    session : Session
    widget : ipywidgets.VBox

    Notes
    -----
    Every control is reached with Tab; Enter or Space presses a button. The timeline can be clicked,
    and there the arrow keys go from moment to moment, Home and End to the ends.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        at: int = 0,
        breakpoints: Mapping[str, Predicate] | None = None,
        address: int | None = None,
    ) -> None:
        self.session = Session(recording, at=at, breakpoints=breakpoints, address=address)
        self._density = Density(recording)
        self._showing = False
        self._make_controls()
        self._connect()
        self.show()

    # Controls -----------------------------------------------------------------------

    def _make_controls(self) -> None:
        last = self.session.last
        self.grain = ipywidgets.ToggleButtons(
            options=[(grain.value, grain) for grain in Grain],
            tooltips=["", "to where KVM handles one", "to its end"],
        )
        self.grain.style.button_width = "6rem"
        self.previous = _button("◀ Previous", "one step back")
        self.next = _button("Next ▶", "one step on")
        self.play = ipywidgets.Play(
            min=0, max=last, interval=PLAY_MILLISECONDS, show_repeat=False, tooltip="step on by itself"
        )
        self.slider = ipywidgets.IntSlider(
            value=self.session.at,
            min=0,
            max=last,
            continuous_update=False,
            readout=False,
            tooltip="click, or arrow keys",
            layout={"width": "auto"},
        )
        name = f"mml-timeline-{last}"
        for known in ("mml-timeline", name):
            self.slider.add_class(known)
        # In percent; the first and the last moment lie half a moment from the picture's ends.
        self._style = _TIMELINE.replace("NAME", name).replace("INSET", f"{50 / (last + 1):.4f}")
        searches = [(search.label, name) for name, search in SEARCHES.items()]
        searches += [(f"breakpoint {name}", f"breakpoint {name}") for name in self.session.breakpoints]
        self.what = ipywidgets.Dropdown(options=searches, description="search", layout={"width": "18rem"})
        self.argument = ipywidgets.Text(placeholder="gfn or name", layout={"width": "9rem"})
        self.find_previous = _button("◀ Find", "the one before")
        self.find_next = _button("Find ▶", "the next one")
        self.address = ipywidgets.Text(
            value="" if self.session.address is None else f"{self.session.address:x}",
            description="follow gva",
            placeholder="as it comes",
            layout={"width": "15rem"},
        )
        self.place = ipywidgets.HTML(layout={"overflow": "hidden"})
        self.density = ipywidgets.HTML(layout={"width": "auto", "height": "50px", "overflow": "hidden"})
        self.message = ipywidgets.HTML()
        self.body = ipywidgets.HTML()
        row = ipywidgets.HBox
        wrap = {"flex_flow": "row wrap"}
        self.widget = ipywidgets.VBox(
            [
                self.place,  # in a row of its own, so that its length moves nothing
                row([self.previous, self.next, self.grain, self.play], layout=wrap),
                self.density,
                self.slider,
                row(
                    [self.what, self.argument, self.find_previous, self.find_next, self.address], layout=wrap
                ),
                self.message,
                self.body,
            ]
        )

    def _connect(self) -> None:
        self.previous.on_click(lambda _: self.step(back=True))
        self.next.on_click(lambda _: self.step())
        self.find_previous.on_click(lambda _: self.find(back=True))
        self.find_next.on_click(lambda _: self.find())
        self.slider.observe(lambda change: self.goto(change["new"]), "value")
        self.play.observe(lambda _: self._tick(), "value")
        self.address.observe(lambda change: self._follow(change["new"]), "value")
        self.address.continuous_update = False

    # What the controls do --------------------------------------------------------------

    @property
    def at(self) -> int:
        """Number of the moment at hand."""
        return self.session.at

    @property
    def look(self) -> Look:
        """What is to be seen."""
        return self.session.look()

    def step(self, grain: Grain | None = None, *, back: bool = False) -> None:
        """Go one step on, or back, by the chosen grain if none is given."""
        self.session.step(grain or self.grain.value, back=back)
        self.show()

    def goto(self, number: int) -> None:
        """Stand on a moment."""
        if number != self.session.at and not self._showing:
            self.session.goto(number)
            self.show()

    def find(self, what: str | None = None, argument: str | None = None, *, back: bool = False) -> None:
        """Go to the next, or previous, moment that a search finds; what the controls say if none is given."""
        what = self.what.value if what is None else what
        argument = self.argument.value if argument is None else argument
        label = SEARCHES[what].label if what in SEARCHES else what
        try:
            if what.startswith("breakpoint "):
                arrived = self.session.run(what.removeprefix("breakpoint "), back=back)
            else:
                arrived = self.session.find(what, argument, back=back)
        except InputError as error:
            self.show(str(error))
            return
        where = "before" if back else "after"
        self.show("" if arrived else f"{label} {argument}: none {where} this moment")

    def _follow(self, text: str) -> None:
        try:
            self.session.address = int(text, 16) if text.strip() else None
        except ValueError:
            self.show(f"follow gva: {text!r} is no hexadecimal number")
            return
        self.show()

    def _tick(self) -> None:
        """Play: the value only says that time has passed."""
        if self._showing:
            return
        before = self.session.at
        self.step()
        if self.session.at == before:
            self.play.playing = False

    # What is shown --------------------------------------------------------------------

    def show(self, message: str = "") -> None:
        """Draw the moment at hand."""
        session = self.session
        self._showing = True
        try:
            self.slider.value = session.at
            self.play.value = min(session.at, session.last)
        finally:
            self._showing = False
        event = session.look().event
        named = "the end of the op" if event is None else session.recording.name_of(event)
        self.place.value = (
            f'<b style="white-space: nowrap">moment {session.at} of {session.last}: {escape(named)}</b>'
        )
        self.density.value = self._style + str(self._density.picture(session.at, session.found))
        self.body.value = panels_html(session.panels())
        self.message.value = f'<p role="status"><b>{escape(message)}</b></p>' if message else ""
        self.previous.disabled = session.at == 0
        self.next.disabled = session.at == session.last

    def html(self) -> str:
        """Return the step at hand as HTML that needs no script."""
        timeline = self._density.html(self.session.at, self.session.found)
        return f'<div class="stepper">{timeline}{panels_html(self.session.panels())}</div>'

    def __repr__(self) -> str:
        return f"<Stepper at moment {self.at} of {self.session.recording!r}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        bundle = dict(self.widget._repr_mimebundle_())
        return {**bundle, "text/html": self.html(), "text/plain": repr(self)}


def _button(text: str, tooltip: str) -> Any:
    return ipywidgets.Button(description=text, tooltip=tooltip, layout={"width": "7rem"})
