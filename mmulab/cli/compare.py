"""``mmulab compare``: designs on the same work, who is wrong where, what each costs; or kernels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mmulab import files
from mmulab.cli import signals
from mmulab.cli.complete import complete_case_list
from mmulab.cli.drift import compare_kernels
from mmulab.cli.options import SCHEDULER, KernelChoice, rule_options, workers
from mmulab.cli.path import PATH
from mmulab.cli.progress import progress
from mmulab.cli.syncs import compare_policies
from mmulab.errors import InputError
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.design_check import WORD_BITS
from mmulab.kvm.roles.find import find_design
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.table import Case, read_case, scenario_of, totals
from mmulab.lab.cases.works import ALL, find_works
from mmulab.lab.designs.compare import Comparison, DesignCell, compare_each

_TOTALS = ("shadow_pages", "found", "duplicated", "sharing_lost", "page_faults", "syncs", "zaps")


@click.command()
@click.option(
    "--designs", metavar="NAME,..", help="Designs by name or id, or module:Class; D0 to D8 if left out."
)
@click.option("--kernels", metavar="NAME,..", help="Compare kernels instead: the first with each other one.")
@click.option("--syncs", metavar="NAME,..", help="Compare sync policies instead.")
@click.option(
    "--cases",
    metavar="NAME,..",
    default=ALL,
    show_default=True,
    shell_complete=complete_case_list,
    help="Cases, recordings, boots, FILE.mmu, FILE.jsonl.xz.",
)
@rule_options
@click.option("--limit", type=click.IntRange(1), help="Records of a boot; all if left out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the workloads.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@SCHEDULER
@click.option("--details", is_flag=True, help="Also which fields tell pages apart, and each cell's measures.")
@click.option("--wrong-only", is_flag=True, help="Only rows of cases that some column is wrong on.")
@click.option(
    "--picture", metavar="OUT.svg", type=PATH, help="Draw the pages that two designs make in one case."
)
@click.option("--json", "as_json", is_flag=True, help="A JSON list with one object a cell.")
def compare(
    designs: str | None,
    kernels: str | None,
    syncs: str | None,
    cases: str,
    choice: KernelChoice,
    limit: int | None,
    seed: int,
    jobs: int,
    scheduler: str | None,
    details: bool,
    wrong_only: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Run each design on each case and show which are wrong, with the access, and what each costs.

    A case is one of 'mmulab cases', or a recording of a real kernel (conformance/6.1.192/sh/mode-switch),
    judged by what the real guest saw, or a boot (stream/boot-686-nonpae), judged by the recorded
    addresses, or a workload in a paging mode on a host (workload/fork-exec/64/shadow), judged by the
    guest's tables, or a file of your own: FILE.mmu, a scenario, judged by the guest's tables, or
    FILE.jsonl.xz, a recording; '*' in a name stands for anything. Of a wrong cell the page is shown that
    was shared, and the bit that would have told it apart. The exit code does not depend on the verdicts.
    In JSON a design goes by the name by which it was asked for; design_name and design_id are its own.

    With --kernels 6.1,6.12 each case runs on both, with each change between them alone and with all
    but it: page faults, flushes, syncs, zaps and emulations more or fewer, and where it first shows.

    With --syncs unsync_children,write_protect,oos_2008 each case runs under each policy: who is wrong
    where, emulated writes, syncs, CR3 writes that synced nothing, pages that could not go out of sync and
    why, memory. An access of a recording is right as recorded, or if the architecture allows it by
    what the guest's tables have held since it last flushed.
    """
    by = workers(jobs, scheduler)
    if picture is not None and (kernels is not None or syncs is not None or choice.given):
        raise InputError("--picture: draws two designs on 6.1; leave --kernels, --syncs and the like out")
    if kernels is not None:
        if designs is not None or syncs is not None or choice.given or wrong_only:
            raise InputError("--kernels: compares kernels alone; leave --designs, --kernel and the like out")
        works = _works(cases, limit, seed)
        compare_kernels(kernels, works, jobs=by, details=details, as_json=as_json)
        return
    if syncs is not None:
        if designs is not None or choice.sync is not None:
            raise InputError("--syncs: compares policies under one design; leave --designs and --sync out")
        works = _works(cases, limit, seed)
        kernel = choice.over(LINUX_6_1) if choice.given else None
        how = {"details": details, "wrong_only": wrong_only, "as_json": as_json}
        compare_policies(syncs, works, kernel=kernel, jobs=by, **how)
        return
    names = list(DESIGNS) if designs is None else [name.strip() for name in designs.split(",")]
    chosen = [find_design(name) for name in names]
    works = _works(cases, limit, seed)
    kernel = choice.over(LINUX_6_1) if choice.given else None
    if picture is not None:
        _draw(chosen, works, picture)
    cells: list[DesignCell] = []

    def show() -> None:
        found = _comparison(chosen, works, cells)
        _show(found, names, details=details, wrong_only=wrong_only, as_json=as_json)

    with signals.shown(show):
        for row in progress(compare_each(chosen, works, kernel=kernel, jobs=by), len(works), "case"):
            cells += row


