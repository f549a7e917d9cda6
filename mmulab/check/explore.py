"""Every sequence of a scope's ops, shortest first, each state once.

Breadth first: the first sequence that ends in a finding is a shortest one. From each
state each op is tried; a state that was met before, up to what
:mod:`mmulab.check.state_key` calls equal, is not entered again. So ops that commute
cost one more try, and no more states; where it is known that an op does nothing
(:mod:`mmulab.check.quiet`) it is not tried. Two sequences to one state leave the same watchers
behind, for what those remember is part of the state.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from mmulab.check.explored import INTERRUPTED, Bounds, Counterexample, Explored, Progress
from mmulab.check.failure import FAILURES, failure
from mmulab.check.finding import Finding, FindingKind, MakeWatcher, Watcher
from mmulab.check.known import Beyond
from mmulab.check.oracle_key import Memory, memory_of
from mmulab.check.quiet import Quiet
from mmulab.check.savepoint import Keeper, Savepoint
from mmulab.check.scope import Scope
from mmulab.check.state_checks import StateChecks
from mmulab.check.state_key import Key, StateKey, digest_of
from mmulab.errors import DesignError, InputError
from mmulab.kvm.kernel import Kernel
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.grammar import Step, format_step
from mmulab.scenario.runner import Result, Runner
from mmulab.x86.mode import PAGING_PAE, paging_mode

TABLE_FRAMES = 500
"""Host frames for tables: few, for which of them were written is looked up after each op."""
KNOWN_STEPS = 1 << 14
"""How many ops are kept with what they did."""
YOUNG = 50_000
"""Objects made between two collections of garbage, of which an op leaves hardly any."""


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Look for cyclic garbage less often: the states that are kept hold none, and are many."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


_Privileges = tuple[tuple[int, int], ...]
"""The number and privilege of each vCPU in PAE paging, where the way to another privilege is an op."""


class _State(NamedTuple):
    """A state to go on from: the machine and its key, each vCPU's privilege, the watchers, the way to it."""

    machine: Savepoint
    core: Key
    cpl: _Privileges
    watchers: tuple[Any, ...]
    choices: tuple[int, ...]


class _Known(NamedTuple):
    """What an op did to a state of the machine, whatever the watchers remember."""

    result: Result
    machine: Savepoint
    core: Key
    cpl: _Privileges
    ended: bool


class _Refused(Exception):
    """An op is not modelled where it stands."""


