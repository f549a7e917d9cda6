"""Which marker of role validity is fooled by which change of CPUID: markers by witnesses, each cell run.

A marker is compared with a reference under which no configuration is ever
skipped: what the guest sees must be the same. Where the reference itself departs
from what the guest's tables and its CPUID say, no marker can help, because shadow
pages made for the old CPUID are found again by roles that do not hold CPUID.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from enum import StrEnum
from html import escape
from typing import NamedTuple

from mmulab.check.access import WrongAccess
from mmulab.errors import InputError, find_named
from mmulab.kvm.free_roots_lock import MmuLockHeld
from mmulab.kvm.roles.word import CpuRole
from mmulab.kvm.validity import VALIDITIES, RoleDecision, Validity, find_validity
from mmulab.lab.validity.witness_run import CONTEXTS, REFERENCE, ValidityRun, run_witness
from mmulab.lab.validity.witnesses import Witness, witnesses
from mmulab.machine import op as ops
from mmulab.x86.paging import Paging

__all__ = [
    "Difference",
    "Finding",
    "ValidityCell",
    "ValidityMatrix",
    "Verdict",
    "chosen",
    "compare",
    "find_witness",
    "markers",
    "validity_matrix",
    "witnesses",
]


class Verdict(StrEnum):
    """What a witness shows of a marker, best first."""

    RIGHT = "right"
    NEEDLESS = "needless"
    """A context is configured again though nothing in it would have changed."""
    FOOLED = "fooled"
    """A context is taken for valid that is not, or that was marked; the guest sees nothing of it."""
    HOST = "host"
    """The host's kernel asserts; the guest sees nothing of it."""
    GUEST = "guest"
    """The guest sees something else than under the reference."""


WORDS = {
    Verdict.RIGHT: "✓",
    Verdict.NEEDLESS: "↻ needless",
    Verdict.FOOLED: "○ unseen",
    Verdict.HOST: "! host",
    Verdict.GUEST: "✗ guest",
}
_COLORS = {
    Verdict.RIGHT: "#ffffff",
    Verdict.NEEDLESS: "#f2f2f2",
    Verdict.FOOLED: "#fff3bf",
    Verdict.HOST: "#fde3b0",
    Verdict.GUEST: "#fbd9c6",
}


class Difference(NamedTuple):
    """The first op that ends otherwise than under the reference.

    Attributes
    ----------
    op : int
        Its number in the scenario.
    text : str
    expected, seen : str
        Outcomes, as recordings have them.
    """

    op: int
    text: str
    expected: str
    seen: str

    def __str__(self) -> str:
        return f"op {self.op} '{self.text}': expected {self.expected}; seen {self.seen}"


class Finding(NamedTuple):
    """A decision about a context for which CPUID has changed since it was configured.

    Attributes
    ----------
    op : int
        Its number in the scenario.
    text : str
    context : str
    verdict : Verdict
        ``FOOLED``: left alone. ``NEEDLESS``: configured as it was.
    stale : bool
        What it was left with is not what it should have.
    """

    op: int
    text: str
    context: str
    verdict: Verdict
    stale: bool

    def __str__(self) -> str:
        at = f"op {self.op} '{self.text}': {self.context}"
        if self.verdict is Verdict.NEEDLESS:
            return f"{at} is configured again, as it was"
        return f"{at} is taken for valid, {'and is stale' if self.stale else 'and nothing in it differs'}"


class ValidityCell(NamedTuple):
    """A marker on a witness.

    Attributes
    ----------
    run : ValidityRun
    verdict : Verdict
    difference : Difference or None
    findings : tuple of Finding
    asserts : tuple of str
        Assertions about the MMU lock that fail.
    """

    run: ValidityRun
    verdict: Verdict
    difference: Difference | None
    findings: tuple[Finding, ...]
    asserts: tuple[str, ...]

    @property
    def detail(self) -> str:
        """What the verdict rests on, in words; empty if nothing is wrong."""
        if self.difference is not None:
            return str(self.difference)
        of_verdict = [str(found) for found in self.findings if found.verdict is self.verdict]
        return "; ".join(self.asserts or of_verdict)


_WITNESSES = tuple(witnesses())


