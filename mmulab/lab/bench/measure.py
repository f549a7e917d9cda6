"""One figure of a benchmark that has several, of different kinds."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """One figure.

    Attributes
    ----------
    name : str
    value : float
    unit : str
        ``ms``, ``s``, ``MB``, ``events``, ``ops/s``, ``states/s`` or ``x``: a ratio.
    """

    name: str
    value: float
    unit: str
