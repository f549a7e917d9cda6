"""Role designs compared: each on the same work, who is wrong where, and what each costs.

A design is wrong on a piece of work from the first access on that does not go
where it should. For a built case the guest's own tables say where that is, for
a recording the real guest's outcomes, for a boot the recorded addresses. Beside
each wrong design runs a correct one, to show which page was shared and what the
word does not say: the default design, and with other roots than the merged ones
``glevel``, whose series brought them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, cached_property, reduce
from html import escape
from operator import add
from typing import Any, NamedTuple

from mmulab import pool
from mmulab.check.access import WrongAccess
from mmulab.errors import InputError
from mmulab.events import kvm_mmu_get_page
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.roles.derivation import parity
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.design_check import WORD_BITS
from mmulab.kvm.roles.root_strategy import special
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.run import CaseRun, design_of
from mmulab.lab.cases.table import DEFAULT, Case, read_boot, read_case, run_work, scenario_of, verdict_of
from mmulab.lab.designs.collision import Collision, collisions
from mmulab.lab.designs.era import in_its_time, modes_needed, modes_of_stream
from mmulab.lab.designs.measures import Lookup, Measures, Observed, TellingApart, against, measure
from mmulab.lab.designs.missing import blamed
from mmulab.lab.designs.page_bound import PageBound, page_bound
from mmulab.lab.designs.stream_run import run_stream
from mmulab.pool import Jobs

__all__ = ["Comparison", "DesignCell", "compare", "compare_each"]

_OTHER_ROOTS = DESIGNS["glevel"]
"""What runs beside a design where roots are no special ones."""


@dataclass(frozen=True)
class DesignCell:
    """A design on a piece of work.

    Attributes
    ----------
    design : RoleDesign
    case : Case
    first_wrong : WrongAccess or None
    measures : Measures
    collision : Collision or None
        Of a wrong cell: the page that was wrongly shared; None if none was looked up before.
    in_its_time : bool
        KVM had the modes of this work when the design was its word.
    as_default : bool
        The default design ends in the same way: what is wrong is not the design.
    observed : Observed
        What `measures` were taken of.
    beside : Observed or None
        The same of the default design's run; None if that is wrong.
    """

    design: RoleDesign
    case: Case
    first_wrong: WrongAccess | None
    measures: Measures
    collision: Collision | None
    in_its_time: bool
    as_default: bool
    observed: Observed
    beside: Observed | None

    @property
    def verdict(self) -> str:
        """``correct``, ``wrong``, or ``kernel``: what is wrong is not the design, Linux itself does so."""
        return verdict_of(self.first_wrong is not None, as_linux=self.as_default)

    def record(self) -> dict[str, Any]:
        """Return the cell as JSON holds it; see :meth:`Comparison.records`."""
        used = self.design.layout.used_bits
        return {
            "design": self.design.name,
            "design_name": self.design.name,
            "design_id": self.design.id,
            "case": self.case.name,
            "verdict": self.verdict,
            "first_wrong": self.first_wrong._asdict() if self.first_wrong else None,
            "in_its_time": self.in_its_time,
            "as_default": self.as_default,
            "note": self.case.note or None,
            "base_bits": used,
            "spare_bits": WORD_BITS - used,
            **self.measures.record(),
            "collision": self.collision.record() if self.collision else None,
        }


class Comparison:
    """Designs by works.

    Attributes
    ----------
    designs : tuple of RoleDesign
    works : tuple of Case
    cells : tuple of DesignCell
        By work, then by design; fewer than designs times works if it was interrupted.
    """

    def __init__(
        self, designs: Sequence[RoleDesign], works: Sequence[Case], cells: Sequence[DesignCell]
    ) -> None:
        self.designs = tuple(designs)
        self.works = tuple(works)
        self.cells = tuple(_against_the_coarsest(designs, cells))
        self._by_name = {(cell.design.name, cell.case.name): cell for cell in cells}

    def cell(self, design: str, case: str) -> DesignCell:
        """Return the cell of a design and a case, by their names.

        Raises
        ------
        InputError
            The comparison has no such cell.
        """
        if (design, case) not in self._by_name:
            raise InputError(f"cell ({design}, {case}): the comparison has none; it has other names")
        return self._by_name[design, case]

    def of(self, design: RoleDesign) -> list[DesignCell]:
        """Return a design's cells, in the order of the works."""
        return [cell for cell in self.cells if cell.design is design]

    @cached_property
    def bounds(self) -> dict[str, PageBound]:
        """By design: how many upper-level pages one gfn can have."""
        return {design.name: page_bound(design) for design in self.designs}

    def apart(self, design: RoleDesign) -> TellingApart:
        """Return which of the design's fields told pages apart, over all works."""
        none = TellingApart(0, {}, {})
        return reduce(add, (cell.measures.apart for cell in self.of(design)), none)

    def idle_fields(self, design: RoleDesign) -> list[str]:
        """Return the design's fields that never told two pages apart by themselves."""
        alone = self.apart(design).alone
        return [name for name in design.layout.shift if name not in alone]

    def records(self) -> list[dict[str, Any]]:
        """Return every cell as JSON holds it.

        Keys: ``design`` and ``design_name``, ``design_id``, ``case``, ``verdict``,
        ``first_wrong`` (null, or ``op``, ``text``, ``gva``, ``expected``,
        ``reached``, ``seen``, ``wanted``), ``in_its_time``, ``as_default``,
        ``base_bits``, ``spare_bits``, those of
        :class:`~mmulab.lab.designs.measures.Measures`, of
        :class:`~mmulab.lab.designs.page_bound.PageBound` (``possible_pages``,
        ``possible_bits``, ``raw_bits``, ``fits_write_track``; ``possible_missing``
        says why one has no bound, null if it has) and ``collision``.
        """
        bounds = {
            name: {
                "possible_pages": bound.possible,
                "possible_bits": round(bound.bits, 2) if bound.possible else None,
                "raw_bits": bound.raw_bits,
                "fits_write_track": bound.fits,
                "possible_missing": bound.missing or None,
            }
            for name, bound in self.bounds.items()
        }
        return [cell.record() | bounds[cell.design.name] for cell in self.cells]

    def __repr__(self) -> str:
        wrong = sum(cell.first_wrong is not None for cell in self.cells)
        return f"<Comparison: {len(self.designs)} designs, {len(self.works)} works, {wrong} cells wrong>"

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{escape(d.id)} {escape(d.name)}</th>' for d in self.designs)
        body = "".join(self._row_html(case) for case in self.works)
        return f'<table><thead><tr><th scope="col">case</th>{head}</tr></thead><tbody>{body}</tbody></table>'

    def _row_html(self, case: Case) -> str:
        found = [self._by_name.get((design.name, case.name)) for design in self.designs]
        return f'<tr><th scope="row">{escape(case.name)}</th>{"".join(map(_cell_html, found))}</tr>'


