"""The recorder: takes a machine over, and keeps what it does."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np

from mmulab import events as ev
from mmulab.events import Event
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from mmulab.trace.checkpoints import Checkpoints
from mmulab.trace.columns import Log
from mmulab.trace.recording import Info, Judge, Recording

INTERVAL = 1000
"""Ops and events between two checkpoints: a few milliseconds of running again."""


class Recorder:
    """Records a machine from the moment it is made.

    Every op that the machine executes is kept, whoever gave it. Nothing else may
    change the machine meanwhile: what is not an op is lost when the run is
    repeated. The event sink is the append of a list; columns are filled at the
    checkpoints.

    Parameters
    ----------
    machine : Machine
        Its sinks are the recorder's until :meth:`finish`.
    info : Info
    judge : callable, optional
        Says of each outcome what is wrong with it.
    interval : int
        Ops and events between two checkpoints.
    record : callable, optional
        Returns the number of the stream's record that the op at hand belongs to.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        info: Info | None = None,
        judge: Judge | None = None,
        interval: int = INTERVAL,
        record: Callable[[], int] | None = None,
    ) -> None:
        self.machine = machine
        self.info = info or Info()
        self._judge = judge
        self._interval = interval
        self._record = record
        self._log_ops, self._log_outcomes = Log(), Log()
        self._log_events = Log(ev.EVENT_TYPES.values())
        self._ops: list[Op] = []
        self._outcomes: list[Outcome] = []
        self._events: list[Event] = []
        self._flushed = 0
        self._ends = array("q")
        self._verdicts: dict[int, str] = {}
        self._steps = array("q")
        self._helpers = array("b")
        self._checkpoints = Checkpoints()
        self._checkpoint_ops = array("q")
        self._sinks_before = machine.emit, machine.op_sink
        machine.emit = self._events.append
        machine.op_sink = self._executed
        self._take()

    @property
    def event_count(self) -> int:
        """Number of events so far."""
        return self._flushed + len(self._events)

    @property
    def op_count(self) -> int:
        """Number of ops so far."""
        return len(self._ends)

    def _executed(self, op: Op, outcome: Outcome) -> None:
        self._ops.append(op)
        self._outcomes.append(outcome)
        events = len(self._events)
        self._ends.append(self._flushed + events)
        if self._record is not None:
            self.belongs(self._record(), helper=False)
        if self._judge is not None:
            verdict = self._judge(self.machine, op, outcome)
            if verdict is not None:
                self._verdicts[len(self._ends) - 1] = verdict
        if events + len(self._ops) >= self._interval:
            self._flush()
            self._take()

    def belongs(self, step: int, *, helper: bool) -> None:
        """Say to which step of a scenario the ops since the last call belong.

        Parameters
        ----------
        step : int
            Index of the step, as ``mmulab run`` prints it.
        helper : bool
            The last of them only goes with the step; those before it do anyway.
        """
        new = self.op_count - len(self._steps)
        self._steps.extend([step] * new)
        self._helpers.extend([1] * (new - 1) + [int(helper)] if new else [])

    def found_wrong(self, said: str) -> None:
        """Keep what is wrong with the last op."""
        self._verdicts[self.op_count - 1] = said

    def _flush(self) -> None:
        self._log_ops.extend(self._ops)
        self._log_outcomes.extend(self._outcomes)
        self._log_events.extend(self._events)
        self._flushed += len(self._events)
        for pending in (self._ops, self._outcomes, self._events):
            pending.clear()

    def _take(self) -> None:
        self._checkpoints.take(self.machine)
        self._checkpoint_ops.append(len(self._ends))

    def finish(self) -> Recording:
        """End the recording and return it; the machine has its own sinks again."""
        self._flush()
        self._checkpoints.freeze()
        self.machine.emit, self.machine.op_sink = self._sinks_before
        return Recording(
            self.machine.config,
            self._log_ops,
            self._log_outcomes,
            self._log_events,
            np.array(self._ends, np.int64),
            self._checkpoints,
            np.array(self._checkpoint_ops, np.int64),
            self.info,
            self._verdicts,
            steps=np.array(self._steps, np.int64),
            helpers=np.array(self._helpers, np.uint8),
        )
