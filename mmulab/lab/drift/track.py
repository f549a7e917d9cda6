"""A piece of work on a kernel: what it made KVM do, counted, and every event to tell two kernels apart."""

from __future__ import annotations

import weakref
from array import array
from collections import Counter
from dataclasses import dataclass, field
from operator import add, sub
from typing import Any, NamedTuple

import numpy as np

from mmulab import events as ev
from mmulab.check.failure import FAILURES
from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.errors import InputError
from mmulab.kvm.behaviours import CHANGES, Behaviours
from mmulab.kvm.kernel import Kernel
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.run import failure_str
from mmulab.lab.cases.table import Case, read_boot, read_case, scenario_of
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner
from mmulab.workload.replay import Replay

__all__ = ["Asked", "Effects", "Track", "Tracks", "first_difference"]


class Effects(NamedTuple):
    """How often KVM did what costs time, or how much more often than elsewhere."""

    faults: int = 0
    flushes: int = 0
    syncs: int = 0
    zaps: int = 0
    emulations: int = 0

    def plus(self, other: Effects) -> Effects:
        """Return the sum."""
        return Effects(*map(add, self, other))

    def minus(self, other: Effects) -> Effects:
        """Return the difference."""
        return Effects(*map(sub, self, other))

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:+}" for name, value in self._asdict().items() if value) or "none"


_COUNTED: tuple[type[ev.Event], ...] = (
    ev.kvm_page_fault,
    ev.kvm_flush_remote_tlbs,
    ev.kvm_mmu_sync_page,
    ev.kvm_mmu_prepare_zap_page,
    ev.kvm_emulate_insn,
)
"""The event of each field of :class:`Effects`."""


@dataclass(slots=True)
class Track:
    """What a piece of work left on a kernel.

    Attributes
    ----------
    kernel : Kernel
    effects : Effects
    asked : frozenset of str
        The behaviours that the run depended on: it asked for no other one, so
        with any other one changed it would be the same.
    end : str
        How it ended, if not as it should.
    marks : array of int
        One for each event and outcome, in order; equal ones have equal marks in one process.
    where : array of int
        The op, or a boot's record, of each mark; ``init`` is -1.
    texts : dict of int to str
        The ops by number; empty for a boot.
    """

    kernel: Kernel
    effects: Effects = field(default_factory=Effects)
    asked: frozenset[str] = frozenset(CHANGES)
    end: str = ""
    marks: array[int] = field(default_factory=lambda: array("q"))
    where: array[int] = field(default_factory=lambda: array("q"))
    texts: dict[int, str] = field(default_factory=dict)

    def keep(self, where: int, what: object) -> None:
        """Add a mark."""
        self.marks.append(hash((type(what), what)))
        self.where.append(where)


class Asked(Behaviours):
    """Behaviours that note which of them the engine asks for."""

    __slots__ = ("asked",)
    asked: set[str]

    def __getattribute__(self, name: str) -> Any:
        if name in CHANGES:
            object.__getattribute__(self, "asked").add(name)
        return object.__getattribute__(self, name)

    @classmethod
    def of(cls, behaviours: Behaviours) -> Asked:
        """Return the same behaviours, watched."""
        noting = cls(**{name: getattr(behaviours, name) for name in CHANGES})
        object.__setattr__(noting, "asked", set())
        return noting


class Tracks:
    """One piece of work, read once, to be run on one kernel after the other.

    Parameters
    ----------
    case : Case

    Raises
    ------
    InputError
        The work cannot be read.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        if case.kind is CaseKind.BOOT:
            self.stream = read_boot(case)
        else:
            self.scenario = scenario_of(read_case(case))

    def on(self, kernel: Kernel, *, watched: bool = False) -> Track:
        """Run the work on a kernel.

        Parameters
        ----------
        kernel : Kernel
        watched : bool
            Note which behaviours the run asks for, which is slower.

        Raises
        ------
        InputError
            An op is not modelled.
        """
        noting = Asked.of(kernel.behaviours)
        track = Track(kernel)
        counts = Counter[type[ev.Event]]()
        run = self._replay if self.case.kind is CaseKind.BOOT else self._run
        try:
            run(kernel.with_(behaviours=noting) if watched else kernel, track, counts)
        except FAILURES as error:
            if isinstance(error, InputError | NotImplementedError):
                raise
            track.end = failure_str(error)
            track.keep(track.where[-1] if track.where else 0, track.end)
        track.effects = Effects(*(counts[kind] for kind in _COUNTED))
        if watched:
            track.asked = frozenset(noting.asked)
        return track

    def _run(self, kernel: Kernel, track: Track, counts: Counter[type[ev.Event]]) -> None:
        runner = Runner(self.scenario, config=machine_config(self.scenario, kernel))
        for result in runner.results():
            track.texts[result.index] = result.text
            track.keep(result.index, result.text)
            for event in result.events:
                track.keep(result.index, event)
            counts.update(map(type, result.events))
            track.keep(result.index, outcome_str(encode_outcome(result.outcome)))

    def _replay(self, kernel: Kernel, track: Track, counts: Counter[type[ev.Event]]) -> None:
        def keep(event: ev.Event) -> None:
            counts[type(event)] += 1
            track.keep(at.record, event)

        replay = Replay(self.stream, limit=self.case.records, kernel=kernel, emit=keep)
        at = weakref.proxy(replay)  # the replay holds its observer: held back, its memory would outlive it
        mismatch = replay.run().mismatch
        if mismatch is not None:
            track.end = mismatch.what
            track.keep(mismatch.record, mismatch.what)


def first_difference(one: Track, other: Track) -> int | None:
    """Return the op, or the record, where two kernels first do something else; None: nowhere."""
    both = min(len(one.marks), len(other.marks))
    ours, theirs = (np.array(track.marks, np.int64)[:both] for track in (one, other))
    apart = np.flatnonzero(ours != theirs)
    if len(apart):
        at = int(apart[0])
        return min(one.where[at], other.where[at])
    if len(one.marks) == len(other.marks):
        return None
    longer = max(one, other, key=lambda track: len(track.marks))
    return longer.where[both]
