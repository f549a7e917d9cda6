"""Where in a recording its events are: a timeline with marks and the place one stands on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mmulab import events as ev
from mmulab.trace.recording import Recording
from mmulab.trace.search import moments_of_events
from mmulab.widgets.scene_svg import COLORS, GRID, INK, Canvas, Svg

Counts = npt.NDArray[np.int64]

BINS = 160
CAPTION = "events (light) and page faults (dark) along the run"
_WIDTH, _TOP, _HEIGHT = 760.0, 4.0, 34.0
_MARK = 4.0


class Density:
    """Counts of events along a recording, or along a stretch of it, worked out once.

    Parameters
    ----------
    recording : Recording
    first, last : int
        Numbers of the first and the last moment, both included; all by default.

    Attributes
    ----------
    events, faults : numpy.ndarray, shape (bins,), dtype int64
        All events, and page faults, in each part of the stretch.
    """

    def __init__(self, recording: Recording, first: int = 0, last: int | None = None) -> None:
        self.first = first
        self.end = len(recording) - 1
        self._count = (self.end if last is None else last) - first + 1
        edges = np.linspace(first, first + self._count, min(BINS, self._count) + 1)
        every = moments_of_events(recording, np.arange(len(recording.events)))
        faults = moments_of_events(recording, recording.events.places(ev.kvm_page_fault))
        # numpy's last part holds its upper edge too, which is the moment behind the stretch.
        self.events: Counts = np.histogram(every[every < first + self._count], edges)[0]
        self.faults: Counts = np.histogram(faults[faults < first + self._count], edges)[0]

    def picture(self, at: int | None, marks: Counts | None = None) -> Svg:
        """Draw the bars, a triangle at each of `marks` and a line at `at`; it fills what it stands in.

        Parameters
        ----------
        at : int or None
            Number of a moment; None: no line.
        marks : numpy.ndarray, optional
            Numbers of moments, a search's finds.
        """
        place = "" if at is None else f"moment {at} of {self.end}: "
        canvas = Canvas(_WIDTH, _TOP + _HEIGHT + 12, f"{place}{CAPTION}", heading=False)
        base, step = _TOP + _HEIGHT, _WIDTH / len(self.events)
        top = max(1, int(self.events.max(initial=0)))
        for counts, color in ((self.events, "#9ecae1"), (self.faults, COLORS[0])):
            for number in np.flatnonzero(counts).tolist():
                height = max(1.0, _HEIGHT * float(counts[number]) / top)
                canvas.rect(number * step, base - height, max(step - 0.5, 0.5), height, color)
        canvas.line([(0, base), (_WIDTH, base)], GRID)
        places = np.zeros(0) if marks is None else _WIDTH * (marks - self.first + 0.5) / self._count
        # Marks closer than their width are one.
        for x in (np.unique(np.round(places / _MARK)) * _MARK).tolist():
            canvas.polygon([(x, base + 2), (x + 4, base + 10), (x - 4, base + 10)], COLORS[5], INK)
        if at is not None:
            x = _WIDTH * self.share(at)
            canvas.line([(x, 0), (x, base + 12)], INK, 2)
        drawn = canvas.svg()
        wide = 'width="100%" preserveAspectRatio="none"'
        return replace(drawn, markup=drawn.markup.replace(f'width="{_WIDTH:.0f}"', wide, 1))

    def html(self, at: int, marks: Counts | None = None) -> str:
        """Return the picture with words on it, as HTML that needs no script."""
        caption = (
            f'<p style="margin: 0; font-size: 11px; color: #555">moment {at} of {self.end}: {CAPTION}</p>'
        )
        return f'<div class="timeline">{self.picture(at, marks)}{caption}</div>'

    def share(self, number: int) -> float:
        """Return where in the picture's width a moment lies, from 0 to 1."""
        return (number - self.first + 0.5) / self._count
