"""Where in a recording its events are: bars along the run, with marks and the place one stands on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmulab import events as ev
from mmulab.trace.recording import Recording
from mmulab.trace.search import moments_of_events
from mmulab.widgets.scene_svg import COLORS, GRID, INK, Canvas, Svg

Counts = npt.NDArray[np.int64]

BINS = 160
_WIDTH, _LEFT, _TOP, _HEIGHT = 760.0, 8.0, 26.0, 34.0
_MARK = 4.0


class Density:
    """Counts of events along a recording, worked out once.

    Attributes
    ----------
    events, faults : numpy.ndarray, shape (bins,), dtype int64
        All events, and page faults, in each stretch of moments.
    """

    def __init__(self, recording: Recording) -> None:
        self.total = len(recording)
        bins = min(BINS, self.total)
        self._edges = np.linspace(0, self.total, bins + 1)
        every = moments_of_events(recording, np.arange(len(recording.events)))
        faults = moments_of_events(recording, recording.events.places(ev.kvm_page_fault))
        self.events: Counts = np.histogram(every, self._edges)[0]
        self.faults: Counts = np.histogram(faults, self._edges)[0]

    def picture(self, at: int | None, marks: Counts | None = None) -> Svg:
        """Draw the bars, a triangle at each of `marks` and a line at `at`.

        Parameters
        ----------
        at : int or None
            Number of a moment; None: no line.
        marks : numpy.ndarray, optional
            Numbers of moments, a search's finds.
        """
        place = "" if at is None else f"moment {at} of {self.total}: "
        title = f"{place}events (light) and page faults (dark) along the run"
        canvas = Canvas(_WIDTH, _TOP + _HEIGHT + 16, title, heading=False)
        canvas.text(_LEFT, 12, title, size=10, fill="#555555")
        base, step = _TOP + _HEIGHT, (_WIDTH - 2 * _LEFT) / len(self.events)
        top = max(1, int(self.events.max(initial=0)))
        for counts, color in ((self.events, "#9ecae1"), (self.faults, COLORS[0])):
            for number in np.flatnonzero(counts).tolist():
                height = max(1.0, _HEIGHT * float(counts[number]) / top)
                canvas.rect(_LEFT + number * step, base - height, max(step - 0.5, 0.5), height, color)
        canvas.line([(_LEFT, base), (_WIDTH - _LEFT, base)], GRID)
        places = np.zeros(0) if marks is None else marks
        # Marks closer than their width are one.
        for x in np.unique(np.round((_WIDTH - 2 * _LEFT) * (places + 0.5) / self.total / _MARK)).tolist():
            x = _LEFT + x * _MARK
            canvas.polygon([(x, base + 2), (x + 4, base + 10), (x - 4, base + 10)], COLORS[5], INK)
        if at is not None:
            x = _WIDTH * self.share(at)
            canvas.line([(x, _TOP - 6), (x, base + 12)], INK, 2)
        return canvas.svg()

    def share(self, number: int) -> float:
        """Return where in the picture's width a moment lies, from 0 to 1."""
        return (_LEFT + (_WIDTH - 2 * _LEFT) * (number + 0.5) / self.total) / _WIDTH