class _Beginning(Exception):
    """The scope's own first steps have a finding."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


class World:
    """A scope's machine with its watchers, which go from state to state.

    Parameters
    ----------
    scope : Scope
    kernel : Kernel
    makers : sequence of MakeWatcher
    """

    def __init__(self, scope: Scope, kernel: Kernel, makers: Sequence[MakeWatcher]) -> None:
        config = replace(machine_config(scope.scenario, kernel), table_frames=TABLE_FRAMES)
        self._runner = Runner(scope.scenario, config=config)
        self._first = len(scope.scenario.steps)
        machine = self._runner.machine
        self._checks = StateChecks(machine)
        self._watchers: list[Watcher] = [*[make(machine) for make in makers], self._checks]
        self._memories: list[Memory] = [memory_of(watcher) for watcher in self._watchers]
        self._look(self._runner.begin())
        for index, step in enumerate(scope.scenario.steps):
            self._look(self._runner.step(index, step))
        self._keeper = Keeper(machine)
        self._keys = StateKey(machine.memory.backing)
        self._quiet = Quiet(machine, self._keys)
        self._known: dict[tuple[object, ...], _Known] = {}
        self._last: list[Result] = []

    def _look(self, results: Iterator[Result]) -> None:
        for result in results:
            for watcher in self._watchers:
                finding = watcher.after(result)
                if finding is not None:
                    raise _Beginning(finding)

    @property
    def ended(self) -> bool:
        """Nothing can follow: the vCPU is shut down, or runs for ever."""
        return self._runner.ended

    def state(self, before: _State | None, choices: tuple[int, ...]) -> _State:
        """Return the state as it is now, one op after `before`."""
        watchers = tuple([memory.save() for memory in self._memories])
        machine = self._keeper.take()
        unchanged = before is not None and machine.same(before.machine)
        core = before.core if before is not None and unchanged else self._keys.key(machine)
        return _State(machine, core, self._privileges(), watchers, choices)

    def _privileges(self) -> _Privileges:
        """Return the privilege that each vCPU in PAE paging was left with: elsewhere no op depends on it."""
        cpl, vcpus = self._runner.cpl, self._runner.machine.kvm.vcpus
        return tuple(
            [(v.id, cpl.get(v.id, 0)) for v in vcpus if paging_mode(v.cr0, v.cr4, v.efer) is PAGING_PAE]
        )

    def go(self, state: _State, choice: int, step: Step) -> tuple[Finding | None, _State]:
        """Execute an op in a state that was put, and return what is wrong with it and where it led.

        What it did to this state of the machine may be known; then the machine is put there, and
        the watchers alone see it anew.
        """
        name = state.core.machine, choice, state.cpl
        choices = *state.choices, choice
        known = self._known.get(name)
        if known is not None:
            return self._again(known, len(state.choices), choices)
        finding = self.step(len(state.choices), step)
        reached = self.state(state, choices)
        if finding is None and len(self._last) == 1:
            if len(self._known) >= KNOWN_STEPS:
                self._known.clear()
            self._known[name] = _Known(
                self._last[0], reached.machine, reached.core, reached.cpl, self._runner.ended
            )
        return finding, reached

    def _again(self, known: _Known, at: int, choices: tuple[int, ...]) -> tuple[Finding | None, _State]:
        self._last.clear()
        self._keeper.put(known.machine)
        self._runner.cpl, self._runner.ended = dict(known.cpl), known.ended
        finding = None
        for watcher in self._watchers[:-1]:  # the machine's own checks found nothing
            finding = finding or watcher.after(known.result)
        if finding is not None:
            finding = replace(finding, op=self._first + at)
        watchers = tuple([memory.save() for memory in self._memories])
        return finding, _State(known.machine, known.core, known.cpl, watchers, choices)

    def key(self, state: _State) -> bytes:
        """Return the key of the state as it is now, which was taken last."""
        return digest_of((state.core.machine, state.cpl, self._remembered()))

    def _remembered(self) -> tuple[Hashable, ...]:
        return tuple([memory.key() for memory in self._memories])

    def around(self, state: _State) -> bytes:
        """Return a name of what a state that was put has around its shadow tables."""
        return self._quiet.around(state.machine, (state.cpl, self._remembered()))

    def may_act(self, choice: int, step: Step, around: bytes) -> bool:
        """Whether an op might do something here: its condition holds, and it is not known to do nothing."""
        return self._holds(step) and not self._quiet.known(choice, around)

    def did_nothing(self, choice: int, around: bytes) -> None:
        """Take note that the last op left everything as it was."""
        passed = [watcher.passed for watcher in self._watchers if isinstance(watcher, Beyond)]
        if self._last and not any(result is gone for result in self._last for gone in passed):
            self._quiet.learn(choice, around, self._last)

    def put(self, state: _State) -> None:
        """Go to a state; the one that it is in must have been taken."""
        self._keeper.put(state.machine)
        self._runner.cpl = dict(state.cpl)
        self._runner.ended = False
        for memory, saved in zip(self._memories, state.watchers, strict=True):
            memory.restore(saved)

    def _holds(self, step: Step) -> bool:
        """Whether a step's condition holds: without, nothing happens."""
        nested = self._runner.machine.kvm.vcpus[step.op.vcpu].guest_mode
        return not step.when or (step.when == "!") == nested

    def wrong(self, at: int, step: Step) -> Finding | None:
        """Return an invariant that does not hold after an op, or None; the state says, not how it came."""
        return self._checks.everything(self._first + at, format_step(step))

    def step(self, at: int, step: Step) -> Finding | None:
        """Execute one op, and return the first thing that is wrong with it."""
        index = self._first + at
        try:
            self._last.clear()
            self._quiet.begin()
            self._checks.follow()
            for result in self._runner.step(index, step):
                self._last.append(result)
                for watcher in self._watchers:
                    finding = watcher.after(result)
                    if finding is not None:
                        return finding
        except DesignError as error:
            return failure(self._runner, error)
        except (InputError, NotImplementedError) as error:
            raise _Refused from error
        except FAILURES as error:
            return failure(self._runner, error)
        return None


def explore(
    scope: Scope,
    kernel: Kernel,
    makers: Sequence[MakeWatcher],
    bounds: Bounds | None = None,
    progress: Callable[[Progress], None] | None = None,
    *,
    known: Callable[[Counterexample], bool] | None = None,
) -> Explored:
    """Try every sequence of a scope's ops; the MMU's invariants are checked in each new state.

    Parameters
    ----------
    scope : Scope
    kernel : Kernel
    makers : sequence of MakeWatcher
        Of those who say what is wrong with an op, by what it did; what one of them remembers must be
        known to :func:`mmulab.check.oracle_key.memory_of`.
    bounds : Bounds, optional
    progress : callable, optional
        Told now and then.
    known : callable, optional
        Says of a counterexample that it is none, as when the right kernel does the same. Nothing is
        tried behind it.

    Raises
    ------
    InputError
        The scope's own beginning has a finding, or is not modelled.
    """
    search = _Search(scope, kernel, makers, bounds or Bounds(), progress, known)
    return search.run()