def markers() -> dict[str, Validity]:
    """Return the markers by name; the first is that of Linux 6.1."""
    return dict(VALIDITIES)


def find_witness(name: str) -> Witness:
    """Return a witness by name.

    Raises
    ------
    InputError
        No witness has this name.
    """
    return find_named(witnesses(), name, "witness", "witnesses")


def chosen(patterns: str, known: Iterable[str]) -> list[str]:
    """Return the names that one of some patterns fits, in their order.

    Parameters
    ----------
    patterns : str
        Separated by spaces; ``*`` stands for anything.
    known : iterable of str

    Raises
    ------
    InputError
        A pattern fits no name.
    """
    names = list(known)
    for pattern in patterns.split():
        if not fnmatch.filter(names, pattern):
            raise InputError(f"{pattern!r}: fits none of {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns.split())]


def compare(run: ValidityRun, reference: ValidityRun) -> ValidityCell:
    """Judge a run by the reference's run of the same witness."""
    difference = _first_difference(run, reference)
    findings = tuple(_findings(run))
    asserts = tuple(
        f"op {step.step} '{step.text}': {_assertion(lock)}"
        for step in run.steps
        for lock in step.locks
        if lock.asserts
    )
    verdict = max((found.verdict for found in findings), key=list(Verdict).index, default=Verdict.RIGHT)
    if asserts:
        verdict = Verdict.HOST
    if difference is not None:
        verdict = Verdict.GUEST
    return ValidityCell(run, verdict, difference, findings, asserts)


def _assertion(lock: MmuLockHeld) -> str:
    roots = "shadow MMU" if lock.shared else "TDP MMU"
    held = "reading" if lock.shared else "writing"
    word = f"root_role {lock.root_role:#x}"
    return f"a root of the {roots} in {lock.context} is freed with mmu_lock held for {held}, {word}"


def _first_difference(run: ValidityRun, reference: ValidityRun) -> Difference | None:
    for seen, expected in zip(run.steps, reference.steps, strict=False):
        if seen.outcome != expected.outcome:
            return Difference(seen.step, seen.text, expected.outcome, seen.outcome)
    return None


def _findings(run: ValidityRun) -> list[Finding]:
    """Follow each context from a change of CPUID to the next decision about it."""
    found: list[Finding] = []
    pending: dict[str, bool] = dict.fromkeys(CONTEXTS, False)
    wanted: dict[str, tuple[CpuRole, int | None]] = {}
    for step in run.steps:
        if isinstance(step.op, ops.SetCpuid) and step.accepted:
            pending = {name: step.before[name].configured for name in CONTEXTS}
        for decision in step.decisions:
            name = decision.context
            roles = (_plain(decision.cpu_role), decision.root_role)
            if pending[name]:
                verdict = _verdict(run.marker, decision, same_roles=wanted[name] == roles)
                if verdict is not None:
                    stale = not _same_paging(decision.old_paging, decision.paging)
                    found.append(Finding(step.step, step.text, name, verdict, stale))
            if not decision.unchanged:
                pending[name] = False
            wanted[name] = roles
    return found


def _verdict(marker: Validity, decision: RoleDecision, *, same_roles: bool) -> Verdict | None:
    same = same_roles and _same_paging(decision.old_paging, decision.paging)
    if decision.unchanged:
        # A mark that is not seen is a failure even if nothing is lost by it.
        return Verdict.FOOLED if marker.writes or not same else None
    return Verdict.NEEDLESS if same else None


def _plain(role: CpuRole) -> CpuRole:
    """Return a calculated role without what is there for the comparison alone."""
    return role._replace(valid=0, cpuid_stale=0, maxphyaddr=0)


def _same_paging(old: Paging | None, new: Paging) -> bool:
    """Whether walks go by the same rules; without paging there is no entry to have reserved bits."""
    return old == new or (old is not None and not old.mode.root_level and not new.mode.root_level)


class ValidityMatrix:
    """Markers by witnesses.

    Attributes
    ----------
    markers : tuple of Validity
    witnesses : tuple of Witness
    references : dict of str to ValidityRun
        The reference's run of each witness, by name.
    """

    def __init__(
        self,
        markers: Iterable[Validity],
        witnesses: Iterable[Witness],
        references: dict[str, ValidityRun],
        cells: dict[tuple[str, str], ValidityCell],
    ) -> None:
        self.markers = tuple(markers)
        self.witnesses = tuple(witnesses)
        self.references = references
        self._cells = cells

    def cell(self, marker: str, witness: str) -> ValidityCell:
        """Return the cell of a marker and a witness, by name.

        Raises
        ------
        InputError
            It is not in the matrix.
        """
        if (marker, witness) not in self._cells:
            raise InputError(f"marker {marker!r} and witness {witness!r}: no such cell in this matrix")
        return self._cells[marker, witness]

    def beyond(self, witness: str) -> WrongAccess | None:
        """Return the first access that is wrong even under the reference, which no marker can mend."""
        return self.references[witness].wrong

    def rows(self) -> list[list[str]]:
        """Return the verdicts' names: one row a witness, its name first, then one value a marker."""
        return [
            [witness.name, *(self._cells[marker.name, witness.name].verdict for marker in self.markers)]
            for witness in self.witnesses
        ]

    def __repr__(self) -> str:
        head = ["witness", *(marker.name for marker in self.markers)]
        return "\n".join("  ".join(row) for row in [head, *self.rows()])

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col" title="{escape(marker.summary)}">'
            f"{escape(marker.name).replace('_', '_<wbr>')}</th>"
            for marker in self.markers
        )
        body = "".join(self._row_html(witness) for witness in self.witnesses)
        legend = "; ".join(f"{WORDS[verdict]}: {words}" for verdict, words in LEGEND.items())
        return (
            f'<table class="validity" style="font-size: 0.85em"><caption>{escape(legend)}</caption>'
            f'<thead><tr><th scope="col">witness</th>{head}</tr></thead><tbody>{body}</tbody></table>'
        )

    def _row_html(self, witness: Witness) -> str:
        beyond = self.beyond(witness.name)
        cells = "".join(_cell_html(self._cells[marker.name, witness.name]) for marker in self.markers)
        style = f"text-align: left; font-weight: normal; {_NOWRAP}"
        row = (
            f'<tr><th scope="row" style="{style}" title="{escape(witness.question)}">'
            f"<code>{escape(witness.name)}</code></th>{cells}</tr>"
        )
        if beyond is None:
            return row
        note = f"{BEYOND}: {beyond}"
        return f'{row}<tr><td colspan="{len(self.markers) + 1}"><small>{escape(note)}</small></td></tr>'


