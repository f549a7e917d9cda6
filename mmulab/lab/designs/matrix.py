"""The matrix of a comparison: designs by cases, each wrong cell with the steps that led to it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape

from mmulab.errors import InputError
from mmulab.kvm.kernel import LINUX_6_1, Kernel
from mmulab.lab.cases.run import FAILURES
from mmulab.lab.cases.table import read_boot, read_case, scenario_of
from mmulab.lab.designs.compare import Cell, Comparison
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.record import record_steps
from mmulab.scenario.scenario import Scenario
from mmulab.trace.recording import Moment, Recording
from mmulab.widgets.matrix import Column, Matrix, Row, Verdict
from mmulab.widgets.stepper import Stepper
from mmulab.widgets.steps import Steps
from mmulab.widgets.wrong_access import Where, moments, wrong_access
from mmulab.workload.record import record_boot

__all__ = ["Wrong", "design_matrix", "group_of", "record_wrong", "wrong_steps"]

GROUPS = (
    ("la57-switch-*", "switch of CR4.LA57"),
    ("portal-*", "switch of L1's NPT from PAE to 4 levels"),
    ("mixed-*", "one table under several rules"),
    ("smm-*", "system management mode"),
    ("tdp-mmu-*", "direct map, TDP MMU"),
    ("tdp-*", "direct map, legacy MMU"),
    ("shadow-*", "shadow of a guest"),
    ("npt-fault-*", "L1's NPT, mapped upon #NPF"),
    ("npt-root-write-*", "L1's NPT, root written"),
    ("npt-*", "shadow of L1's NPT"),
    ("nonpt-tdp-*", "L1 without NPT, host with"),
    ("nonpt-shadow-*", "L1 without NPT, host without"),
    ("ept-*", "shadow of L1's EPT"),
    ("noept-*", "L1 without EPT"),
    ("host-32-*", "32-bit host"),
    ("conformance/*", "recordings of a real kernel"),
    ("stream/*", "recorded boots"),
)
"""Names of cases to what they have in common; the first that fits counts."""


def group_of(name: str) -> str:
    """Return the kind of a case."""
    return next((words for pattern, words in GROUPS if fnmatchcase(name, pattern)), "others")


@dataclass(frozen=True, slots=True)
class Wrong:
    """The recording of a run that went wrong, and the moments that tell how.

    Attributes
    ----------
    recording : Recording
    moments : list of (int, str)
        Number and title of each, in order; the last is the end of the wrong op, or where the
        model stopped, the end of the op before it.
    """

    recording: Recording
    moments: list[tuple[int, str]]


def record_wrong(cell: Cell, kernel: Kernel | None = None) -> Wrong:
    """Run a wrong cell once more, recorded.

    Parameters
    ----------
    cell : Cell
        Whose design is wrong on its case.
    kernel : Kernel, optional
        The one that the comparison ran with.

    Raises
    ------
    ValueError
        The cell is correct.
    InputError
        The MMU fails before anything can be looked at.
    """
    if cell.first_wrong is None:
        raise ValueError(f"{cell.case.name} is correct under {cell.design.name}")
    if cell.case.stream:
        return _record_boot(cell, kernel, cell.first_wrong.op)
    scenario = scenario_of(read_case(cell.case))
    wrong, shared = cell.first_wrong, cell.collision
    recording, ops = _record_as_far_as_it_goes(cell, scenario, kernel, wrong.op)
    if wrong.op not in ops:
        number = recording.number(Moment(ops[wrong.op - 1], None))
        return Wrong(recording, [(number, f"before op {wrong.op} '{wrong.text}', in which the MMU fails")])
    at = Where(ops[wrong.op], f"op {wrong.op} '{wrong.text}'")
    if shared is None:
        return Wrong(recording, moments(recording, at))
    found = Where(ops[shared.op], f"op {shared.op}")
    return Wrong(recording, moments(recording, at, found=found, page=(shared.gfn, shared.shared)))


def _record_as_far_as_it_goes(
    cell: Cell, scenario: Scenario, kernel: Kernel | None, wrong: int
) -> tuple[Recording, dict[int, int]]:
    """Record the whole run; if the MMU fails somewhere, up to the wrong op; if in that, up to the one before.

    Inside an op that never ended nothing can be visited.
    """
    chosen = machine_config(scenario, kernel).kernel.with_(design=cell.design)
    for until in (None, wrong, wrong - 1):
        try:
            return record_steps(scenario, kernel=chosen, until=until)
        except FAILURES:
            continue
    raise _nothing_to_see(cell)


def _record_boot(cell: Cell, kernel: Kernel | None, record: int) -> Wrong:
    """Record a boot up to the wrong access, or if the MMU fails in that, up to the one before."""
    stream = read_boot(cell.case)
    chosen = (kernel or LINUX_6_1).with_(design=cell.design)
    for limit in (record + 1, record) if record else (1,):
        try:
            recording, last = record_boot(stream, limit, chosen)
        except FAILURES:
            continue
        if limit > record:
            return Wrong(recording, moments(recording, Where(last, f"record {record:,}")))
        number = recording.number(Moment(last, None))
        return Wrong(recording, [(number, f"before record {record:,}, in which the MMU fails")])
    raise _nothing_to_see(cell)


def _nothing_to_see(cell: Cell) -> InputError:
    seen = "" if cell.first_wrong is None else f": {cell.first_wrong.seen}"
    return InputError(
        f"{cell.case.name} under {cell.design.name}: nothing before the failure can be shown{seen}"
    )


def design_matrix(
    found: Comparison, *, kernel: Kernel | None = None, name: str = "designs by cases"
) -> Matrix:
    """Return a comparison as a matrix; its wrong cells open at the wrong access.

    Parameters
    ----------
    found : Comparison
    kernel : Kernel, optional
        The one that it ran with.
    name : str
        Says what the matrix is of.
    """
    groups = [words for _, words in GROUPS] + ["others"]
    works = sorted(found.works, key=lambda case: groups.index(group_of(case.name)))
    cells = [[found.cell(design.name, case.name) for design in found.designs] for case in works]

    def still(row: int, column: int) -> str:
        cell = cells[row][column]
        same = next(other for other in cells[row] if _ends_alike(other, cell))
        shared = "" if same.collision is None else f"<p>{escape(str(same.collision))}</p>"
        try:
            return shared + wrong_steps(same, kernel, name=name).html()
        except InputError as nothing:
            return f"{shared}<p>{escape(str(nothing))}</p>"

    def live(row: int, column: int) -> Stepper:
        wrong = record_wrong(cells[row][column], kernel)
        return Stepper(wrong.recording, at=wrong.moments[0][0])

    columns = [Column(design.id, design.name, design.summary) for design in found.designs]
    rows = [
        Row(group_of(case.name), case.name, tuple(map(_verdict, line)), case.note)
        for case, line in zip(works, cells, strict=True)
    ]
    return Matrix(columns, rows, still=still, live=live, name=name)


def _ends_alike(one: Cell, other: Cell) -> bool:
    """Whether two wrong cells of a case may share a view: both only do what the default design does."""
    return one is other or (one.as_default and other.as_default and one.first_wrong == other.first_wrong)


def _verdict(cell: Cell) -> Verdict:
    wrong = cell.first_wrong
    if wrong is None:
        return Verdict(False, later=not cell.in_its_time)
    what = "record" if cell.case.stream else "op"
    return Verdict(True, f"{what} {wrong.op}", str(wrong), cell.as_default, not cell.in_its_time)


def wrong_steps(cell: Cell, kernel: Kernel | None = None, *, name: str = "") -> Steps:
    """Return the moments that tell how a wrong cell went wrong, to step through without a kernel.

    Parameters
    ----------
    cell, kernel
        As :func:`record_wrong` takes them.
    name : str
        Where the steps stand: on a page with the same steps twice it must tell the two apart.
    """
    wrong = record_wrong(cell, kernel)
    name = f"{cell.case.name} under {cell.design.name}" + (f", {name}" if name else "")
    return wrong_access(wrong.recording, wrong.moments, name=name, verdict=str(cell.first_wrong))