class _Search:
    def __init__(
        self,
        scope: Scope,
        kernel: Kernel,
        makers: Sequence[MakeWatcher],
        bounds: Bounds,
        progress: Callable[[Progress], None] | None,
        known: Callable[[Counterexample], bool] | None,
    ) -> None:
        self._scope, self._kernel, self._bounds, self._progress = scope, kernel, bounds, progress
        self._known = known
        self._begun, self._cpu_begun = time.monotonic(), time.process_time()
        self._makers = makers
        self._seen: set[bytes] = set()
        self._right: set[bytes] = set()
        self._found: dict[tuple[FindingKind, str], Counterexample] = {}
        self._tries = 0
        self._refused = 0
        self._done = 0
        self._closed = False
        self._world = self._new_world()

    def _new_world(self) -> World:
        try:
            return World(self._scope, self._kernel, self._makers)
        except _Beginning as begun:
            raise InputError(f"scope {self._scope.name}: its beginning has a finding: {begun}") from begun

    def run(self) -> Explored:
        """Search, and return what was found up to the end, whatever ended it."""
        interrupted = ""
        try:
            with _rare_collections():
                interrupted = self._levels()
        except KeyboardInterrupt:
            interrupted = INTERRUPTED
        return Explored(
            self._scope,
            self._kernel.name,
            len(self._seen),
            self._tries,
            self._refused,
            self._done,
            tuple(self._found.values()),
            self._closed or self._done == self._scope.depth,
            self._closed,
            interrupted,
            time.monotonic() - self._begun,
            time.process_time() - self._cpu_begun,
        )

    def _levels(self) -> str:
        state = self._world.state(None, ())
        self._seen.add(self._world.key(state))
        level = deque((state,))
        for depth in range(self._scope.depth):
            following: deque[_State] = deque()
            last = depth + 1 == self._scope.depth
            while level:
                self._expand(level.popleft(), None if last else following)
                why = self._ends()
                if why:
                    return why
                if self._progress is not None and not len(level) & 63:
                    self._progress(Progress(depth + 1, len(self._seen), len(level)))
            self._done = depth + 1
            level = following
            if not level and not last:
                self._closed = True
                break
        return ""

    def _ends(self) -> str:
        if self._bounds.first and self._found:
            return "found"
        if self._bounds.seconds is not None and time.monotonic() - self._begun > self._bounds.seconds:
            return "time"
        if self._bounds.stop is not None and self._bounds.stop():
            return "stopped"
        return "states" if len(self._seen) > self._bounds.states else ""

    def _expand(self, state: _State, following: deque[_State] | None) -> None:
        """Try each op from a state; keep those states that are new and may be gone on from."""
        world, ops = self._world, self._scope.ops
        world.put(state)
        here, around = world.key(state), world.around(state)
        tried = [choice for choice, step in enumerate(ops) if world.may_act(choice, step, around)]
        for at, choice in enumerate(tried):
            step = ops[choice]
            if at:  # the first finds the state put
                world.put(state)
            self._tries += 1
            try:
                finding, reached = world.go(state, choice, step)
            except _Refused:
                self._refused += 1
                world.state(state, state.choices)  # it may be half done, and is gone back from
                continue
            if finding is not None:
                self._keep(finding, reached.choices)
                continue
            if not world.ended:
                key = world.key(reached)
                if key == here and reached.core is state.core:
                    world.did_nothing(choice, around)
                if key in self._seen:
                    continue
                self._seen.add(key)
            if reached.core.mmu not in self._right:
                finding = world.wrong(len(state.choices), step)
                if finding is not None:
                    self._keep(finding, reached.choices)
                    continue
                self._right.add(reached.core.mmu)
            if following is not None and not world.ended:
                following.append(reached)

    def _keep(self, finding: Finding, choices: tuple[int, ...]) -> None:
        spent = time.monotonic() - self._begun
        found = Counterexample(finding, choices, self._scope.taken(choices), len(self._seen), spent)
        key = finding.kind, finding.name
        if key not in self._found and (self._known is None or not self._known(found)):
            self._found[key] = found
