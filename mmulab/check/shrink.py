"""Making a scenario with a finding minimal: what can go goes, what can be simpler becomes so.

First the steps, in halves and smaller parts, then one by one; then the values in them;
then the memory at the beginning, the slots and the settings of host and guest; and all
again, until nothing changes. A shorter scenario counts if the same thing is found in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import Any, TypeVar

from mmulab.errors import InputError
from mmulab.machine import op as ops
from mmulab.machine.op import Mode
from mmulab.scenario.grammar import Step
from mmulab.scenario.scenario import CPUID_DEFAULTS, HOST_DEFAULTS, Header, Scenario
from mmulab.x86.mode import PT64_NX_SHIFT

T = TypeVar("T")
Still = Callable[[Scenario], bool]
"""Whether the finding is still in a scenario."""
_FULL = 0x67
"""Rights of an ordinary entry: P, W, U, A and D."""
_TIMES = 20
"""Passes over everything, at most; two or three are usual."""
PAIRS = 24
"""Of so many steps at most every two are tried to be left out together."""
_SETTINGS: dict[str, Any] = {
    "thp": False,
    "manual_dirty": False,
    "disable_nx_huge_pages": False,
    "vcpus": 1,
    "dirty_ring": 0,
    "pdptfix": (),
}
_SIMPLER_OPS: dict[type[ops.Op], type[ops.Op]] = {ops.Exchange: ops.Write, ops.Write: ops.Read}


def shrink(scenario: Scenario, still: Still) -> Scenario:
    """Return a scenario of which nothing can be left out, nor made simpler, without losing the finding.

    Parameters
    ----------
    scenario : Scenario
        One that has the finding.
    still : callable
        Must say the same of the same scenario each time. A scenario that it refuses
        with :class:`~mmulab.errors.InputError` has not.
    """

    def holds(candidate: Scenario) -> bool:
        try:
            return still(candidate)
        except InputError:
            return False

    for _ in range(_TIMES):
        before = scenario
        scenario = _fewer_steps(scenario, holds)
        scenario = _simpler_steps(scenario, holds)
        scenario = _simpler_header(scenario, holds)
        if scenario == before:
            break
    return scenario


def _fewer_steps(scenario: Scenario, still: Still) -> Scenario:
    def holds(steps: Sequence[Step]) -> bool:
        return still(replace(scenario, steps=tuple(steps)))

    return replace(scenario, steps=tuple(_without_pairs(_fewest(scenario.steps, holds), holds)))


def _without_pairs(steps: list[Step], holds: Callable[[Sequence[Step]], bool]) -> list[Step]:
    """Drop two steps that can only go together, such as one that undoes the other."""
    if len(steps) > PAIRS:
        return steps
    for first, second in combinations(range(len(steps)), 2):
        rest = [step for at, step in enumerate(steps) if at not in (first, second)]
        if holds(rest):
            return _without_pairs(_fewest(rest, holds), holds)
    return steps


def _fewest(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """Drop what is not needed, in ever smaller parts, then each one alone until none can go."""
    kept = list(items)
    size = len(kept) // 2
    while size:
        at, dropped = len(kept), False
        while at > 0:
            begin = max(0, at - size)
            rest = kept[:begin] + kept[at:]
            if holds(rest):
                kept, dropped = rest, True
            at = begin
        if size > 1 or not dropped:
            size //= 2
    return kept


def _simpler_steps(scenario: Scenario, still: Still) -> Scenario:
    """Give each step the simplest form that keeps the finding."""
    for place in range(len(scenario.steps)):
        changed = True
        while changed:
            changed = False
            for simpler in _simpler(scenario.steps[place]):
                steps = (*scenario.steps[:place], simpler, *scenario.steps[place + 1 :])
                candidate = replace(scenario, steps=steps)
                if still(candidate):
                    scenario, changed = candidate, True
                    break
    return scenario


def _simpler(step: Step) -> Iterator[Step]:
    """Yield forms that are simpler than a step; going from one to a simpler one comes to an end."""
    if step.when:
        yield step._replace(when="")
    op: Any = step.op
    if op.vcpu:
        yield step._replace(op=replace(op, vcpu=0))
    kind = _SIMPLER_OPS.get(type(op))
    if kind is not None:
        known = {field.name: getattr(op, field.name) for field in fields(kind)}
        yield step._replace(op=kind(**known))
    if getattr(op, "mode", Mode.SUPERVISOR) is not Mode.SUPERVISOR:
        yield step._replace(op=replace(op, mode=Mode.SUPERVISOR))
    for name in ("value", "gva", "flags", "length", "gpa"):
        held = getattr(op, name, None)
        if held:
            for simpler in _simpler_numbers(name, held, op):
                yield step._replace(op=replace(op, **{name: simpler}))


def _simpler_numbers(name: str, held: int, op: ops.Op) -> Iterator[int]:
    """Yield smaller numbers in the place of one, and an entry with the rights of an ordinary one."""
    if name == "value" and isinstance(op, ops.WriteCr | ops.WriteEfer):
        return
    if name == "value":
        yield 0
        yield from _simpler_entries(held)
    elif name == "gva":
        if held & 0xFFF:
            yield held & ~0xFFF
    elif name == "flags":
        yield 0
    elif name == "length" and held > 0x1000:
        yield 0x1000
    elif name == "gpa" and isinstance(op, ops.HostWrite) and held & 4:
        yield held & ~4


def _simpler_entries(held: int) -> Iterator[int]:
    """Yield an entry with fewer deviations from the ordinary one: each step clears or sets one bit."""
    low, frame = held & 0xFFF, held & ~0xFFF & ~(1 << PT64_NX_SHIFT)
    if not frame or low == _FULL:
        return
    yield frame | _FULL
    if held >> PT64_NX_SHIFT:
        yield held & ~(1 << PT64_NX_SHIFT)
    for bit in range(12):
        if (low ^ _FULL) >> bit & 1:
            yield held ^ 1 << bit


def _simpler_header(scenario: Scenario, still: Still) -> Scenario:
    """Leave out of the beginning what is not needed, and put settings back to their defaults."""

    def holds(**changes: Any) -> bool:
        return still(replace(scenario, header=replace(scenario.header, **changes)))

    def put(**changes: Any) -> None:
        nonlocal scenario
        scenario = replace(scenario, header=replace(scenario.header, **changes))

    for name in ("values", "fills", "slots", "quirks"):
        held = getattr(scenario.header, name)
        put(**{name: tuple(_fewest(held, lambda kept, name=name: holds(**{name: tuple(kept)})))})  # type: ignore[misc]
    for number, value in enumerate(scenario.header.values):
        for simpler in (0, *_simpler_entries(value.value)):
            values = list(scenario.header.values)
            values[number] = value._replace(value=simpler)
            if simpler != value.value and simpler >> 8 * value.size == 0 and holds(values=tuple(values)):
                put(values=tuple(values))
                break
    for name, default in _SETTINGS.items():
        if getattr(scenario.header, name) != default and holds(**{name: default}):
            put(**{name: default})
    for name, defaults in (("cpuid", CPUID_DEFAULTS), ("host", HOST_DEFAULTS)):
        for key in _changed(scenario.header, name, defaults):
            changed = {**getattr(scenario.header, name), key: defaults[key]}
            if holds(**{name: changed}):
                put(**{name: changed})
    return scenario


def _changed(header: Header, name: str, defaults: dict[str, int]) -> list[str]:
    held = getattr(header, name)
    return [key for key, default in defaults.items() if held[key] != default]
