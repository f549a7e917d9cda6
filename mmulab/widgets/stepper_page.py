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
from mmulab.widgets.blocks import STYLE, arranged
from mmulab.widgets.density import CAPTION, Density
from mmulab.widgets.session import Session

__all__ = ["MOST", "stepper_page", "write_stepper_page"]

MOST = 4000
"""Moments that one page holds at most."""
SCRIPT = Path(__file__).parent / "static" / "stepper.js"
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0 auto; max-width: 100rem; padding: 6px 8px; font: 13px/1.4 "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 16px; overflow-wrap: anywhere; }
header, #controls > div { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; }
header { justify-content: space-between; }
#controls > div { margin: 4px 0; }
button, select, input { font: inherit; }
button[aria-pressed=true] { background: #1a1a1a; color: #fff; }
#place { font-weight: bold; }
#picture { position: relative; height: 48px; cursor: pointer; touch-action: pan-y; }
#picture svg { display: block; width: 100%; height: 100%; }
#picture:focus-within { outline: 2px solid #0072b2; }
#slider { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; }
#slider { pointer-events: none; }
#density, #marks i { position: absolute; width: 2px; margin-left: -1px; pointer-events: none; }
#density { top: 0; bottom: 0; background: #1a1a1a; }
#marks i { bottom: 0; height: 9px; background: #d55e00; }
#keys { color: #555; font-size: 12px; }
kbd { border: 1px solid #999; border-radius: 3px; padding: 0 0.2rem; font: 11px monospace; }
"""
_KEYS = "<kbd>←</kbd> <kbd>→</kbd> step, <kbd>Home</kbd> <kbd>End</kbd>; next and previous: <kbd>n</kbd> \
<kbd>p</kbd> event, <kbd>f</kbd> <kbd>F</kbd> fault, <kbd>o</kbd> <kbd>O</kbd> operation, <kbd>w</kbd> \
<kbd>W</kbd> wrong access, <kbd>s</kbd> <kbd>S</kbd> find; <kbd>/</kbd> search. Click the timeline: \
events are light, page faults dark."


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
    kept: dict[tuple[int, str], int] = {}
    steps = []
    for number in range(first, last + 1):
        session.goto(number)
        panels = [kept.setdefault((panel.column, panel.html()), len(kept)) for panel in session.panels()]
        event = session.look().event
        name = "end of the op" if event is None else recording.name_of(event)
        gfn = getattr(event, "gfn", None)
        steps.append({"panels": panels, "title": name, "gfn": None if gfn is None else f"{gfn:x}"})
        if progress is not None:
            progress(number - first + 1)
    data = {
        "first": first,
        "end": len(recording) - 1,
        "at": at - first,
        "panels": list(kept),
        "steps": steps,
        "stops": {grain.value: _within(stops(recording, grain), first, last) for grain in Grain},
        "finds": _finds(recording, first, last),
    }
    title = title or recording.info.source or "recording"
    return _page(title, data, str(Density(recording, first, last).picture(None)))


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
    panels = arranged([data["panels"][number] for number in begin])
    options = "".join(
        f'<option value="{name}">{escape(SEARCHES[name].label)}</option>' for name in data["finds"]
    )
    grains = "".join(
        f'<button data-grain="{grain}" aria-pressed="{"true" if grain is Grain.EVENT else "false"}">{grain}'
        "</button>"
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
<header><h1>{escape(title)}</h1><span id="place"></span></header>
<div id="controls" hidden>
<div><button id="previous">◀ Previous</button><button id="next">Next ▶</button>
<span role="group" aria-label="step by">{grains}</span>
<select id="search" aria-label="search">{options}<option value="gfn">anything about gfn</option></select>
<input type="text" id="argument" size="10" placeholder="gfn" aria-label="gfn">
<button id="find-previous">◀ Find</button><button id="find-next">Find ▶</button>
<b id="status" role="status"></b></div>
<div id="picture" title="{CAPTION}">{density}<div id="marks"></div><div id="density"></div>
<input type="range" id="slider" min="0" aria-label="moment"></div>
<div id="keys"><span>{_KEYS}</span></div>
</div>
<p id="still">This is moment {data["first"] + data["at"]}; the others need scripts to be allowed.</p>
<div class="mml" id="body">{panels}</div>
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
