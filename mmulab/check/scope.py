"""A scope: a beginning and a few ops, of which a search tries every sequence up to a depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mmulab.errors import InputError
from mmulab.scenario.grammar import GrammarError, Step, format_step, parse_step
from mmulab.scenario.scenario import Scenario

MAX_OPS, MAX_DEPTH = 64, 32


@dataclass(frozen=True, slots=True)
class Scope:
    """What an exhaustive search covers.

    Attributes
    ----------
    name : str
    about : str
        One line: what it is aimed at.
    scenario : Scenario
        The host, the guest and its memory; its steps come before the first choice.
    ops : tuple of Step
        What may be done at each step.
    depth : int
        How many steps are chosen.
    """

    name: str
    about: str
    scenario: Scenario
    ops: tuple[Step, ...]
    depth: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.ops) <= MAX_OPS:
            raise InputError(f"scope {self.name}: {len(self.ops)} ops, expected 1 to {MAX_OPS}")
        if len(set(self.ops)) != len(self.ops):
            raise InputError(f"scope {self.name}: an op is there twice")
        if not 1 <= self.depth <= MAX_DEPTH:
            raise InputError(f"scope {self.name}: depth is {self.depth}, expected 1 to {MAX_DEPTH}")

    def with_(self, *, depth: int) -> Scope:
        """Return this scope with another depth."""
        return replace(self, depth=depth)

    def taken(self, choices: Iterable[int]) -> Scenario:
        """Return the scenario in which these ops were chosen, one after another."""
        steps = (*self.scenario.steps, *(self.ops[choice] for choice in choices))
        return replace(self.scenario, steps=steps, source=f"<scope {self.name}>")

    def __str__(self) -> str:
        return f"{self.name}: depth {self.depth} of {', '.join(map(format_step, self.ops))}"


def steps(*lines: str) -> tuple[Step, ...]:
    """Read ops, as in a scenario's text.

    Raises
    ------
    InputError
        Naming the line.
    """
    found = []
    for line in lines:
        try:
            found.append(parse_step(line))
        except GrammarError as error:
            raise InputError(f"op '{line}': {error}") from error
    return tuple(found)
