"""The measurements of the eager-splitting series as tables, in counts: same rows, same columns, no seconds.

"off" and "on" are ``eager_page_split``. A pass that the series timed is here its
faults, and dirty logging that it turned on or cleared is the huge pages that were split for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmulab.errors import InputError, find_named, quoted
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.zap import KVM_MIN_FREE_MMU_PAGES
from mmulab.lab.costs import MANY_VCPUS, TWO_VCPUS, CostModel, Estimate, estimate
from mmulab.lab.eager_split.passes import CAUSES, SETUPS, Phase, dirty_log_perf, phase
from mmulab.machine.machine import Machine
from mmulab.report.results import Table

__all__ = [
    "Runs",
    "causes",
    "costs",
    "first_pass",
    "first_version",
    "fourth_version",
    "limits",
    "parse_numbers",
    "parse_setups",
    "ratio",
    "recovery",
    "setups_table",
    "share_series",
]

OFF_ON = (False, True)
_NAMES = ("huge write-protected", "lower level missing", "4K write-protected")
"""The causes in the series' words."""


@dataclass
class Runs:
    """Runs of :func:`~mmulab.lab.eager_split.passes.dirty_log_perf`, each made once.

    Attributes
    ----------
    passes, huge_pages : int
        Of every run.
    kernel : Kernel
    """

    passes: int = 2
    huge_pages: int = 1
    kernel: Kernel = LINUX_6_1
    _made: dict[tuple[str, bool, int, int, bool], list[Phase]] = field(default_factory=dict, repr=False)

    def run(
        self, setup: str, *, eager: bool, percent: int = 100, vcpus: int = 1, init_all_set: bool = False
    ) -> list[Phase]:
        """Return the phases of one run."""
        key = (setup, eager, percent, vcpus, init_all_set)
        if key not in self._made:
            self._made[key] = dirty_log_perf(
                setup,
                eager=eager,
                percent=percent,
                passes=self.passes,
                vcpus=vcpus,
                huge_pages=self.huge_pages,
                init_all_set=init_all_set,
                kernel=self.kernel,
            )
        return self._made[key]

    def both(self, setup: str, name: str, **run: Any) -> tuple[Phase, Phase]:
        """Return a phase without eager splitting and with it."""
        off, on = (phase(self.run(setup, eager=eager, **run), name) for eager in OFF_ON)
        return off, on


def first_version(runs: Runs, vcpus: Sequence[int]) -> Table:
    """Return the table of the first version's cover letter: EPT without the TDP MMU, and ``ept=N``."""
    rows = []
    for count in vcpus:
        row: list[int] = [count]
        row += [found.faults for found in runs.both("legacy_pml", "pass 1", vcpus=count)]
        row += [found.splits for found in runs.both("legacy_pml", "enable", vcpus=count)]
        for name in ("clear 1", "clear 2"):
            both = runs.both("legacy_pml", name, vcpus=count, init_all_set=True)
            row += [found.splits for found in both]
        row += [found.faults for found in runs.both("shadow", "pass 1", vcpus=count)]
        rows.append(row)
    measures = ("iter-1 dirty", "enabling", "clear iter 1", "clear iter 2", "ept=N iter-1 dirty")
    return Table(
        "first_version",
        ["vCPUs", *(f"{name}, {how}" for name in measures for how in ("off", "on"))],
        rows,
        "All pages written, without the TDP MMU (20220203010051.2813563-1). Dirty: faults; else: splits.",
    )


def ratio(off: Phase, on: Phase) -> float | None:
    """Return the faults with eager splitting over those without; None if there were none."""
    return round(on.faults / off.faults, 3) if off.faults else None


def fourth_version(runs: Runs, vcpus: Sequence[int], percents: Sequence[int]) -> Table:
    """Return the table of the fourth version's cover letter: L2, with the TDP MMU."""
    rows = []
    for percent in percents:
        for count in vcpus:
            run = {"vcpus": count, "percent": percent}
            dirty = runs.both("nested", "pass 1", **run)
            enabling = runs.both("nested", "enable", **run)
            clear = runs.both("nested", "clear 1", init_all_set=True, **run)
            faults, splits, cleared = (
                [found.faults for found in dirty],
                [found.splits for found in enabling],
                [found.splits for found in clear],
            )
            rows.append([percent, count, *faults, ratio(*dirty), *splits, *cleared])
    return Table(
        "fourth_version",
        [
            "written %",
            "vCPUs",
            "iter-1 dirty, off",
            "iter-1 dirty, on",
            "on / off",
            "enabling, off",
            "enabling, on",
            "clear iter 1, off",
            "clear iter 1, on",
        ],
        rows,
        "L2 (20220422210546.458943-1). Dirty: faults of the first pass; enabling and clear: splits.",
    )


