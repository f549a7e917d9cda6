"""What a recording host runs on: an emulator is described by data, and how it is started by one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmulab.events import Event
from mmulab.record.host import KernelParameters

__all__ = ["HOST_MEBIBYTES", "Boot", "Corrected", "Emulator", "Limits", "as_it_is"]

HOST_MEBIBYTES = 1024
"""Memory of a host beside the guest's."""


Corrected = Callable[[list[Event], dict[str, Any]], tuple[list[Event], dict[str, Any]]]


def as_it_is(events: list[Event], outcome: dict[str, Any]) -> tuple[list[Event], dict[str, Any]]:
    """Correct nothing."""
    return events, outcome


class Limits(NamedTuple):
    """Seconds that may pass: for a boot, and for a scenario."""

    boot: float
    scenario: float


class Boot(NamedTuple):
    """What one boot is made of.

    Attributes
    ----------
    folder : Path
        Of this boot alone; what the emulator needs besides is made in it.
    image : Path
        The kernel.
    initramfs : Path
    link : Path
        The file of the link.
    console : Path
        Where what the host shows is to come.
    arguments : str
        The kernel's command line.
    parameters : KernelParameters
    mebibytes : int
        Memory of the host.
    """

    folder: Path
    image: Path
    initramfs: Path
    link: Path
    console: Path
    arguments: str
    parameters: KernelParameters
    mebibytes: int


class Emulator(NamedTuple):
    """An emulator of a host.

    Attributes
    ----------
    name : str
    link : {"memory", "disk"}
        What the file of the link is in the host.
    drivers : tuple of str
        Modules that the link needs.
    arguments : str
        What a kernel on it is told.
    limits : Limits
        Enough on a slow machine.
    command : callable
        Makes what the emulator needs in the boot's folder, and returns the program and its arguments.
    obstacle : callable
        Why it cannot be the host of these parameters that a header wants; empty: it can.
    corrected : callable
        An op's events and outcome without what only this emulator does.
    """

    name: str
    link: str
    drivers: tuple[str, ...]
    arguments: str
    limits: Limits
    command: Callable[[Boot], list[str]]
    obstacle: Callable[[KernelParameters, Mapping[str, int]], str]
    corrected: Corrected
