"""A way in which Linux itself departs from the architecture, and how to tell it from others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmulab.check.finding import Finding, FindingKind
from mmulab.machine.machine import Machine
from mmulab.scenario.runner import Result

Shows = Callable[[Machine, Result, Finding], bool]


@dataclass(frozen=True, slots=True)
class Deviation:
    """A way in which Linux 6.1.192 departs from the architecture, or from its own rules.

    Attributes
    ----------
    name : str
        Also of its sequence.
    kind : FindingKind
    findings : tuple of str
        Names of the findings that it shows itself by.
    said : str
        What is wrong, in a sentence.
    source : str
        Where in the kernel, and why.
    shows : callable
        Whether a finding, after its op, is this one.
    """

    name: str
    kind: FindingKind
    findings: tuple[str, ...]
    said: str
    source: str
    shows: Shows
