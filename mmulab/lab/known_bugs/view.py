"""A bug's page: the search for it, what it found, the step that is wrong, and the fix beside it.

In JupyterLab the bug is chosen from a list, and the search is watched. Everywhere else
the page holds what the chosen bug's search came to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets

from mmulab.errors import InputError
from mmulab.kvm.bug import SWITCHES, Bug
from mmulab.kvm.bugs import BUGS
from mmulab.lab.known_bugs.follow import Followed, Search, follow
from mmulab.lab.known_bugs.sequence import SAVED, Replayed, saved_path, saved_table, sequence_of
from mmulab.report.results import Table
from mmulab.widgets.figure import Twin, line_chart
from mmulab.widgets.multiples import multiples
from mmulab.widgets.places import Places

__all__ = ["BugPage", "Part", "catalogue", "effort_charts", "places_chart", "progress_words", "saved_part"]

MOST_PLACES = 24
"""Places that are drawn each by itself, those that took longest."""
_NOTHING = "Nothing was found, and no sequence is saved: there is nothing to step through."


class Part:
    """A part of a page that can show something else later, in JupyterLab and as HTML.

    Attributes
    ----------
    widget : ipywidgets.VBox
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._html = ""
        self._table: Table | None = None
        self.widget = ipywidgets.VBox([])

    def show(self, html: str, live: Any = None, table: Table | None = None) -> None:
        """Show HTML, in JupyterLab the widget `live` if there is one; a results table goes with it."""
        self._html, self._table = html, table
        self.widget.children = [ipywidgets.HTML(html) if live is None else live]

    def html(self) -> str:
        """Return what is shown as HTML that needs no script."""
        return self._html

    def __repr__(self) -> str:
        return f"<Part {self._name!r}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        table = {} if self._table is None else self._table._repr_mimebundle_()
        bundle = dict(self.widget._repr_mimebundle_())
        return {**table, **bundle, "text/html": self._html, "text/plain": repr(self)}


class BugPage:
    """A bug, its search, and what came of it; each part is shown by a cell of its own.

    Parameters
    ----------
    search : Search
    prefer : str
        Which sequence is stepped, of :data:`mmulab.lab.known_bugs.sequence.SOURCES`.

    Attributes
    ----------
    followed : Followed or None
    replayed : Replayed or None
    bug : ipywidgets.Dropdown
    button : ipywidgets.Button
        Searches for the bug that is chosen.
    status : ipywidgets.HTML
        How far the search is.
    chooser : Part
        The list of bugs, the button, how far the search is, and the bug in words.
    effort, places, words, stepper, sides : Part
        States and ops over time and by place; the two outcomes; the run with the bug, of which a page has
        the moments that tell how it went wrong; both runs side by side.
    """

    def __init__(self, search: Search, prefer: str = SAVED) -> None:
        self._search, self._prefer = search, prefer
        self.followed: Followed | None = None
        self.replayed: Replayed | None = None
        options = [(f"{name}: {BUGS[name].title}", name) for name in SWITCHES]
        self.bug = ipywidgets.Dropdown(options=options, description="bug", layout={"width": "36rem"})
        self.button = ipywidgets.Button(description="Search", tooltip="undo its fix and search")
        self.button.on_click(lambda _: self.search(str(self.bug.value)))
        self.status = ipywidgets.HTML()
        self.chooser, self.effort, self.places = Part("bug"), Part("effort"), Part("places")
        self.words, self.stepper, self.sides = Part("outcomes"), Part("stepper"), Part("side by side")

    def search(self, bug: str, tell: Callable[[Followed], None] = lambda followed: None) -> BugPage:
        """Search for a bug, and show in every part what came of it.

        Parameters
        ----------
        bug : str
        tell : callable
            Called after each turn of the search.

        Raises
        ------
        InputError
            The bug is unknown or has no switch.
        """

        def told(followed: Followed) -> None:
            self.status.value = f"<p>{escape(progress_words(followed))}</p>"
            tell(followed)

        self.button.disabled = True
        try:
            self.followed = follow(bug, self._search, told)
        finally:
            self.button.disabled = False
        self.bug.value = bug
        self.replayed = sequence_of(self.followed, self._search.kernel, self._prefer)
        self._show(self.followed, self.replayed)
        return self

    def _show(self, followed: Followed, replayed: Replayed | None) -> None:
        about, said = _about(followed.bug), f"<p role='status'><b>{escape(followed.said)}.</b></p>"
        self.status.value = said
        row = ipywidgets.HBox([self.bug, self.button])
        live = ipywidgets.VBox([row, ipywidgets.HTML(about), self.status])
        self.chooser.show(f"{about}{said}{_found(followed)}", live)
        for part, charts in (
            (self.effort, effort_charts(followed)),
            (self.places, [places_chart(followed)]),
        ):
            pictures = "".join(f'<div class="figure">{chart.svg}</div>' for chart in charts)
            part.show(pictures, ipywidgets.VBox([chart.widget for chart in charts]))
        if replayed is None:
            for part in (self.words, self.stepper, self.sides):
                part.show(f"<p>{_NOTHING}</p>")
            return
        self.words.show(replayed.html())
        self._show_run(replayed)

    def _show_run(self, replayed: Replayed) -> None:
        try:
            story = replayed.story(f"the run with {replayed.bug.id}")
            self.stepper.show(story.html(), replayed.stepper().widget)
        except InputError as error:
            self.stepper.show(f"<p>{escape(str(error))}</p>")
        both = replayed.sides()
        # What a search has just found depends on the machine's speed, so only a saved one is a result.
        saved = saved_path(replayed.bug.id)
        table = both.table if saved is not None and replayed.source.endswith(saved.name) else None
        self.sides.show(both._repr_html_(), table=table)


