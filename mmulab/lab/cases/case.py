"""A case before it is run: a scenario, a recording of a real kernel, or a recorded boot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from mmulab.scenario.scenario import Scenario

__all__ = ["Case", "CaseKind"]


class CaseKind(StrEnum):
    """What a case is made of, which says how it is run and judged."""

    SCENARIO = "scenario"
    """Judged by the guest's tables."""
    RECORDING = "recording"
    """Judged by what a real kernel's guest saw."""
    BOOT = "boot"
    """Judged by the addresses that a recorded boot reached."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row before it is run: a scenario, a recording or a boot, and nothing but one of them.

    Attributes
    ----------
    name : str
    host : str
        L0 in words: its tables, its own levels.
    guest, l2 : str
        Paging of the guest (of L1, where there is an L2) and of L2, in words; "" without L2.
    scenario : callable or None
        Makes the scenario.
    recording : str
        The recording that holds it instead: below ``data`` without suffix, elsewhere a path with one.
    change : callable or None
        Changes the recording's scenario in a way that no op's outcome may show.
    stream : str
        The recorded boot that is replayed instead, below ``data/stream``.
    records : int or None
        Of the stream, how many; None: all.
    note : str
        What a reader should know of the outcome.

    Raises
    ------
    ValueError
        It is made of several of them, or of none.
    """

    name: str
    host: str
    guest: str
    l2: str = ""
    scenario: Callable[[], Scenario] | None = None
    recording: str = ""
    change: Callable[[Scenario], Scenario] | None = None
    stream: str = ""
    records: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what is not of one kind."""
        if (self.scenario is not None) + bool(self.recording) + bool(self.stream) != 1:
            raise ValueError(f"case {self.name} needs a scenario, a recording or a stream, and one only")

    @property
    def kind(self) -> CaseKind:
        """What it is made of."""
        if self.scenario is not None:
            return CaseKind.SCENARIO
        return CaseKind.RECORDING if self.recording else CaseKind.BOOT
