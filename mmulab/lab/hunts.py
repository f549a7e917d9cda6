"""Hunts for trouble in processes: one a bug, or one kernel's places shared out.

A worker writes each finding as soon as it is minimal, so that nothing is lost with it.
All end soon after :meth:`Shared.end`, and give back what they have.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmulab import cluster, pool
from mmulab.check.hunt import Hunted, Job, Trouble, hunt
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import known_kernel, nearest_recorded
from mmulab.pool import Jobs
from mmulab.scenario.text import write_scenario

ALL = 1 << 30
"""More findings than there are."""


class Shared:
    """What the processes of a search tell each other.

    Attributes
    ----------
    states, ops : int
        Of all processes, as far as they have told.
    """

    def __init__(self) -> None:
        self._end = multiprocessing.Event()
        self._states: Any = multiprocessing.Value("Q", 0)
        self._ops: Any = multiprocessing.Value("Q", 0)

    def end(self) -> None:
        """Let every hunt come to its end."""
        self._end.set()

    def is_over(self) -> bool:
        """Whether the hunts are to end."""
        return self._end.is_set()

    @property
    def states(self) -> int:
        """States seen."""
        return int(self._states.value)

    @property
    def ops(self) -> int:
        """Ops executed at random."""
        return int(self._ops.value)

    def add(self, states: int, ops: int) -> None:
        """Count what a process has done since it last told."""
        for counter, more in ((self._states, states), (self._ops, ops)):
            with counter.get_lock():
                counter.value += more


def right_of(kernel: Kernel) -> Kernel | None:
    """Return the recorded kernel that a kernel departs from; None if it is one."""
    right = known_kernel(nearest_recorded(kernel))
    return None if kernel == right else right


def with_bugs(base: Kernel, bugs: Sequence[str], job: Job) -> list[Job]:
    """Return a job for each bug: the base kernel with it, beside the kernel without it."""
    return [replace(job, kernel=base.toggled(**{bug: True}), right=base, most=1) for bug in bugs]


def shared_out(job: Job, processes: int) -> list[Job]:
    """Return jobs that together are one, each with a part of its places."""
    parts = min(processes, len(job.places))
    return [replace(job, places=job.places[at::parts]) for at in range(parts)]


def hunt_each(
    jobs: Sequence[Job], processes: Jobs, shared: Shared, out: Path | None
) -> Generator[Hunted, None, None]:
    """Yield what came of each job, in order.

    Parameters
    ----------
    jobs : sequence of Job
    processes : int or Workers
        Others than processes tell nothing until they are over; interrupted, what they have is lost.
    shared : Shared
    out : Path or None
        Folder for the scenarios of what is found.

    Raises
    ------
    InputError
        A scenario cannot be written, or a worker was killed.
    """
    if out is not None:
        _make(out)
    if isinstance(processes, int):
        yield from pool.each(partial(_hunt, shared, out), jobs, processes)
        return
    with closing(pool.each(_hunt_elsewhere, jobs, processes)) as hunts:
        for hunted in hunts:
            _write(hunted, out)
            shared.add(hunted.states, hunted.ops)
            yield hunted


def _hunt_elsewhere(job: Job) -> Hunted:
    return hunt(job, cluster.unwanted, lambda hunted: None)


def _write(hunted: Hunted, out: Path | None, told: int = 0) -> None:
    """Write what was found, from the finding `told` on."""
    if out is not None:
        for trouble in hunted.found[told:]:
            write_scenario(trouble.scenario, out / file_name(hunted.job, trouble))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; name a folder that can be made") from error


def _hunt(shared: Shared, out: Path | None, job: Job) -> Hunted:
    told = [0, 0, 0]

    def tell(hunted: Hunted) -> None:
        shared.add(hunted.states - told[0], hunted.ops - told[1])
        _write(hunted, out, told[2])
        told[:] = hunted.states, hunted.ops, len(hunted.found)

    return hunt(job, shared.is_over, tell)


def file_name(job: Job, trouble: Trouble) -> str:
    """Return the name of a finding's file: the kernel, and what was found where."""
    words = f"{job.kernel.name}-{trouble.place}-{trouble.finding.kind.value}-{trouble.finding.name}"
    return "".join(char if char.isalnum() or char in ".+-_" else "_" for char in words) + ".mmu"


def merged(parts: Sequence[Hunted]) -> Hunted:
    """Return what came of the parts of one job."""
    first = parts[0]
    whole = Hunted(replace(first.job, places=tuple(name for part in parts for name in part.job.places)))
    for part in parts:
        have = {(old.finding.kind, old.finding.name) for old in whole.found}
        whole.found += [new for new in part.found if (new.finding.kind, new.finding.name) not in have]
        whole.states += part.states
        whole.ops += part.ops
        whole.refused += part.refused
        whole.free |= part.free
        whole.searched += part.searched
        for key, count in part.known.items():
            whole.known[key] = whole.known.get(key, 0) + count
        for name, count in part.deviations.items():
            whole.deviations[name] = whole.deviations.get(name, 0) + count
        whole.interrupted |= part.interrupted
    return whole
