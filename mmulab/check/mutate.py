"""Trials made of kept ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from mmulab.check.alphabet import Alphabet
from mmulab.scenario.grammar import Step

Steps = tuple[Step, ...]
_BITS = (0, 1, 2, 5, 6, 7, 8, 63)
"""Bits of an entry that are worth a flip: rights, A, D, PS, G and NX."""


def mutated(steps: Steps, corpus: Sequence[Steps], alphabet: Alphabet, rng: Random, limit: int) -> Steps:
    """Return `steps` changed in one to four ways, at most `limit` of them."""
    made = list(steps)
    for _ in range(rng.randint(1, 4)):
        _mutate(made, corpus, alphabet, rng)
    return tuple(made[:limit])


def _mutate(steps: list[Step], corpus: Sequence[Steps], alphabet: Alphabet, rng: Random) -> None:
    """Change `steps` in one way."""
    choice, at = rng.random(), rng.randrange(len(steps) + 1)
    if choice < 0.35:
        steps[at:at] = alphabet.phrase()
    elif choice < 0.5:
        steps.extend(phrase for _ in range(rng.randint(1, 4)) for phrase in alphabet.phrase())
    elif choice < 0.65:
        other = rng.choice(corpus)
        steps[at:] = other[rng.randrange(len(other)) :]
    elif not steps:
        return
    elif choice < 0.8:
        del steps[at : at + rng.randint(1, 4)]
    elif choice < 0.9:
        end = at + rng.randint(1, 6)
        steps[end:end] = steps[at:end]
    else:
        place = rng.randrange(len(steps))
        steps[place] = _with_other_value(steps[place], rng)


def _with_other_value(step: Step, rng: Random) -> Step:
    """Return a step with a bit of its value flipped, or on the next page."""
    op: Any = step.op
    value = getattr(op, "value", None)
    size = getattr(op, "size", 0)
    if value is not None and size:
        bit = rng.choice(_BITS)
        return step._replace(op=replace(op, value=(value ^ 1 << bit) & (1 << 8 * size) - 1))
    if hasattr(op, "gva"):
        return step._replace(op=replace(op, gva=op.gva ^ 0x1000))
    return step
