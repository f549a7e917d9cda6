"""One switch after another: how long the search takes to find each bug again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets

from mmulab.errors import InputError
from mmulab.lab.known_bugs.follow import Followed, Search, follow
from mmulab.lab.known_bugs.sequence import FOUND, WATCHED_BY, Replayed, sequence_of
from mmulab.widgets.figure import Twin
from mmulab.widgets.log_bars import log_bars
from mmulab.widgets.places import Places

__all__ = ["flip", "flips_chart", "flips_places"]

_COLUMNS = (
    *("bug", "found", "seconds", "CPU seconds", "states", "random ops"),
    *("ops", "place", "noticed by", "CVE"),
)
_LEAST = 0.1
"""Seconds; what is found sooner is drawn as long as this."""


def flip(
    bugs: Sequence[str], search: Search, tell: Callable[[int, Followed], None] = lambda number, followed: None
) -> list[Followed]:
    """Search for each of some bugs, one after another; an interrupt leaves the rest out.

    Parameters
    ----------
    bugs : sequence of str
    search : Search
    tell : callable
        Called after each turn with the number of the bug and its search.

    Raises
    ------
    InputError
        A bug is unknown or has no switch, or the kernel is unknown.
    """
    done: list[Followed] = []
    for number, bug in enumerate(bugs):
        done.append(follow(bug, search, lambda followed, number=number: tell(number, followed)))  # type: ignore[misc]
        if done[-1].hunted.interrupted:
            break
    return done


def flips_chart(flips: Sequence[Followed]) -> Twin:
    """Return the seconds that each search took; of a bug that was not found, what was spent."""
    return log_bars(
        [f"{one.bug.id}: {_short(one)}" for one in flips],
        [max(round(one.seconds, 1), _LEAST) for one in flips],
        title="Time to find each bug; hatched: not found in this time",
        value_label="seconds on the clock, until the sequence is minimal",
        open_ended=[number for number, one in enumerate(flips) if one.trouble is None],
    )


def _short(one: Followed) -> str:
    title = one.bug.title
    return title if len(title) <= 44 else title[:42].rstrip() + " .."


def flips_places(flips: Sequence[Followed], kernel: str) -> Places:
    """Return the searches as a list; each line leads to the sequence that was found.

    Parameters
    ----------
    flips : sequence of Followed
    kernel : str
        The right one.
    """
    replayed = [sequence_of(one, kernel, FOUND) for one in flips]
    return Places(
        _COLUMNS,
        [_row(one) for one in flips],
        still=lambda number: _still(flips[number], replayed[number]),
        live=lambda number: _Live(flips[number], replayed[number]),
        name="switches",
    )


def _row(one: Followed) -> list[str]:
    hunted, trouble = one.hunted, one.trouble
    counts = [f"{hunted.states:,}", f"{hunted.ops:,}"]
    if trouble is None:
        ended = "interrupted" if hunted.interrupted else "no"
        return [one.bug.id, ended, f"> {one.seconds:.1f}", "", *counts, "", "", "", one.bug.cve]
    told = [str(len(trouble.scenario.steps)), trouble.place, WATCHED_BY[trouble.finding.kind]]
    spent = [f"{trouble.seconds:.1f}", f"{trouble.cpu_seconds:.1f}"]
    return [one.bug.id, "yes", *spent, *counts, *told, one.bug.cve]


def _still(one: Followed, replayed: Replayed | None) -> str:
    about = f"<p><b>{escape(one.bug.id)}: {escape(one.bug.title)}</b></p><p>{escape(one.said)}.</p>"
    if replayed is None:
        return about
    try:
        return f"{about}{replayed.html()}{replayed.story(f'switch {one.bug.id}').html()}"
    except InputError as error:
        return f"{about}{replayed.html()}<p>{escape(str(error))}</p>"


class _Live:
    """A search's end with a stepper below."""

    def __init__(self, one: Followed, replayed: Replayed | None) -> None:
        parts: list[Any] = [ipywidgets.HTML(f"<p>{escape(one.said)}.</p>")]
        if replayed is not None:
            parts.append(ipywidgets.HTML(replayed.html()))
            try:
                parts.append(replayed.stepper().widget)
            except InputError as error:
                parts.append(ipywidgets.HTML(f"<p>{escape(str(error))}</p>"))
        self.widget = ipywidgets.VBox(parts)