def causes(runs: Runs, setups: Sequence[str], percents: Sequence[int]) -> Table:
    """Return each pass with its faults by cause."""
    rows = []
    wanted = [(setup, percent, eager) for setup in setups for percent in percents for eager in OFF_ON]
    for setup, percent, eager in wanted:
        phases = runs.run(setup, eager=eager, percent=percent)
        for number in range(1, runs.passes + 1):
            found, got = phase(phases, f"pass {number}"), phase(phases, f"get {number}")
            by_cause = [getattr(found, cause) for cause in CAUSES]
            counts = [found.accesses, *by_cause, found.faults, found.fast, got.dirty]
            rows.append([setup, percent, _on(eager), number, *counts])
    columns = ["tables", "written %", "eager", "pass", "pages touched"]
    columns += [*_NAMES, "faults", "fast", "dirty"]
    return Table("causes", columns, rows, "Faults of each pass by cause; fast: without the MMU lock.")


def _on(eager: bool) -> str:
    return "on" if eager else "off"


def recovery(runs: Runs, setups: Sequence[str], percent: int) -> Table:
    """Return what is mapped large before, while and after dirty pages are logged."""
    rows = []
    for setup in setups:
        for eager in OFF_ON:
            phases = runs.run(setup, eager=eager, percent=percent)
            stages = [phase(phases, name) for name in ("populate", f"pass {runs.passes}", "disable", "after")]
            mapped = [count for found in stages for count in (found.pages_2m, found.pages_4k)]
            rows.append([setup, _on(eager), *mapped, stages[-1].faults])
    stages_named = ("before", "logged", "logging off", "after a pass")
    return Table(
        "recovery",
        ["tables", "eager"]
        + [f"{name}, {size}" for name in stages_named for size in ("2M", "4K")]
        + ["faults of the pass"],
        rows,
        f"Mapped pages by size, {percent} % written: kvm_mmu_zap_collapsible_sptes drops the small ones.",
    )


def _shortages(pages: int) -> dict[str, Callable[[Machine], object]]:
    def no_shadow_pages(machine: Machine) -> None:
        machine.kvm.n_max_mmu_pages = machine.kvm.n_used_mmu_pages + KVM_MIN_FREE_MMU_PAGES + pages

    def no_memory(machine: Machine) -> None:
        machine.kvm.split_tables_left = pages

    def no_time(machine: Machine) -> None:
        machine.kvm.need_resched = True

    return {
        "nothing": lambda machine: None,
        f"shadow pages: {pages} to spare (-ENOSPC)": no_shadow_pages,
        f"the host's memory: {pages} pages (-ENOMEM)": no_memory,
        "the CPU, once (-EAGAIN)": no_time,
    }


def limits(runs: Runs, percent: int, huge_pages: int = 6, spare: int = 2) -> Table:
    """Return what L2's splits come to where something is lacking, and what the first pass pays for it."""
    rows = []
    for what, shorten in _shortages(spare).items():
        phases = dirty_log_perf(
            "nested",
            eager=True,
            percent=percent,
            passes=1,
            huge_pages=huge_pages,
            kernel=runs.kernel,
            shorten=shorten,
        )
        first = phase(phases, "pass 1")
        enabled = phase(phases, "enable")
        rows.append([what, enabled.splits, enabled.refused, *(getattr(first, cause) for cause in CAUSES)])
    return Table(
        "limits",
        ["lacking", "splits", "refused", *_NAMES],
        rows,
        f"L2 with {huge_pages} huge pages, {percent} % written. What is refused is split by a fault later.",
    )


