"""What the thread of 2008 asked of the design, each question answered by a run of its variation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from typing import Any, NamedTuple

from mmulab.errors import InputError, quoted
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.sync.oos_2008 import Oos2008
from mmulab.kvm.sync.variations import VARIATIONS, Variation
from mmulab.lab.cases.table import Case
from mmulab.lab.costs import TWO_VCPUS, CostModel, estimate
from mmulab.lab.sync.compare import SyncCell, syncs_each
from mmulab.lab.sync.tables import priced, short
from mmulab.report.results import Table

__all__ = ["MEASURES", "Answer", "Effect", "answers", "find_variations", "policies_of"]

BYTES = "bytes"
"""The measure that goes into the sentence only: hardly a variation leaves it as it is."""
MEASURES: dict[str, Callable[[SyncCell], int]] = {
    "emulated writes": lambda cell: cell.counts.emulated_writes,
    "faults": lambda cell: cell.page_faults,
    "unsynced": lambda cell: cell.counts.unsyncs,
    "synced": lambda cell: cell.counts.syncs,
    "entries compared": lambda cell: cell.counts.entries,
    "idle CR3 loads": lambda cell: cell.counts.idle_cr3_writes,
    "given up for another": lambda cell: cell.counts.evicted,
    "stayed in sync": lambda cell: sum(cell.counts.refused.values()),
    BYTES: lambda cell: cell.counts.peak_bytes,
}
"""What is compared, by its name in the tables."""


def find_variations(patterns: str) -> list[Variation]:
    """Return the variations that patterns with commas between them name; ``-`` names none.

    Raises
    ------
    InputError
        A pattern that names none.
    """
    if patterns == "-":
        return []
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in VARIATIONS):
            raise InputError(f"variation '{quoted(pattern)}': unknown; they are {', '.join(VARIATIONS)}")
    return [v for name, v in VARIATIONS.items() if any(fnmatchcase(name, pattern) for pattern in wanted)]


def policies_of(variation: Variation) -> dict[str, Oos2008]:
    """Return the design of 2008 by each value of a variation; the first is the design's own."""
    return {value: Oos2008(**{variation.name: value}) for value in variation.values}


class Effect(NamedTuple):
    """A value of a variation beside the design's own on one piece of work."""

    own: SyncCell
    varied: SyncCell

    @property
    def work(self) -> str:
        """The work's short name."""
        return short(self.own.case)

    @property
    def comparable(self) -> bool:
        """Whether both ran to their ends: counts up to a wrong access say nothing."""
        return self.own.wrong is None and self.varied.wrong is None

    @property
    def deltas(self) -> dict[str, int]:
        """By measure, how much more the variation has; without those that are equal."""
        if not self.comparable:
            return {}
        found = {name: measure(self.varied) - measure(self.own) for name, measure in MEASURES.items()}
        return {name: more for name, more in found.items() if more}

    @property
    def moved(self) -> bool:
        """Whether more differs than memory."""
        return bool({*self.deltas} - {BYTES})

    @property
    def broken(self) -> bool:
        """The variation is wrong where the design is right."""
        return self.own.wrong is None and self.varied.wrong is not None

    @property
    def mended(self) -> bool:
        """The variation is right where the design is wrong."""
        return self.own.wrong is not None and self.varied.wrong is None


