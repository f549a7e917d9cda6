"""Runs of a sync policy to step through: what went wrong, and the pages that came back into sync."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from typing import NamedTuple

from mmulab.check.judged import record_judged
from mmulab.errors import InputError
from mmulab.events import (
    kvm_mmu_get_page,
    kvm_mmu_prepare_zap_page,
    kvm_mmu_sync_page,
    kvm_mmu_unsync_page,
)
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.spte import SPTE_ENT_PER_PAGE
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.table import Case, read_boot, read_case, scenario_of
from mmulab.lab.cases.wrong import Ran, Wrong, kernel_of, record_again
from mmulab.lab.sync.compare import SyncCell, run_policy
from mmulab.lab.sync.questions import Answer
from mmulab.lab.sync.tables import short
from mmulab.lab.sync.witnesses import witnesses
from mmulab.machine.view import shadow_steps
from mmulab.report.results import Table
from mmulab.trace.recording import Moment, Recording
from mmulab.trace.sentence import op_sentence
from mmulab.widgets.blocks import panels_html
from mmulab.widgets.matrix import Column, Matrix, Row, Verdict
from mmulab.widgets.places import Places
from mmulab.widgets.session import Session
from mmulab.widgets.stepper import Stepper
from mmulab.widgets.steps import Step, Steps
from mmulab.widgets.wrong_access import Where, moments, wrong_access
from mmulab.workload.record import record_boot

__all__ = [
    "Resync",
    "broken",
    "record_work",
    "record_wrong",
    "resynced",
    "resyncs",
    "sync_matrix",
    "with_witnesses",
    "wrong_table",
]


def wrong_table(cells: Sequence[SyncCell]) -> Table:
    """Return the first wrong access of each policy on each piece of work, and what foretold it."""
    rows = []
    for cell in cells:
        wrong = cell.wrong
        if wrong is not None:
            gpas = [None if gpa is None else f"{gpa:#x}" for gpa in (wrong.expected, wrong.reached)]
            foretold = cell.case.note if cell.case.name.startswith("sync/") else None
            rows.append([cell.case.name, str(cell.policy), wrong.op, wrong.text, *gpas, wrong.seen, foretold])
    return Table(
        "wrong",
        ["work", "policy", "op", "access", "expected gpa", "reached gpa", "seen", "foretold"],
        rows,
        "First wrong access of each policy; for the guests that were made for it, the sentence of the reply.",
    )


def record_wrong(cell: SyncCell, kernel: Kernel | None = None) -> Wrong:
    """Run a wrong cell once more, recorded, with the moments that tell how it went wrong.

    Raises
    ------
    ValueError
        The cell is correct.
    InputError
        The MMU fails before anything can be looked at.
    """
    wrong = cell.wrong
    if wrong is None:
        raise ValueError(f"{cell.case.name} is correct under {cell.policy}")
    under = kernel_of(cell.case, kernel).with_(sync=cell.policy)
    ran = record_again(cell.case, under, wrong, under=str(cell.policy))
    named = f"{ran.what} {wrong.op:,} '{wrong.text}'"
    if wrong.op not in ran.ops:
        last = max(ran.ops.values())
        number = ran.recording.number(Moment(last, None))
        return Wrong(ran.recording, [(number, f"before {named}, in which the MMU fails")])
    at = ran.ops[wrong.op]
    told = moments(ran.recording, Where(at, named))
    return Wrong(ran.recording, [*_way_out_of_sync(ran, at, wrong.gva), *told])


def _way_out_of_sync(ran: Ran, wrong: int, gva: int | None) -> list[tuple[int, str]]:
    """Return when before a wrong op its table last went out of sync, and when it came back after that."""
    gfn = None if gva is None else _leaf_gfn(ran.recording, wrong, gva)
    found: list[tuple[int, str]] = []
    for number, op, event in _sync_events(ran.recording):
        if op >= wrong or (gfn is not None and event.gfn != gfn):
            continue
        if isinstance(event, kvm_mmu_unsync_page):
            found = [(number, f"op {_own(ran, op)}: table {event.gfn:#x} goes out of sync")]
        elif found:
            found = [found[0], (number, f"op {_own(ran, op)}: table {event.gfn:#x} is compared")]
    return found


def _own(ran: Ran, op: int) -> int:
    """Return a case's own number of a recording's op."""
    return next((own for own, place in ran.ops.items() if place == op), op)


def _leaf_gfn(recording: Recording, op: int, gva: int) -> int | None:
    steps = shadow_steps(recording.after(op).machine, gva)
    page = steps[-1].page if steps else None
    return None if page is None else page.gfn


def _sync_events(
    recording: Recording,
) -> Iterator[tuple[int, int, kvm_mmu_sync_page | kvm_mmu_unsync_page]]:
    """Yield number, op and event of each page that goes out of sync or comes back.

    A page that is zapped ends its being out of sync with the same event, and is not compared.
    """
    zapped: set[tuple[int, int]] = set()
    for at in range(len(recording.events)):
        event = recording.events[at]
        if isinstance(event, kvm_mmu_prepare_zap_page):
            zapped.add((event.gfn, event.role))
        elif isinstance(event, kvm_mmu_get_page):
            zapped.discard((event.gfn, event.role))
        elif (
            isinstance(event, kvm_mmu_sync_page | kvm_mmu_unsync_page)
            and (event.gfn, event.role) not in zapped
        ):
            op = recording.op_of(at)
            yield recording.number(Moment(op, at)), op, event


def wrong_steps(cell: SyncCell, kernel: Kernel | None = None) -> str:
    """Return the moments that tell how a wrong cell went wrong, as HTML that needs no script."""
    try:
        wrong = record_wrong(cell, kernel)
    except InputError as nothing:
        return f"<p>{escape(str(nothing))}</p>"
    name = f"{cell.case.name} under {cell.policy}"
    return wrong_access(wrong.recording, wrong.moments, name=name, verdict=str(cell.wrong)).html()


def wrong_stepper(cell: SyncCell, kernel: Kernel | None = None) -> Stepper:
    """Return a wrong cell's run to step through, from where its table went out of sync."""
    wrong = record_wrong(cell, kernel)
    return Stepper(wrong.recording, at=wrong.moments[0][0])