def _estimates(runs: Runs, setup: str, percent: int, model: CostModel) -> list[Estimate]:
    """Return the estimates of a migration's first pass without eager splitting and with it."""
    found = []
    for eager in OFF_ON:
        total: dict[str, int] = {}
        for name in ("enable", "pass 1"):
            for count, number in phase(runs.run(setup, eager=eager, percent=percent), name).priced().items():
                total[count] = total.get(count, 0) + number
        found.append(estimate(total, model))
    return found


def costs(
    runs: Runs,
    setups: Sequence[str],
    percents: Sequence[int],
    models: dict[str, CostModel] | None = None,
) -> Table:
    """Return what turning logging on and the first pass may cost, without eager splitting and with it."""
    rows = []
    for name, model in (models or {"2 vCPUs": TWO_VCPUS, "64 vCPUs": MANY_VCPUS}).items():
        for setup in setups:
            for percent in percents:
                off, on = _estimates(runs, setup, percent, model)
                better = "eager" if on.default < off.default else "lazy"
                verdict = "overlap" if off.overlaps(on) else better
                rows.append([name, setup, percent, *_ends(off), *_ends(on), verdict])
    return Table(
        "costs",
        ["contention", "tables", "written %"]
        + [f"{how}, {end}" for how in ("off", "on") for end in ("low", "default", "high")]
        + ["cheaper"],
        rows,
        "Microseconds, estimated, of one vCPU: turning dirty logging on, and the first pass.",
    )


def _ends(found: Estimate) -> list[int]:
    return [round(found.low), round(found.default), round(found.high)]


def setups_table() -> Table:
    """Return the hosts and whose splitting they have."""
    rows = [
        [setup.name, setup.summary, " ".join(f"{k}={v}" for k, v in setup.host.items()), setup.eager_split]
        for setup in SETUPS.values()
    ]
    return Table("setups", ["tables", "what", "host", "splits eagerly"], rows, "The hosts that are measured.")


def share_series(runs: Runs, setup: str, percents: Sequence[int]) -> dict[str, list[int]]:
    """Return the faults of the first pass for each share, without eager splitting and with it."""
    return {
        _on(eager): [
            phase(runs.run(setup, eager=eager, percent=percent), "pass 1").faults for percent in percents
        ]
        for eager in OFF_ON
    }


def first_pass(
    runs: Runs, setups: Sequence[str], percents: Sequence[int]
) -> tuple[list[str], dict[str, list[int]]]:
    """Return a label for each run, and by cause the faults of its first pass."""
    wanted = [(setup, percent, eager) for setup in setups for percent in percents for eager in OFF_ON]
    found = [
        phase(runs.run(setup, eager=eager, percent=percent), "pass 1") for setup, percent, eager in wanted
    ]
    labels = [f"{setup}, {percent} % written, {_on(eager)}" for setup, percent, eager in wanted]
    measures = {
        name: [getattr(one, cause) for one in found] for name, cause in zip(_NAMES, CAUSES, strict=True)
    }
    return labels, measures


def first_pass_said(runs: Runs, setups: Sequence[str], percents: Sequence[int]) -> str:
    """Return in Markdown, a line a setup, how often the first pass faults, eager splitting off and on."""
    lines = []
    for setup in setups:
        said = []
        for percent in percents:
            off, on = runs.both(setup, "pass 1", percent=percent)
            said.append(f"{off.faults:,} and {on.faults:,} with {percent} % written")
        lines.append(f"* `{setup}`, off and on: {'; '.join(said)}.")
    return "\n".join(lines)


def parse_numbers(name: str, given: str | int, low: int, high: int) -> list[int]:
    """Return the numbers of a list, ``100,50,5``, or the only one.

    Raises
    ------
    InputError
        Something is no number, out of range or there twice.
    """
    text = str(given)
    words = [word.strip() for word in text.split(",")]
    found = [int(word) for word in words if word.isdecimal()]
    if len(found) < len(words) or not all(low <= number <= high for number in found):
        raise InputError(f"parameter '{name}' is '{quoted(text)}', expected numbers of {low} to {high}")
    if len(set(found)) < len(found):
        raise InputError(f"parameter '{name}' is '{quoted(text)}', expected each number once")
    return found


def parse_setups(text: str) -> list[str]:
    """Return the names of a list of setups; raises InputError if there is none of such a name."""
    return [find_named(SETUPS, word.strip(), "setup", "setups").name for word in text.split(",")]