def progress_words(followed: Followed) -> str:
    """Say how far a search is."""
    hunted = followed.hunted
    return f"{hunted.states:,} states, {hunted.ops:,} random ops; in {hunted.place or 'no place yet'}"


def _about(bug: Bug) -> str:
    cve = f", {bug.cve}" if bug.cve else ""
    since = bug.introduced or "not known"
    facts = f"fix {bug.commit or 'not known'}{cve}; since {since}, fixed in {bug.fixed or 'not known'}"
    breaks = f"invariant {', '.join(bug.breaks)}" if bug.breaks else "no invariant: an outcome is wrong"
    return (
        f"<p><b>{escape(bug.id)}: {escape(bug.title)}</b> ({escape(facts)})</p>"
        f"<p>{escape(bug.mechanism)}</p><p>It breaks {escape(breaks)}.</p>"
    )


def _found(followed: Followed) -> str:
    """Return what a search found as HTML: the finding, and its ops."""
    if followed.trouble is None:
        return ""
    finding = followed.trouble.finding
    return f"<p>What it found: <code>{escape(str(finding))}</code></p>"


def effort_charts(followed: Followed) -> list[Twin]:
    """Return the states of a search over time, and its random ops."""
    samples = followed.samples
    times = [sample.seconds for sample in samples]
    counts = {"states": [one.states for one in samples], "random ops": [one.ops for one in samples]}
    return [
        line_chart(
            times,
            {name: values},
            title=f"The search for {followed.bug.id}: {name} so far",
            x_label="seconds on the clock",
        )
        for name, values in counts.items()
    ]


def places_chart(followed: Followed) -> Twin:
    """Return what a search did in each place."""
    spent = followed.by_place(MOST_PLACES)
    trouble = followed.trouble
    marked = [number for number, one in enumerate(spent) if trouble and one.place == trouble.place]
    measures: dict[str, list[float]] = {
        "seconds": [round(one.seconds, 2) for one in spent],
        "states": [one.states for one in spent],
        "random ops": [one.ops for one in spent],
    }
    found = "; hatched: where it was found" if marked else ""
    title = f"The search for {followed.bug.id} by place{found}"
    return multiples([one.place for one in spent], measures, title=title, marked=marked)


def saved_part(replayed: Sequence[Replayed]) -> Part:
    """Return the saved sequences as a list; each line leads to its ops and their two outcomes.

    In JupyterLab it leads to the run with the bug, to step through. The list is a results table.
    """
    table = saved_table(replayed)
    places = Places(
        table.columns,
        [["" if value is None else str(value) for value in row] for row in table.rows],
        still=lambda number: replayed[number].html(),
        live=lambda number: replayed[number].stepper(),
        name="saved sequences",
    )
    part = Part("saved sequences")
    part.show(places.html(), places.widget, table)
    return part


def catalogue() -> Table:
    """Return the catalogue of bugs as a results table."""
    rows = [
        [
            *(bug.id, bug.title, bug.commit, bug.cve, " ".join(bug.breaks), bug.introduced, bug.fixed),
            "yes" if bug.has_switch else f"no: {bug.missing}",
        ]
        for bug in BUGS.values()
    ]
    columns = ["bug", "title", "fix", "CVE", "breaks", "since", "fixed in", "switch"]
    return Table("catalogue", columns, rows, "The historical bugs; an empty cell: no source says.")