def with_witnesses(
    policies: Sequence[SyncPolicy], cells: Sequence[SyncCell], *, kernel: Kernel | None = None
) -> list[SyncCell]:
    """Return the cells of each witness, which are run now, and of the work that some policy is wrong on."""
    wrong = {cell.case.name for cell in cells if cell.wrong is not None}
    made = [run_policy(policy, case, kernel=kernel) for case in witnesses() for policy in policies]
    return [*made, *(cell for cell in cells if cell.case.name in wrong)]


def broken(answered: Sequence[Answer], *, kernel: Kernel | None = None) -> Places:
    """Return the variations that are wrong where the design is right; each opens at its first such work."""
    found = [
        next(effect.varied for effect in effects if effect.broken)
        for answer in answered
        for effects in answer.effects.values()
        if any(effect.broken for effect in effects)
    ]
    rows = [[str(c.policy).partition("+")[2], short(c.case), str(c.wrong)] for c in found]
    return Places(
        ["variation", "first wrong on", "first wrong access"],
        rows,
        still=lambda number: wrong_steps(found[number], kernel),
        live=lambda number: wrong_stepper(found[number], kernel),
        name="variations that break the design",
    )


def sync_matrix(cells: Sequence[SyncCell], *, kernel: Kernel | None = None) -> Matrix:
    """Return policies by work; a wrong cell opens where its table went out of sync.

    Parameters
    ----------
    cells : sequence of SyncCell
        One for each policy on each piece of work.
    kernel : Kernel, optional
        The one that they ran with.
    """
    policies = list(dict.fromkeys(str(cell.policy) for cell in cells))
    works = list(dict.fromkeys(cell.case.name for cell in cells))
    by_name = {(cell.case.name, str(cell.policy)): cell for cell in cells}
    grid = [[by_name[work, policy] for policy in policies] for work in works]

    columns = [_column(by_name[works[0], policy].policy) for policy in policies]
    rows = [
        Row(_group(line[0].case.name), line[0].case.name, tuple(map(_verdict, line)), _note(line[0].case))
        for line in grid
    ]
    return Matrix(
        columns,
        rows,
        still=lambda row, column: wrong_steps(grid[row][column], kernel),
        live=lambda row, column: wrong_stepper(grid[row][column], kernel),
        name="sync policies by work",
    )