def _draw(designs: Sequence[RoleDesign], works: Sequence[Case], out: Path) -> None:
    """Draw what one design shares and the other makes twice."""
    if len(designs) != 2 or len(works) != 1 or works[0].kind is CaseKind.BOOT:
        raise InputError("--picture: draws two designs in one case; name them with --designs and --cases")
    from mmulab.widgets.page_graph import page_graph, sharing_graph  # imports notebook packages

    scenario, (case,) = scenario_of(read_case(works[0])), works
    one, other = (page_graph(scenario, design) for design in designs)
    names = " and ".join(design.id or design.name for design in designs)
    files.write_text(out, f"{sharing_graph(one, other, title=f'{case.name} under {names}')}\n")


def _works(names: str, limit: int | None, seed: int) -> list[Case]:
    return find_works([name.strip() for name in names.split(",")], records=limit, seed=seed)


def _comparison(
    designs: Sequence[RoleDesign], works: Sequence[Case], cells: Sequence[DesignCell]
) -> Comparison:
    finished = {cell.case.name for cell in cells}
    return Comparison(designs, [case for case in works if case.name in finished], cells)


def _show(found: Comparison, asked: Sequence[str], *, details: bool, wrong_only: bool, as_json: bool) -> None:
    wrong = {cell.case.name for cell in found.cells if cell.first_wrong is not None}
    shown = [case for case in found.works if not wrong_only or case.name in wrong]
    if as_json:
        called = {design.name: name for design, name in zip(found.designs, asked, strict=True)}
        records = [{**record, "design": called[record["design"]]} for record in found.records()]
        names = {case.name for case in shown}
        click.echo(json.dumps([record for record in records if record["case"] in names], indent=1))
        return
    for line in [*_matrix(found, shown), "", *_costs(found), *(_fields(found) if details else ())]:
        click.echo(line)
    for cell in found.cells:
        if cell.first_wrong is not None and not cell.as_default:
            for line in ["", *_wrong(cell)]:
                click.echo(line)
    if details:
        for cell in found.cells:
            click.echo(_measures(cell))


def _matrix(found: Comparison, shown: Sequence[Case]) -> Iterator[str]:
    width = max([len("case"), *(len(case.name) for case in shown)])
    columns = [max(len(design.id or design.name), 9) for design in found.designs]
    heads = [design.id or design.name for design in found.designs]
    yield _row("case", width, heads, columns)
    for case in shown:
        cells = [found.cell(design.name, case.name) for design in found.designs]
        yield _row(case.name, width, [_verdict(cell) for cell in cells], columns)
    yield "ok; the op of the first wrong access; (..): wrong, but the case lies after the design's time;"
    yield "kernel: wrong, but as the default design is: Linux itself does so"
    yield totals(cell.verdict for cell in found.cells)


