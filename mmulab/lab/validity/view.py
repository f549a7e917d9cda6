"""A cell of the validity matrix closely: the contexts' roles step by step, and each comparison of them.

In JupyterLab marker and witness are chosen from lists. Everywhere else the
chosen cell is steps that need neither a kernel nor a script.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets

from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.validity import RoleDecision
from mmulab.lab.validity.matrix import ValidityCell, ValidityMatrix
from mmulab.lab.validity.witness_run import CONTEXTS, Seen, base_word, extended
from mmulab.widgets.blocks import Block, Line, Panel, Strip, Table, panels_html
from mmulab.widgets.steps import Step, Steps
from mmulab.widgets.words import role_cells
from mmulab.x86.paging import Paging

__all__ = ["ValidityView", "cell_steps"]

_DESIGN = DESIGNS["passthrough"]
"""Of the machines that witnesses run on."""


def _change(before: str, after: str) -> str:
    return before or "-" if before == after else f"{before or '-'} → {after or '-'}"


def _contexts(step: Seen) -> Panel:
    rows, marked = [], []
    for number, name in enumerate(CONTEXTS):
        before, after = step.before[name], step.after[name]
        words = zip(before.words(_DESIGN), after.words(_DESIGN), strict=True)
        rows.append([name, *(_change(old, new) for old, new in words)])
        if before != after:
            marked.append(number)
    columns = ["context", "root_role", "cpu_role, base", "cpu_role, extended"]
    return Panel("roles before and after the op", [Table(columns, rows, marked)], wide=True)


def _reserved(paging: Paging | None) -> str:
    if paging is None:
        return "not configured"
    return f"{paging.rsvd[0][1]:#x}" if paging.mode.root_level else "no entries"


def _decision(decision: RoleDecision) -> Panel:
    compared = decision.root_role is not None
    rows = [
        [
            "it has",
            f"{decision.old_root_role:#x}",
            f"{base_word(decision.old_cpu_role, _DESIGN):#x}",
            extended(decision.old_cpu_role),
            _reserved(decision.old_paging),
        ],
        [
            "calculated",
            f"{decision.root_role:#x}" if decision.root_role is not None else "not compared",
            f"{base_word(decision.cpu_role, _DESIGN):#x}",
            extended(decision.cpu_role),
            _reserved(decision.paging),
        ],
    ]
    columns = ["", "root_role", "cpu_role, base", "extended", "reserved in a 4 KiB entry"]
    blocks: list[Block] = [Table(columns, rows)]
    if compared and decision.root_role is not None and decision.root_role != decision.old_root_role:
        cells = role_cells(_DESIGN.layout, decision.root_role, decision.old_root_role)
        blocks.append(Strip("root_role calculated, compared with what it has", cells))
    title = "unchanged: left as it is" if decision.unchanged else "configured again"
    return Panel(f"{decision.context}: {title}", blocks, wide=True)


def _outcome(step: Seen, cell: ValidityCell) -> Panel:
    blocks: list[Block] = [Line(step.outcome, code=True)]
    difference = cell.difference
    if difference is not None and (difference.op, difference.text) == (step.step, step.text):
        blocks.append(Line(f"expected: {difference.expected}", marked=True))
    at = (step.step, step.text)
    blocks += [Line(str(found), marked=True) for found in cell.findings if (found.op, found.text) == at]
    for lock in step.locks:
        held = "reading" if lock.shared else "writing"
        roots = f"{lock.tdp_mmu_roots} of the TDP MMU, {lock.shadow_roots} shadow pages"
        words = f"roots of {lock.context} freed ({roots}), mmu_lock held for {held}"
        blocks.append(Line(words + ("; an assertion fails" if lock.asserts else ""), marked=lock.asserts))
    return Panel("outcome", blocks, wide=True)


def cell_steps(cell: ValidityCell) -> Steps:
    """Return the ops of a cell's run as steps, at first at the op that its verdict rests on."""
    run = cell.run
    steps = [
        Step(step.text, panels_html([_outcome(step, cell), _contexts(step), *map(_decision, step.decisions)]))
        for step in run.steps
    ]
    return Steps(steps, name=f"{run.witness.name} under {run.marker.name}", at=_telling(cell))


def _telling(cell: ValidityCell) -> int:
    told = cell.difference or next((f for f in cell.findings if f.verdict is cell.verdict), None)
    places = [(step.step, step.text) for step in cell.run.steps]
    if told is not None:
        return places.index((told.op, told.text))
    return next(at for at, step in enumerate(cell.run.steps) if step.accepted)


class ValidityView:
    """One cell of a matrix, chosen by marker and witness.

    Parameters
    ----------
    matrix : ValidityMatrix
    marker, witness : str
        The cell shown first.

    Attributes
    ----------
    marker, witness : ipywidgets.Dropdown
    widget : ipywidgets.VBox

    Raises
    ------
    InputError
        The cell is not in the matrix.
    """

    def __init__(self, matrix: ValidityMatrix, marker: str, witness: str) -> None:
        matrix.cell(marker, witness)
        self._matrix = matrix
        self.marker = _dropdown("marker", [m.name for m in matrix.markers], marker)
        self.witness = _dropdown("witness", [w.name for w in matrix.witnesses], witness)
        self._body = ipywidgets.VBox([])
        self.widget = ipywidgets.VBox([ipywidgets.HBox([self.marker, self.witness]), self._body])
        for list_ in (self.marker, self.witness):
            list_.observe(lambda _: self._show(), "value")
        self._show()

    @property
    def cell(self) -> ValidityCell:
        """The cell shown."""
        return self._matrix.cell(self.marker.value, self.witness.value)

    def _show(self) -> None:
        self._body.children = [ipywidgets.HTML(self._heading()), cell_steps(self.cell).widget]

    def _heading(self) -> str:
        cell = self.cell
        run, words = cell.run, f": {cell.detail}" if cell.detail else ""
        return (
            f"<p><b>{escape(run.marker.name)}</b>, {escape(run.marker.summary)}, on "
            f"<b>{escape(run.witness.name)}</b>: {escape(run.witness.question)}.</p>"
            f"<p>Verdict: <b>{escape(cell.verdict)}</b>{escape(words)}</p>"
        )

    def html(self) -> str:
        """Return the cell shown as HTML that needs no script."""
        return self._heading() + cell_steps(self.cell).html()

    def __repr__(self) -> str:
        run = self.cell.run
        return f"<ValidityView {run.witness.name} under {run.marker.name}: {self.cell.verdict}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        bundle = dict(self.widget._repr_mimebundle_())
        return {**bundle, "text/html": self.html(), "text/plain": repr(self)}


def _dropdown(name: str, options: Sequence[str], value: str) -> Any:
    return ipywidgets.Dropdown(options=list(options), value=value, description=name)
