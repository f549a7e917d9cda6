"""A recording on one page that steps with neither a kernel nor the network.

The panels of every step are drawn beforehand; equal panels are kept once. The
step that the page opens at is in its own HTML, so that it shows without a script too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from mmulab import files
from mmulab.errors import InputError
from mmulab.trace.recording import Recording
from mmulab.trace.search import SEARCHES, Grain, find, stops
from mmulab.widgets.blocks import STYLE
from mmulab.widgets.density import Density
from mmulab.widgets.session import Session

__all__ = ["MOST", "stepper_page", "write_stepper_page"]

MOST = 4000
"""Moments that one page holds at most."""
SCRIPT = Path(__file__).parent / "static" / "stepper.js"
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0 auto; max-width: 72rem; padding: 0.5rem 1rem; font: 14px/1.4 "DejaVu Sans", sans-serif; }
#controls > div { display: flex; flex-wrap: wrap; gap: 0.5rem; align-items: center; margin: 0.4rem 0; }
#slider { width: 100%; margin: 0; }
#picture { position: relative; }
#picture svg { display: block; width: 100%; height: auto; }
#density { position: absolute; top: 25%; bottom: 0; width: 2px; background: #1a1a1a; }
kbd { border: 1px solid #999; border-radius: 3px; padding: 0 0.25rem; font-family: monospace; }
"""
_KEYS = (
    "<kbd>n</kbd> <kbd>p</kbd> event, <kbd>f</kbd> <kbd>F</kbd> fault, <kbd>o</kbd> <kbd>O</kbd> operation, \
<kbd>s</kbd> <kbd>S</kbd> find: next and previous"
)


def stepper_page(
    recording: Recording,
    *,
    title: str = "",
    first: int = 0,
    last: int | None = None,
    at: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> str:
    """Return a page that steps through some moments of a recording.

    Parameters
    ----------
    recording : Recording
    title : str
    first, last : int
        Numbers of the first and the last moment, both included; all by default.
    at : int, optional
        The moment that the page opens at; `first` by default.
    progress : callable, optional
        Called with the number of moments drawn so far.

    Raises
    ------
    InputError
        Too many moments for a page, or none; or `at` is none of them.
    """
    last = len(recording) - 1 if last is None else last
    if not 0 <= first <= last < len(recording):
        raise InputError(f"moments {first} to {last}: the recording has 0 to {len(recording) - 1}")
    if last - first >= MOST:
        raise InputError(f"{last - first + 1} moments are too many for a page; name a part of at most {MOST}")
    at = first if at is None else at
    if not first <= at <= last:
        raise InputError(f"moment {at}: the page has {first} to {last}")
    session = Session(recording, at=first)
    kept: dict[str, int] = {}
    steps = []
    for number in range(first, last + 1):
        session.goto(number)
        panels = [kept.setdefault(panel.html(), len(kept)) for panel in session.panels()]
        event = session.look().event
        name = "end of the op" if event is None else recording.name_of(event)
        gfn = getattr(event, "gfn", None)
        steps.append({"panels": panels, "title": name, "gfn": None if gfn is None else f"{gfn:x}"})
        if progress is not None:
            progress(number - first + 1)
    density = Density(recording)
    data = {
        "ends": [density.share(first), density.share(last)],
        "first": first,
        "at": at - first,
        "panels": list(kept),
        "steps": steps,
        "stops": {grain.value: _within(stops(recording, grain), first, last) for grain in Grain},
        "finds": _finds(recording, first, last),
    }
    title = title or recording.info.source or "recording"
    return _page(title, data, str(density.picture(None)))


def _within(numbers: Any, first: int, last: int) -> list[int]:
    """Return those of `numbers` that the page has, counted from its first moment."""
    if numbers is None:
        return []
    return [number - first for number in numbers.tolist() if first <= number <= last]


def _finds(recording: Recording, first: int, last: int) -> dict[str, list[int]]:
    """Return where each search arrives; what is wrong comes first, where the page's list stands at first."""
    ready = {name: search for name, search in SEARCHES.items() if not search.argument}
    found = {name: _within(find(recording, name), first, last) for name in ready}
    names = sorted((name for name, places in found.items() if places), key=lambda name: name != "wrong")
    return {name: found[name] for name in names}


def _page(title: str, data: dict[str, Any], density: str) -> str:
    begin = data["steps"][data["at"]]["panels"]
    panels = "".join(data["panels"][number] for number in begin)
    options = "".join(
        f'<option value="{name}">{escape(SEARCHES[name].label)}</option>' for name in data["finds"]
    )
    grains = "".join(
        f'<label><input type="radio" name="grain" value="{grain}"'
        f"{' checked' if grain is Grain.EVENT else ''}> {grain}</label>"
        for grain in Grain
    )
    # In JSON inside a page "<" must not begin a tag.
    steps = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<div id="controls" hidden>
<div><button id="previous" accesskey="p">◀ Previous</button><button id="next" accesskey="n">Next ▶</button>
{grains}<span id="place"></span></div>
<div id="picture">{density}<div id="density"></div></div>
<input type="range" id="slider" min="0" aria-label="moment">
<div><select id="search" aria-label="search">{options}<option value="gfn">anything about gfn</option></select>
<input type="text" id="argument" size="10" placeholder="gfn" aria-label="gfn">
<button id="find-previous">◀ Find</button><button id="find-next">Find ▶</button>
<b id="status" role="status"></b></div>
<div>{_KEYS}</div>
</div>
<p id="still">This is moment {data["first"] + data["at"]}; the others need scripts to be allowed.</p>
<div class="mml"><div class="mml-grid" id="body">{panels}</div></div>
<script type="application/json" id="steps">{steps}</script>
<script>
{SCRIPT.read_text("utf-8")}</script>
</body>
</html>
"""


def write_stepper_page(recording: Recording, path: str | Path, **options: Any) -> None:
    """Write :func:`stepper_page` to a file, whole or not at all.

    Raises
    ------
    InputError
        As :func:`stepper_page`, or the file cannot be written.
    """
    files.write_text(path, stepper_page(recording, **options))
