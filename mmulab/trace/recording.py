"""Recordings: a run that can be looked at anywhere, forward and back.

A recording is the log of ops with their outcomes, the events, and checkpoints.
The state at an event is found by running again from the checkpoint before it
and stopping inside the fault, when the event comes up. A state found so is
looked at and never continued.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab import __version__
from mmulab.errors import InputError, named, quoted
from mmulab.events import Event
from mmulab.kvm.spte import SpteFormat
from mmulab.machine.config import MachineConfig
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from mmulab.trace.checkpoints import Checkpoints, digest
from mmulab.trace.columns import Log
from mmulab.x86.markup import facts_html

DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    zlib.error,
)
"""What a damaged file makes the reader or the model raise: whatever a state can be that no run leads to."""

Numbers = npt.NDArray[np.int64]


class Moment(NamedTuple):
    """A moment of a run: an event of an op, or the op's end.

    Attributes
    ----------
    op : int
        Number of the op.
    event : int or None
        Number of the event among all events; None: the op has ended.
    """

    op: int
    event: int | None


@dataclass(frozen=True, slots=True)
class Info:
    """Where a recording comes from.

    Attributes
    ----------
    source : str
        File or builder of the ops, for readers.
    scenario : str
        The scenario as text, empty if the ops come from elsewhere.
    seed : int or None
    options : dict
        What else the run depended on: strings, numbers, booleans.
    version : str
        Version of mmulab that ran it.
    """

    source: str = ""
    scenario: str = ""
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    version: str = __version__


class _Stop(Exception):
    """Raised by the event sink at the event that is wanted."""


class State:
    """The state of a run at one moment.

    Attributes
    ----------
    recording : Recording
    moment : Moment
    """

    def __init__(self, recording: Recording, moment: Moment, machine: Machine, serial: int) -> None:
        self.recording = recording
        self.moment = moment
        self._machine = machine
        self._serial = serial

    @property
    def machine(self) -> Machine:
        """The machine, to look at and not to run; it is this state's until the next one is asked for.

        Raises
        ------
        RuntimeError
            Another state of the recording was asked for since.
        """
        if self._serial != self.recording.serial:
            raise RuntimeError(f"the state at {self.moment} is gone; ask the recording for it again")
        return self._machine

    @property
    def op(self) -> Op:
        """The op that the moment belongs to."""
        return self.recording.op(self.moment.op)

    @property
    def event(self) -> Event | None:
        """The event that has just happened, None at the end of an op."""
        at = self.moment.event
        return None if at is None else self.recording.events[at]

    def digest(self) -> str:
        """Return a SHA-256 over the whole state."""
        return digest(self.machine)

    def __repr__(self) -> str:
        event = self.event
        what = "end" if event is None else f"{self.moment.event} {type(event).__name__}"
        return f"<State op {self.moment.op} {type(self.op).__name__}, {what}>"


class Recording:
    """A run of the model.

    Parameters
    ----------
    config : MachineConfig
    ops, outcomes, events : Log
    ends : numpy.ndarray, shape (ops,), dtype int64
        Number of events up to the end of each op.
    checkpoints : Checkpoints
    checkpoint_ops : numpy.ndarray, shape (checkpoints,), dtype int64
        The op before which each was taken.
    info : Info
    verdicts : dict of int to str
        Op to what is wrong with its outcome, if anyone judged them.
    found_wrongly : dict of int to (int, int), optional
        Op whose outcome is wrong to gfn and role of the shadow page that should not have been found.
    steps : numpy.ndarray, shape (ops,), dtype int64, optional
        Index of the step of the scenario that each op belongs to, as ``mmulab run`` prints it;
        empty if the ops come from elsewhere.
    helpers : numpy.ndarray, shape (ops,), dtype uint8, optional
        1: the op only goes with its step, as the memory that is written for a VMRUN.
    path : pathlib.Path or None
        The file that it was read from. Then whatever goes wrong when a state is
        restored or run on is the file's damage.
    """

    def __init__(
        self,
        config: MachineConfig,
        ops: Log,
        outcomes: Log,
        events: Log,
        ends: Numbers,
        checkpoints: Checkpoints,
        checkpoint_ops: Numbers,
        info: Info,
        verdicts: dict[int, str],
        path: Path | None = None,
        *,
        found_wrongly: dict[int, tuple[int, int]] | None = None,
        steps: Numbers | None = None,
        helpers: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self.config = config
        self.ops = ops
        self.outcomes = outcomes
        self.events = events
        self.ends = ends
        self.checkpoints = checkpoints
        self.checkpoint_ops = checkpoint_ops
        self.info = info
        self.verdicts = verdicts
        self.path = path
        self.found_wrongly = found_wrongly or {}
        self.steps = np.zeros(0, np.int64) if steps is None else steps
        self.helpers = np.zeros(0, np.uint8) if helpers is None else helpers
        self.serial = 0
        self._viewer: Machine | None = None
        self._stands_on = -1

    # What there is ------------------------------------------------------------------

    def op(self, number: int) -> Op:
        """Return an op."""
        op: Op = self.ops[number]
        return op

    def name_of_op(self, number: int) -> str:
        """Return an op by the number that its scenario gives it; without one, by that of the recording."""
        if number >= len(self.steps):
            return f"op {number} of the recording"
        what = "record" if "records" in self.info.options else "op"  # those of a boot's stream
        return f"{what} {self.steps[number]}" + (", helper" if self.helpers[number] else "")

    def outcome(self, number: int) -> Outcome:
        """Return how an op ended."""
        outcome: Outcome = self.outcomes[number]
        return outcome

    def first_event(self, op: int) -> int:
        """Return the number of the first event of an op; of the next event at all if it has none."""
        return int(self.ends[op - 1]) if op else 0

    def events_of(self, op: int) -> list[Event]:
        """Return the events of one op."""
        return [self.events[at] for at in range(self.first_event(op), int(self.ends[op]))]

    def op_of(self, event: int) -> int:
        """Return the op during which an event happened."""
        return int(np.searchsorted(self.ends, event, "right"))

    def __len__(self) -> int:
        """Return the number of moments: one an event, and one for the end of each op."""
        return len(self.events) + len(self.ops)

    def moment(self, number: int) -> Moment:
        """Return a moment by its number in the order of time."""
        if not 0 <= number < len(self):
            raise IndexError(f"moment {number}: the recording has {len(self)}")
        op = int(np.searchsorted(self.ends + np.arange(len(self.ends)), number))
        event = number - op
        return Moment(op, event if event < int(self.ends[op]) else None)

    def name_of(self, event: Event) -> str:
        """Return what the recorded kernel calls an event."""
        return self.config.kernel.events.name(type(event))

    def number(self, moment: Moment) -> int:
        """Return a moment's place in the order of time."""
        return moment.op + (int(self.ends[moment.op]) if moment.event is None else moment.event)

    # States --------------------------------------------------------------------------

    def at(self, event: int) -> State:
        """Return the state at an event, as it was when the event was reported.

        Raises
        ------
        IndexError
            The recording has no such event.
        InputError
            The model no longer does what was recorded.
        """
        if not 0 <= event < len(self.events):
            raise IndexError(f"event {event}: the recording has {len(self.events)}")
        return self.visit(Moment(self.op_of(event), event))

    def after(self, op: int) -> State:
        """Return the state at the end of an op."""
        if not 0 <= op < len(self.ops):
            raise IndexError(f"op {op}: the recording has {len(self.ops)}")
        return self.visit(Moment(op, None))

    def visit(self, moment: Moment) -> State:
        """Return the state at a moment; see :meth:`at`."""
        self.serial += 1
        with self.reading(f"the state at op {moment.op}"):
            machine = self._restore(moment.op)
            if moment.event is None:
                machine.execute(self.op(moment.op))
            else:
                self._run_into(machine, moment.op, moment.event)
        return State(self, moment, machine, self.serial)

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Take what goes wrong inside for damage of the file, if the recording comes from one.

        Raises
        ------
        InputError
            Naming the file and `what`.
        """
        if self.path is None:
            yield
            return
        path = named(self.path)
        try:
            yield
        except InputError as error:
            raise InputError(f"{path}: {what}: {error}") from error
        except DAMAGE as error:
            why = quoted(f"{type(error).__name__}: {error}")
            raise InputError(
                f"{path}: {what} is damaged ({why}); copy the file again, or record it again"
            ) from error

    def begin(self) -> Machine:
        """Return the machine as it was before the first op; it lasts until the next state."""
        self.serial += 1
        with self.reading("the state before op 0"):
            return self._restore(0)

    @property
    def spte_format(self) -> SpteFormat:
        """The format of the host's entries."""
        return self._machine().kvm.fmt

    def _machine(self) -> Machine:
        """Return the machine that is put to whatever state is looked at."""
        if self._viewer is None:
            self._viewer = Machine(self.config)
        return self._viewer

    def _restore(self, op: int) -> Machine:
        """Return the machine as it was before `op`."""
        machine = self._machine()
        machine.emit = None
        number = int(np.searchsorted(self.checkpoint_ops, op, "right")) - 1
        self.checkpoints.restore(machine, number, self._stands_on)
        self._stands_on = number
        for before in range(int(self.checkpoint_ops[number]), op):
            machine.execute(self.op(before))
        return machine

    def _run_into(self, machine: Machine, op: int, event: int) -> None:
        """Execute `op` up to an event."""
        to_come = event - self.first_event(op)
        seen: list[Event] = []

        def sink(emitted: Event) -> None:
            seen.append(emitted)
            if len(seen) > to_come:
                raise _Stop

        machine.emit = sink
        try:
            machine.execute(self.op(op))
        except _Stop:
            pass
        finally:
            machine.emit = None
        wanted = self.events[event]
        if len(seen) <= to_come or type(seen[-1]) is not type(wanted) or seen[-1] != wanted:
            raise InputError(
                f"{self.info.source or 'recording'}: event {event} is no longer what mmulab "
                f"{self.info.version} recorded; record it again"
            )

    @property
    def nbytes(self) -> int:
        """Memory used by logs and checkpoints, in bytes."""
        logs = sum(log.nbytes for log in (self.ops, self.outcomes, self.events))
        return logs + self.ends.nbytes + self.checkpoints.nbytes

    def _repr_html_(self) -> str:
        counts = {table.kind.__name__: len(self.events.places(table.kind)) for table in self.events.tables}
        most = sorted(((count, name) for name, count in counts.items() if count), reverse=True)
        facts = {
            "ops": len(self.ops),
            "events": len(self.events),
            "checkpoints": self.checkpoints.count,
            "design, derivation": f"{self.config.kernel.design.name}, {self.config.kernel.derivation.name}",
            "seed": self.info.seed,
            "options": ", ".join(f"{name} {value}" for name, value in self.info.options.items()),
            "outcomes found wrong": len(self.verdicts),
            **{f"  {name}": count for count, name in most[:8]},
        }
        return facts_html(facts, f"recording of {self.info.source or 'a run'}, mmulab {self.info.version}")

    def __repr__(self) -> str:
        return (
            f"<Recording of {self.info.source or 'a run'}: {len(self.ops)} ops, {len(self.events)} events, "
            f"{self.checkpoints.count} checkpoints>"
        )


Judge = Callable[[Machine, Op, Outcome], str | None]
"""Says what is wrong with an outcome, or None; called after the op."""