@dataclass(frozen=True)
class Answer:
    """A question, and what its variation did.

    Attributes
    ----------
    variation : Variation
    effects : dict of str to list of Effect
        By value other than the design's own: one a piece of work.
    model : CostModel
    """

    variation: Variation
    effects: dict[str, list[Effect]]
    model: CostModel = TWO_VCPUS

    @property
    def cells(self) -> list[SyncCell]:
        """All cells of the variation's values."""
        return [effect.varied for found in self.effects.values() for effect in found]

    def table(self) -> Table:
        """Return the counts that differ, for each piece of work where some do."""
        shown = [
            (value, effect)
            for value, found in self.effects.items()
            for effect in found
            if effect.moved or effect.broken or effect.mended
        ]
        names = [name for name in MEASURES if name != BYTES and any(name in e.deltas for _, e in shown)]
        rows = [
            [value, effect.work, *map(effect.deltas.get, names), self._verdict(effect)]
            for value, effect in shown
        ]
        name, own = self.variation.name, next(iter(self.variation.values))
        return Table(
            f"question_{name}",
            [name, "work", *names, "verdict"],
            rows,
            f"More or less than with {name}={own}. Where nothing but memory differs, it is left out.",
        )

    @staticmethod
    def _verdict(effect: Effect) -> str:
        return "breaks" if effect.broken else "mends" if effect.mended else ""

    def sentence(self, value: str) -> str:
        """Return the answer of one value, in words that the run decides."""
        found = self.effects[value]
        parts = [*self._correctness(found), self._counts(found)]
        return f"{value} ({self.variation.values[value]}): {'; '.join(parts)}."

    @staticmethod
    def _correctness(found: Sequence[Effect]) -> list[str]:
        said = []
        for word, works in (
            ("it breaks", [effect.work for effect in found if effect.broken]),
            ("it mends", [effect.work for effect in found if effect.mended]),
        ):
            if works:
                few = ", ".join(works[:3]) + (f" and {len(works) - 3} more" if len(works) > 3 else "")
                said.append(f"{word} {few}")
        return said

    def _counts(self, found: Sequence[Effect]) -> str:
        whole = [effect for effect in found if effect.comparable]
        moved = [effect for effect in whole if effect.moved]
        bytes_ = {effect.deltas.get(BYTES, 0) for effect in whole}
        memory = "" if bytes_ <= {0} else f"; its bookkeeping takes {_bytes(bytes_)}"
        if not moved:
            return f"no count differs on the {len(whole)} pieces of work that both get right{memory}"
        total = {name: sum(effect.deltas.get(name, 0) for effect in moved) for name in MEASURES}
        del total[BYTES]
        listed = ", ".join(f"{name} {more:+,}" for name, more in total.items() if more)
        own, varied = (self._cost([getattr(e, side) for e in moved]) for side in ("own", "varied"))
        share = 100 * (varied - own) / own
        how = "dearer" if share > 0 else "cheaper"
        price = "about as dear" if abs(share) < 0.5 else f"{abs(share):.0f} % {how}"
        where = f"of the {len(whole)} pieces of work that both get right it does {len(moved)} otherwise"
        sums = listed or "the differences cancel out"
        return f"{where} ({sums}), {price} there by the default prices{memory}"

    def _cost(self, cells: Sequence[SyncCell]) -> float:
        return sum(estimate(priced(cell), self.model).default for cell in cells)

    def html(self) -> str:
        """Return the question, the design's own way and the answers as HTML."""
        variation = self.variation
        own = next(iter(variation.values))
        answered = "".join(f"<p>{escape(self.sentence(value))}</p>" for value in self.effects)
        return (
            f"<h3>{escape(variation.name)}</h3><blockquote>{escape(variation.asked)}</blockquote>"
            f"<p>The design itself: {escape(own)}, {escape(variation.values[own])}.</p>{answered}"
        )

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        words = [self.sentence(value) for value in self.effects]
        return {"text/html": self.html(), "text/plain": "\n".join([self.variation.asked, *words])}


def _bytes(more: set[int]) -> str:
    """Say how much more or less memory runs took."""
    low, high = min(more), max(more)
    if low < 0 < high:
        return f"{-low:,} bytes less to {high:,} more"
    least, most = sorted((abs(low), abs(high)))
    how = "more" if high > 0 else "less"
    return f"{most:,} bytes {how}" if least == most else f"up to {most:,} bytes {how}"


def answers(
    variations: Sequence[Variation],
    works: Sequence[Case],
    *,
    kernel: Kernel | None = None,
    model: CostModel = TWO_VCPUS,
    progress: Callable[[int], object] | None = None,
) -> list[Answer]:
    """Run each value of each variation, and the design itself, on each piece of work.

    Parameters
    ----------
    variations : sequence of Variation
    works : sequence of Case
    kernel : Kernel, optional
    model : CostModel
        Prices of the answers' sentences.
    progress : callable, optional
        Gets the number of pieces of work that are done.
    """
    others = [(v, value, policy) for v in variations for value, policy in [*policies_of(v).items()][1:]]
    found: dict[str, dict[str, list[Effect]]] = {v.name: {} for v in variations}
    policies = [Oos2008(), *(policy for _, _, policy in others)]
    for done, row in enumerate(syncs_each(policies, works, kernel=kernel) if others else (), 1):
        for (variation, value, _), cell in zip(others, row[1:], strict=True):
            found[variation.name].setdefault(value, []).append(Effect(row[0], cell))
        if progress is not None:
            progress(done)
    return [Answer(v, found[v.name], model) for v in variations]