BEYOND = "wrong even if no configuration is skipped"
_NOWRAP = "white-space: nowrap"
LEGEND = {
    Verdict.RIGHT: "right",
    Verdict.NEEDLESS: "configured again, as it was",
    Verdict.FOOLED: "taken for valid, unseen by the guest",
    Verdict.HOST: "an assertion of the host's kernel fails",
    Verdict.GUEST: "the guest sees something wrong",
}
"""The verdicts in words."""


def _cell_html(cell: ValidityCell) -> str:
    style = f"background: {_COLORS[cell.verdict]}; text-align: center; {_NOWRAP}"
    return f'<td style="{style}" title="{escape(cell.detail)}">{WORDS[cell.verdict]}</td>'


def validity_matrix(
    markers: Sequence[Validity | str] = (), witnesses: Sequence[Witness | str] = ()
) -> ValidityMatrix:
    """Run every witness under every marker and under the reference.

    Parameters
    ----------
    markers, witnesses : sequence of records or names, optional
        All if left out. A marker may be one's own
        :class:`~mmulab.kvm.validity.Validity`.

    Raises
    ------
    InputError
        A name is unknown.
    """
    of = [find_validity(m) if isinstance(m, str) else m for m in markers or VALIDITIES]
    on = [find_witness(w) if isinstance(w, str) else w for w in witnesses or _WITNESSES]
    references = {witness.name: run_witness(witness, REFERENCE) for witness in on}
    cells = {
        (marker.name, witness.name): compare(run_witness(witness, marker), references[witness.name])
        for witness in on
        for marker in of
    }
    return ValidityMatrix(of, on, references, cells)