def _column(policy: SyncPolicy) -> Column:
    name, _, changed = str(policy).partition("+")
    return Column(name, changed, policy.summary)


def _note(case: Case) -> str:
    return f"“{case.note}”" if case.name.startswith("sync/") else ""


def _group(name: str) -> str:
    known = {
        "sync": "guests that were made for it",
        "workload": "workloads",
        "conformance": "recordings of a real kernel",
        "stream": "recorded boots",
    }
    return known.get(name.partition("/")[0], "cases")


def _verdict(cell: SyncCell) -> Verdict:
    if cell.wrong is None:
        return Verdict(False)
    what = "record" if cell.case.kind is CaseKind.BOOT else "op"
    return Verdict(True, f"{what} {cell.wrong.op}", str(cell.wrong))


class Resync(NamedTuple):
    """A page that came back into sync.

    Attributes
    ----------
    moment, op : int
        Number of the moment, and of the recording's op.
    text : str
        The op.
    gfn, level : int
        Of the table.
    entries : int
        sptes that there were to compare.
    """

    moment: int
    op: int
    text: str
    gfn: int
    level: int
    entries: int


def resyncs(recording: Recording, most: int | None = None) -> list[Resync]:
    """Return the pages that came back into sync, the first `most`, each with its number of entries then."""
    found = []
    events = ((n, op, e) for n, op, e in _sync_events(recording) if isinstance(e, kvm_mmu_sync_page))
    for number, op, event in islice(events, most):
        machine = recording.visit(recording.moment(number)).machine
        pages = machine.kvm.pages.values()
        page = next(sp for sp in pages if (sp.gfn, sp.role) == (event.gfn, event.role))
        base = page.frame * SPTE_ENT_PER_PAGE
        sptes = machine.kvm.memory.words[base : base + SPTE_ENT_PER_PAGE].tolist()
        entries = sum(spte != machine.kvm.fmt.nonpresent for spte in sptes)
        found.append(Resync(number, op, op_sentence(recording.op(op)), page.gfn, page.level, entries))
    return found


def record_work(case: Case, kernel: Kernel) -> Recording:
    """Run a piece of work, recorded; of a boot the case must name a number of records."""
    if case.kind is CaseKind.BOOT:
        return record_boot(read_boot(case), case.records or len(read_boot(case)), kernel)[0]
    return record_judged(scenario_of(read_case(case)), kernel=kernel)[0]


def resynced(policy: SyncPolicy, case: Case, *, kernel: Kernel | None = None, most: int = 8) -> Places:
    """Return the first pages of a run that came back into sync; each opens there.

    Parameters
    ----------
    policy : SyncPolicy
    case : Case
    kernel : Kernel, optional
    most : int
        How many are listed.
    """
    recording = record_work(case, kernel_of(case, kernel).with_(sync=policy))
    found, name = resyncs(recording, most), f"{case.name} under {policy}"

    def still(number: int) -> str:
        one, session = found[number], Session(recording)
        end = recording.number(Moment(one.op, None))
        steps = []
        for moment, title in ((one.moment, f"table {one.gfn:#x} is compared"), (end, "the op has ended")):
            session.goto(moment)
            steps.append(Step(title, panels_html(session.panels())))
        return Steps(steps, name=f"{name}, {number + 1}").html()

    return Places(
        ["came back in", "during", "table", "level", "entries"],
        [[recording.name_of_op(o.op), o.text, f"{o.gfn:#x}", str(o.level), str(o.entries)] for o in found],
        still=still,
        live=lambda number: Stepper(recording, at=found[number].moment),
        name=f"first pages of {name} that came back",
    )
