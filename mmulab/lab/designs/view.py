"""The matrix of a comparison: designs by cases, each wrong cell with the steps that led to it."""

from __future__ import annotations

from html import escape

from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.kinds import KINDS, kind_of
from mmulab.lab.cases.wrong import Wrong, kernel_of, record_again
from mmulab.lab.designs.compare import Comparison, DesignCell
from mmulab.trace.recording import Moment
from mmulab.widgets.matrix import Column, Matrix, Row, Verdict
from mmulab.widgets.stepper import Stepper
from mmulab.widgets.steps import Steps
from mmulab.widgets.wrong_access import Where, moments, wrong_access

__all__ = ["design_matrix", "record_wrong", "wrong_steps"]


def record_wrong(cell: DesignCell, kernel: Kernel | None = None) -> Wrong:
    """Run a wrong cell once more, recorded.

    Parameters
    ----------
    cell : DesignCell
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
    ran = record_again(
        cell.case,
        kernel_of(cell.case, kernel).with_(design=cell.design),
        cell.first_wrong,
        under=cell.design.name,
    )
    recording, wrong, shared = ran.recording, cell.first_wrong, cell.collision
    named = f"record {wrong.op:,}" if cell.case.kind is CaseKind.BOOT else f"op {wrong.op} '{wrong.text}'"
    if wrong.op not in ran.ops:
        number = recording.number(Moment(ran.ops[wrong.op - 1], None))
        return Wrong(recording, [(number, f"before {named}, in which the MMU fails")])
    at = Where(ran.ops[wrong.op], named)
    recording.verdicts.setdefault(at.op, wrong.said)
    if shared is None or cell.case.kind is CaseKind.BOOT:
        return Wrong(recording, moments(recording, at))
    recording.found_wrongly[at.op] = shared.gfn, shared.shared
    found = Where(ran.ops[shared.op], f"op {shared.op}")
    return Wrong(recording, moments(recording, at, found=found, page=(shared.gfn, shared.shared)))


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
    works = sorted(found.works, key=lambda case: KINDS.index(kind_of(case.name)))
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
        return Stepper(wrong.recording, at=wrong.moments[-1][0])

    columns = [Column(design.id, design.name, design.summary) for design in found.designs]
    rows = [
        Row(kind_of(case.name), case.name, tuple(map(_verdict, line)), case.note)
        for case, line in zip(works, cells, strict=True)
    ]
    return Matrix(columns, rows, still=still, live=live, name=name)


def _ends_alike(one: DesignCell, other: DesignCell) -> bool:
    """Whether two wrong cells of a case may share a view: both only do what the default design does."""
    return one is other or (one.as_default and other.as_default and one.first_wrong == other.first_wrong)


def _verdict(cell: DesignCell) -> Verdict:
    wrong = cell.first_wrong
    if wrong is None:
        return Verdict(False, later=not cell.in_its_time)
    what = "record" if cell.case.kind is CaseKind.BOOT else "op"
    return Verdict(True, f"{what} {wrong.op}", str(wrong), cell.as_default, not cell.in_its_time)


def wrong_steps(cell: DesignCell, kernel: Kernel | None = None, *, name: str = "") -> Steps:
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
