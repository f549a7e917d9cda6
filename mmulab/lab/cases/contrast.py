"""How runs of one scenario under two designs differ."""

from __future__ import annotations

from dataclasses import dataclass

from mmulab.check.access import WrongAccess
from mmulab.events import Event
from mmulab.lab.cases.run import CaseRun


@dataclass(frozen=True)
class Contrast:
    """How a run under another design differs from one under the default.

    Attributes
    ----------
    passthrough : int
        Events of the default's run whose role word says ``passthrough``.
    events : dict of str to int
        Events more (or fewer) than under the default, by name; those of equal number are left out.
    first : tuple of (int, str) or None
        Index of the op and name of the first event that is another one, whatever roles say; None: all same.
    pages : int
        Shadow pages more (or fewer).
    wrong : WrongAccess or None
        The other design's first wrong access, if it is not the default's too.
    """

    passthrough: int
    events: dict[str, int]
    first: tuple[int, str] | None
    pages: int
    wrong: WrongAccess | None

    def __str__(self) -> str:
        if self.wrong is not None:
            return f"WRONG at {self.wrong}"
        parts = [f"{name} {more:+}" for name, more in self.events.items()]
        if self.first is not None:
            parts.append(f"from op {self.first[0]}, {self.first[1]}, other events or another order")
        if self.pages:
            parts.append(f"shadow pages {self.pages:+}")
        if self.passthrough:
            parts.append(f"events with passthrough in the role: 0, not {self.passthrough}")
        return "; ".join(parts) or "the same"


def contrast(base: CaseRun, other: CaseRun) -> Contrast:
    """Compare two runs of one scenario under different designs."""
    facts = base.machine.kvm.config.kernel.design.facts
    words = [event.role for event in base.events if hasattr(event, "role")]
    ours, theirs = base.counts, other.counts
    more = {name: theirs.get(name, 0) - ours.get(name, 0) for name in sorted({*ours, *theirs})}
    return Contrast(
        sum(facts(word).passthrough for word in words),
        {name: number for name, number in more.items() if number},
        first_other(base, other),
        other.shadow_pages - base.shadow_pages,
        None if other.wrong == base.wrong else other.wrong,
    )


def first_other(base: CaseRun, other: CaseRun) -> tuple[int, str] | None:
    """Return the op and the name of the first event that differs in more than its role word."""

    def flat(run: CaseRun) -> list[tuple[int, str, Event]]:
        return [
            (r.index, type(e).__name__, e._replace(role=0) if hasattr(e, "role") else e)
            for r in run.results
            for e in r.events
        ]

    ours, theirs = flat(base), flat(other)
    for mine, its in zip(ours, theirs, strict=False):
        if mine != its:
            return its[:2]
    longer = max(ours, theirs, key=len)
    return None if len(ours) == len(theirs) else longer[min(len(ours), len(theirs))][:2]
