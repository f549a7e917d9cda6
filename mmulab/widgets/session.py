"""Someone's way through a recording: where they stand, what they look for, what they see.

The notebook's stepper and the terminal's are two faces of a session.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mmulab.check.l2_walks import l2_walks
from mmulab.errors import InputError
from mmulab.trace.look import Look, take
from mmulab.trace.recording import Recording
from mmulab.trace.search import Grain, Predicate, find, neighbour, run_to, step
from mmulab.widgets.blocks import Panel
from mmulab.widgets.panels import panels

KEPT = 64
"""Looks that are kept, because people go back and forth."""


class Session:
    """A place in a recording.

    Parameters
    ----------
    recording : Recording
    at : int
        Number of the moment to begin at.
    breakpoints : mapping of str to callable, optional
        Predicates over events by name, for :meth:`run`.
    address : int, optional
        Guest-virtual address to follow; else the one that each moment is about.

    Attributes
    ----------
    at : int
    found : numpy.ndarray
        Numbers of the moments that the last search found.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        at: int = 0,
        breakpoints: Mapping[str, Predicate] | None = None,
        address: int | None = None,
    ) -> None:
        if not len(recording):
            raise InputError(f"{recording.info.source or 'recording'}: nothing was recorded")
        self.recording = recording
        self.breakpoints = dict(breakpoints or {})
        self.found: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._address = address
        self._looks: dict[int, Look] = {}
        self.at = 0
        self.goto(at)

    @property
    def last(self) -> int:
        """Number of the last moment."""
        return len(self.recording) - 1

    @property
    def address(self) -> int | None:
        """The guest-virtual address that is followed; None: the one that each moment is about."""
        return self._address

    @address.setter
    def address(self, address: int | None) -> None:
        self._address = address
        self._looks.clear()

    def goto(self, number: int) -> None:
        """Stand on a moment.

        Raises
        ------
        InputError
            There is no such moment.
        """
        if not 0 <= number <= self.last:
            raise InputError(f"moment {number}: the recording has 0 to {self.last}")
        self.at = number

    def step(self, grain: Grain, *, back: bool = False) -> None:
        """Go one event, fault or operation on, or back."""
        self.at = step(self.recording, self.at, grain, back=back)

    def find(self, what: str, argument: str = "", *, back: bool = False) -> bool:
        """Go to the next moment that a search finds; return whether there is one.

        Raises
        ------
        InputError
            No such search, or an argument that it cannot use.
        """
        self.found = find(self.recording, what, argument)
        return self._arrive(neighbour(self.found, self.at, back=back))

    def run(self, breakpoint: str, *, back: bool = False) -> bool:
        """Go to the next event that fulfils a breakpoint's predicate; return whether there is one.

        Raises
        ------
        InputError
            No breakpoint has this name.
        """
        predicate = self.breakpoints.get(breakpoint)
        if predicate is None:
            known = ", ".join(self.breakpoints) or "none"
            raise InputError(f"breakpoint {breakpoint!r} is unknown; there are: {known}")
        return self._arrive(run_to(self.recording, self.at, predicate, back=back))

    def _arrive(self, number: int | None) -> bool:
        if number is not None:
            self.at = number
        return number is not None

    def look(self, number: int | None = None) -> Look:
        """Return the look at a moment, the one at hand if none is named."""
        number = self.at if number is None else number
        if number not in self._looks:
            while len(self._looks) >= KEPT:
                del self._looks[next(iter(self._looks))]
            moment = self.recording.moment(number)
            self._looks[number] = take(self.recording, moment, address=self._address, l2_walks=l2_walks)
        return self._looks[number]

    def panels(self) -> list[Panel]:
        """Return the panels of the moment at hand."""
        before = self.look(self.at - 1) if self.at else None
        recording = self.recording
        return panels(self.look(), recording.config.kernel, recording.spte_format, before)
