"""Records scenarios: each host is booted once, and once more after it died."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import NamedTuple

from mmulab.errors import InputError
from mmulab.record.boot import EMULATORS, Host
from mmulab.record.convert import recorded_lines
from mmulab.record.emulator import Limits
from mmulab.record.host import HostFacts, KernelParameters
from mmulab.record.kernel_files import KernelFiles
from mmulab.record.own_host import OwnHost
from mmulab.record.take import Take
from mmulab.record.work import Work

__all__ = ["Recorded", "departures", "record"]

Told = Callable[[str], None]


class Recorded(NamedTuple):
    """What became of one scenario.

    Attributes
    ----------
    work : Work
    lines : list of str
        The recording; empty where there is none.
    notes : list of str
        What the VMM and the kernel said meanwhile.
    error : str
        Why there is no recording: the VMM could not run it, or the trace has gaps.
    words : list of str
        The kernel's words, if the host died of it.
    seconds : float
    """

    work: Work
    lines: list[str]
    notes: list[str]
    error: str
    words: list[str]
    seconds: float


class _Running(NamedTuple):
    work: Work
    take: Take
    since: float


def record(
    works: Sequence[Work],
    kernel: KernelFiles | None,
    hosts: Sequence[KernelParameters],
    told: Told,
    boot_seconds: float | None = None,
    scenario_seconds: float | None = None,
) -> Generator[Recorded, None, None]:
    """Record scenarios and yield what became of each, those of one host together.

    Parameters
    ----------
    works : sequence of Work
    kernel : KernelFiles or None
        None: this machine's own.
    hosts : sequence of KernelParameters
        The host of each.
    told : callable
        Is told of each boot.
    boot_seconds, scenario_seconds : float or None
        What may pass; None: what the emulator needs.

    Raises
    ------
    BootError, InputError
    """
    for parameters in dict.fromkeys(hosts):
        usual = EMULATORS[parameters.vendor].limits
        limits = Limits(boot_seconds or usual.boot, scenario_seconds or usual.scenario)
        rest = [work for work, host in zip(works, hosts, strict=True) if host == parameters]
        while rest:
            done = 0
            with closing(_boot(rest, kernel, parameters, limits, told)) as boot:
                for recorded in boot:
                    done += 1
                    yield recorded
            rest = rest[done:]


def _boot(
    works: list[Work], kernel: KernelFiles | None, parameters: KernelParameters, limits: Limits, told: Told
) -> Generator[Recorded, None, None]:
    """Record in one boot, up to the first scenario that the host does not survive."""
    largest = max(work.scenario.header.backing_bytes for work in works)
    with OwnHost(parameters) if kernel is None else Host(kernel, parameters, largest) as host:
        seconds = host.wait_ready(limits.boot)
        told(f"{host.facts.texts['release']} on {parameters}: up in {seconds:.1f} s")
        for line in host.facts.otherwise(parameters):
            told(line)
        before: Recorded | None = None
        for work in works:
            running = _Running(work, Take(), time.monotonic())
            host.link.send(work.job(host.facts.supported))
            if before is not None:  # it is written while the host runs the next one
                yield before
            in_time = host.collect(running.take, limits.scenario)
            before = _recorded(host, running, in_time, limits)
            if not running.take.done:
                break
        if before is not None:
            yield before


def _recorded(host: Host, running: _Running, in_time: bool, limits: Limits) -> Recorded:
    work, take, since = running
    seconds = time.monotonic() - since
    notes, words = [*departures(work, host.facts), *take.notes], []
    if take.done:
        notes += [f"the kernel said: {line}" for line in host.new_words()[:1]]
    elif not take.error:
        words = (
            host.last_words() if in_time else [f"no answer within {limits.scenario:g} s", *host.new_words()]
        )
    try:
        lines = [] if take.error else recorded_lines(work, take, host.facts, words, host.corrected)
    except InputError as error:  # its trace; the others' may be whole
        return Recorded(work, [], notes, str(error), words, seconds)
    return Recorded(work, lines, notes, take.error, words, seconds)


def departures(work: Work, facts: HostFacts) -> list[str]:
    """Return in what the host is not the one that a scenario's header wants."""
    header = work.scenario.header
    lacking = [key for key, has in facts.supported.items() if header.cpuid.get(key, 0) > has]
    found = [f"the host's KVM does not have {key}" for key in lacking]
    if facts.phys_bits != header.host["phys_bits"]:
        found.append(f"the host has {facts.phys_bits} physical address bits, not {header.host['phys_bits']}")
    return found