def _against_the_coarsest(designs: Sequence[RoleDesign], cells: Sequence[DesignCell]) -> Iterator[DesignCell]:
    """Measure each cell against the coarsest design that is right on all works.

    Per work alone the coarsest would often be a design that is wrong elsewhere,
    and shares there what it must not.
    """
    wrong = {cell.design.name for cell in cells if cell.first_wrong is not None and not cell.as_default}
    sound = {design.name for design in designs} - wrong
    rows: dict[str, list[DesignCell]] = {}
    for cell in cells:
        rows.setdefault(cell.case.name, []).append(cell)
    for cell in cells:
        runs = {DEFAULT.name: cell.beside} if cell.beside is not None else {}
        for other in rows[cell.case.name]:
            if other.design.name in sound and other.first_wrong is None:
                runs[other.design.name] = other.observed
        name = min(runs, key=lambda found: runs[found].created, default="")
        yield replace(cell, measures=against(cell.measures, cell.observed, name, runs.get(name)))


def _cell_html(cell: DesignCell | None) -> str:
    if cell is None:
        return "<td>not run</td>"
    pages = f"{cell.measures.shadow_pages} pages"
    if cell.first_wrong is None:
        return f"<td>{pages}</td>"
    time = "" if cell.in_its_time else " (not of its time)"
    return (
        f'<td style="background: #fbd9c6" title="{escape(str(cell.first_wrong))}">'
        f"<b>wrong at op {cell.first_wrong.op}</b>{time}, {pages}</td>"
    )


class _Run(NamedTuple):
    """What is kept of a run: the machine is not, for there are many."""

    design: RoleDesign
    wrong: WrongAccess | None
    observed: Observed


def compare(
    designs: Sequence[RoleDesign | str],
    works: Sequence[Case],
    *,
    kernel: Kernel | None = None,
    jobs: Jobs = 1,
    progress: Callable[[Sequence[DesignCell]], object] | None = None,
) -> Comparison:
    """Run each design on each piece of work.

    Parameters
    ----------
    designs : sequence of RoleDesign or str
        Designs, or names or ids of some. Their names must differ.
    works : sequence of Case
        See :func:`mmulab.lab.cases.works.find_works`.
    kernel : Kernel, optional
        Instead of each work's own; the default design that runs beside has the
        derivation and the roots of every kernel so far, ``parity`` and ``special``.
    jobs : int or Workers
        Processes, or others (:mod:`mmulab.pool`). A design that no other process could
        import, from a notebook's cell, keeps all in this one.
    progress : callable, optional
        Gets the cells of each piece of work when it is done.

    Raises
    ------
    InputError
        A design, derivation or recording is unknown or cannot be read, or two
        designs have one name, or one has none.
    """
    chosen = [design_of(design) for design in designs]
    cells: list[DesignCell] = []
    for row in compare_each(chosen, works, kernel=kernel, jobs=jobs):
        cells += row
        if progress is not None:
            progress(row)
    return Comparison(chosen, works, cells)


