"""What the ready sweeps in ``notebooks/sweeps`` run: functions that return results tables.

Each is one run of an experiment file (:mod:`mmulab.report.experiment`); the file's grid names the
designs, the policies, the boots and the seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmulab.errors import InputError
from mmulab.kvm.kernels import find_kernel
from mmulab.kvm.roles.find import find_design
from mmulab.kvm.sync.find import find_sync
from mmulab.lab.cases.run import results_of, runner_of
from mmulab.lab.cases.works import find_works
from mmulab.lab.designs.compare import compare
from mmulab.lab.sync.compare import compare_syncs
from mmulab.report import provenance
from mmulab.report.results import Table
from mmulab.scenario.text import read_scenario

__all__ = ["design_on_cases", "interval", "policy_on_boot", "scenario_counts", "seed_study"]

COUNTS = ("shadow_pages", "found", "page_faults", "syncs", "zaps")
"""What the seed study has intervals of; see :class:`mmulab.lab.designs.measures.Measures`."""
RESAMPLES = 10_000
"""Samples drawn again for an interval: with so many its ends move by less than the numbers shown."""


def design_on_cases(design: str, cases: str = "all", seed: int = 0) -> Table:
    """Run a role design on cases.

    Parameters
    ----------
    design : str
        Name or id.
    cases : str
        As ``mmulab compare --cases`` takes them.
    seed : int
        Of the workloads among them.

    Returns
    -------
    Table
        ``verdicts``: a row a case, what was expected and reached where it is wrong.
    """
    works = find_works((name.strip() for name in cases.split(",")), seed=seed)
    rows = []
    for cell in compare([find_design(design)], works).cells:
        wrong, measures = cell.first_wrong, cell.measures
        rows.append(
            [
                cell.design.name,
                cell.case.name,
                cell.verdict,
                cell.in_its_time,
                wrong and wrong.op,
                wrong and wrong.text,
                *(getattr(measures, name) for name in COUNTS),
            ]
        )
    columns = ["design", "case", "verdict", "in_its_time", "wrong_op", "wrong_text", *COUNTS]
    return Table("verdicts", columns, rows, "Each case under the design, judged by the architecture.")


def policy_on_boot(sync: str, boot: str, limit: int) -> Table:
    """Replay the first `limit` records of a recorded boot under a sync policy.

    Returns
    -------
    Table
        ``policies``: one row; what was wrong, and KVM's counts.
    """
    works = find_works([f"stream/{boot}"], records=limit)
    rows = []
    for cell in compare_syncs([find_sync(sync)], works):
        counts = [cell.page_faults, cell.invlpgs, cell.flushes, cell.pages_made, cell.pages_zapped]
        wrong = cell.wrong and cell.wrong.text
        rows.append([str(cell.policy), boot, cell.verdict, wrong, cell.judged, cell.ops, *counts])
    counted = ["page_faults", "invlpgs", "flushes", "pages_made", "pages_zapped"]
    columns = ["sync", "boot", "verdict", "wrong_text", "agree", "translations", *counted]
    return Table("policies", columns, rows, "A boot under the policy, against the recorded addresses.")


def scenario_counts(scenario: str, design: str = "", kernel: str = "", seed: int = 0) -> Table:
    """Run a scenario's file on the engine alone, judged by nobody, and count what it did.

    Parameters
    ----------
    scenario : str
        As the experiment's ``inputs`` name it: inside the checkout relative to it, else from the root.
    design, kernel : str
        As ``mmulab run`` takes them; by default the scenario's own.
    seed : int
        Of nothing: a run has no chance in it. It tells repetitions apart.

    Returns
    -------
    Table
        ``counts``: how often each outcome, event and statistic came.
    """
    told = read_scenario(provenance.path_of(scenario))
    chosen = find_kernel(kernel) if kernel else None
    results, failure = results_of(runner_of(told, design or None, kernel=chosen))
    counts: Counter[tuple[str, str]] = Counter()
    for result in results:
        counts["outcome", str(result.outcome.kind)] += 1
        counts.update(("event", type(event).__name__) for event in result.events)
        counts.update({("statistic", name): change for name, change in result.stats.items()})
    if failure is not None:
        counts["outcome", failure] += 1
    rows = [[scenario, seed, what, name, count] for (what, name), count in sorted(counts.items())]
    return Table("counts", ["scenario", "seed", "what", "name", "count"], rows, "What the run did.")


def seed_study(design: str, work: str, draws: int, seed: int = 0) -> tuple[Table, Table]:
    """Run a workload drawn anew `draws` times, and say how far its counts depend on the draw.

    Parameters
    ----------
    design : str
    work : str
        ``NAME/MODE/HOST``, as ``mmulab compare --cases workload/NAME/MODE/HOST``.
    draws : int
        At least 2. Draw n has the seed ``seed + n``.
    seed : int

    Returns
    -------
    tuple of Table
        ``draws``: a row a draw; ``intervals``: mean of each count with its 95 per cent interval.
    """
    if draws < 2:
        raise InputError(f"parameter 'draws': {draws} is too few for an interval; give at least 2")
    rows = []
    for number in range(draws):
        cells = compare([find_design(design)], find_works([f"workload/{work}"], seed=seed + number)).cells
        for cell in cells:
            counts = (getattr(cell.measures, name) for name in COUNTS)
            rows.append([design, cell.case.name, seed + number, cell.verdict, *counts])
    first = len(rows[0]) - len(COUNTS)
    found = []
    for column, name in enumerate(COUNTS, first):
        values = [row[column] for row in rows]
        low, high = interval(values, seed)
        found.append([design, work, name, len(values), float(np.mean(values)), low, high])
    return (
        Table("draws", ["design", "case", "seed", "verdict", *COUNTS], rows, "Each draw of the workload."),
        Table(
            "intervals",
            ["design", "work", "count", "draws", "mean", "low", "high"],
            found,
            "Means over the draws; 95 per cent intervals by the percentile bootstrap.",
        ),
    )


def interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Return the 95 per cent confidence interval of the mean of `values` by the percentile bootstrap.

    Parameters
    ----------
    values : sequence of float
    seed : int
        Of the samples drawn again.

    Notes
    -----
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3
    """
    drawn = np.random.default_rng(seed).choice(np.asarray(values, float), (RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