def _row(name: str, width: int, cells: Sequence[str], columns: Sequence[int]) -> str:
    return f"{name:{width}}  " + " ".join(f"{c:>{w}}" for c, w in zip(cells, columns, strict=True))


def _verdict(cell: DesignCell) -> str:
    if cell.first_wrong is None:
        return "ok"
    if cell.as_default:
        return "kernel"
    op = f"op {cell.first_wrong.op}"
    return op if cell.in_its_time else f"({op})"


def _costs(found: Comparison) -> Iterator[str]:
    """Yield one line a design: its bits, the bound on its pages, sums over all works."""
    heads = ["correct", "bits", "spare", "possible", *(name.replace("_", " ") for name in _TOTALS)]
    columns = [max(len(head), 9) for head in heads]
    if not found.cells:
        return
    names = [f"{design.id} {design.name}".strip() for design in found.designs]
    width = max(map(len, names))
    yield _row("design", width, heads, columns)
    for name, design in zip(names, found.designs, strict=True):
        cells, bound = found.of(design), found.bounds[design.name]
        used = design.layout.used_bits
        right = sum(cell.first_wrong is None for cell in cells)
        sums = [str(sum(getattr(cell.measures, total) for cell in cells)) for total in _TOTALS]
        possible = "none" if bound.possible is None else f"{bound.possible}{'' if bound.fits else '!'}"
        bits = [f"{right}/{len(cells)}", str(used), str(WORD_BITS - used), possible]
        yield _row(name, width, [*bits, *sums], columns)
    for design in found.designs:
        if found.bounds[design.name].missing:
            yield f"possible: none of {design.name}: {found.bounds[design.name].missing}"
    yield "possible: upper-level pages with guest tables that contexts can give one gfn (a 16-bit counter);"
    yield "duplicated, sharing lost: pages more than the coarsest design that is right on all of these makes"


def _fields(found: Comparison) -> Iterator[str]:
    yield ""
    for design in found.designs:
        apart = found.apart(design)
        did = ", ".join(f"{name} {number}" for name, number in apart.alone.items()) or "none"
        yield f"{design.id} {design.name}: {apart.pairs} pairs of words of one gfn"
        yield f"    alone told apart: {did}"
        yield f"    never alone:      {', '.join(found.idle_fields(design))}"


def _wrong(cell: DesignCell) -> Iterator[str]:
    wrong, shared = cell.first_wrong, cell.collision
    assert wrong is not None
    when = "" if cell.in_its_time else ", which lies after its time"
    where = f"op {wrong.op} '{wrong.text}'" + ("" if wrong.gva is None else f" at gva {wrong.gva:#x}")
    yield f"{cell.design.id} {cell.design.name} on {cell.case.name}{when}: wrong in {where}"
    wanted = f"gpa {wrong.expected:#x}" if wrong.expected is not None else wrong.wanted or "no translation"
    reached = "" if wrong.reached is None else f"gpa {wrong.reached:#x}; "
    yield f"    expected: {wanted}"
    yield f"    reached:  {reached}{wrong.seen}"
    if shared is None:
        yield "    shared:   no page that a correct design looks up as another one"
        return
    yield (
        f"    shared:   gfn {shared.gfn:#x} under {shared.shared:#x}, made in op {shared.made_op}, "
        f"found again in op {shared.op}"
    )
    yield (
        f"    missing:  {', '.join(shared.differ)} ({shared.reference.name}'s words: {shared.made:#x} made, "
        f"{shared.wanted:#x} wanted)"
    )


def _measures(cell: DesignCell) -> str:
    measures = cell.measures
    sums = ", ".join(f"{name.replace('_', ' ')} {getattr(measures, name)}" for name in _TOTALS)
    return f"{cell.case.name} {cell.design.name}: {sums}; coarsest {measures.coarsest or 'none correct'}"