def compare_each(
    designs: Sequence[RoleDesign],
    works: Sequence[Case],
    *,
    kernel: Kernel | None = None,
    jobs: Jobs = 1,
) -> Generator[list[DesignCell], None, None]:
    """Yield the cells of each piece of work as soon as it is done; else as :func:`compare`."""
    _check_names(designs)
    here = any(type(design).__module__ == "__main__" for design in designs)
    if jobs == 1 or here:
        for case in works:
            yield _cells(case, designs, kernel)
        return
    work = [_Work(case, designs, kernel) for case in works]
    with closing(pool.each(_work, work, jobs)) as rows:
        for row in rows:
            yield _with_own_designs(row, designs)


class _Work(NamedTuple):
    """What a worker gets."""

    case: Case
    designs: Sequence[RoleDesign]
    kernel: Kernel | None


def _work(work: _Work) -> list[DesignCell]:
    return _cells(*work)


def _with_own_designs(cells: list[DesignCell], designs: Sequence[RoleDesign]) -> list[DesignCell]:
    """Give cells that came from another process this one's designs, in place of copies."""
    return [replace(cell, design=design) for cell, design in zip(cells, designs, strict=True)]


def _check_names(designs: Sequence[RoleDesign]) -> None:
    for name, number in Counter(design.name for design in designs).items():
        if not name:
            raise InputError("a role design has no name; give its class the attribute name")
        if number > 1:
            raise InputError(f"role design {name!r} is there {number} times; give each a name of its own")


def _cells(case: Case, designs: Sequence[RoleDesign], kernel: Kernel | None) -> list[DesignCell]:
    """Run all designs, and the default one beside, on a piece of work."""
    run, needs = _runner(case)
    rooted = None if kernel is None else kernel.with_(derivation=parity)
    plain = None if rooted is None else rooted.with_(root_strategy=special)
    default = run(DEFAULT, plain)
    same = plain == kernel
    runs = [default if same and design is DEFAULT else run(design, kernel) for design in designs]

    @cache
    def reference() -> _Run:
        return default if plain == rooted else run(_OTHER_ROOTS, rooted)

    def again(design: RoleDesign) -> WrongAccess | None:
        return run(design, kernel).wrong

    return [_cell(case, found, default, needs, reference, again) for found in runs]


def _cell(
    case: Case,
    run: _Run,
    default: _Run,
    needs: frozenset[str],
    reference: Callable[[], _Run],
    again: Callable[[RoleDesign], WrongAccess | None],
) -> DesignCell:
    wrong, shared = run.wrong, None
    as_default = wrong == default.wrong
    if wrong is not None and not as_default:
        beside = reference()
        found = list(collisions(run.observed.lookups, beside.design, beside.observed.lookups, wrong.op))
        shared = blamed(run.design, wrong.op, found, again)
    base = default.observed if default.wrong is None else None
    measures = measure(run.design, run.observed, DEFAULT.name if base else "", base)
    era = in_its_time(run.design, needs)
    return DesignCell(run.design, case, wrong, measures, shared, era, as_default, run.observed, base)


def _runner(case: Case) -> tuple[Callable[[RoleDesign, Kernel | None], _Run], frozenset[str]]:
    """Return a function that runs a design on a piece of work, which is read once, and what it needs."""
    if case.kind is CaseKind.BOOT:
        stream = read_boot(case)

        def replay(design: RoleDesign, kernel: Kernel | None) -> _Run:
            found = run_stream(stream, design, kernel=kernel, records=case.records)
            return _Run(design, found.wrong, found.observed)

        return replay, modes_of_stream(stream)
    work = read_case(case)

    def run(design: RoleDesign, kernel: Kernel | None) -> _Run:
        found = run_work(work, design, kernel=kernel)
        return _Run(design, found.wrong, observe(found))

    return run, modes_needed(scenario_of(work))


def observe(run: CaseRun) -> Observed:
    """Return what is measured of a run."""
    lookups = [
        Lookup(result.index, event.gfn, event.role, event.created)
        for result in run.results
        for event in result.events
        if isinstance(event, kvm_mmu_get_page)
    ]
    return Observed.of(lookups, Counter(map(type, run.events)), run.machine.stats)
