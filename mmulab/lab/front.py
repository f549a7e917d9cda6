"""What ``import mmulab`` gives: a guest in a line, its run, designs compared on it.

>>> import mmulab
>>> guest = mmulab.guest("64").map(0x40000000, 0x100000).op("rd s 40000000")
>>> mmulab.run(guest)
<CaseRun under passthrough: 1 ops, 1 judged, 6 pages: right>
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.kvm.roles.design import RoleDesign
from mmulab.lab.cases import table
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.run import CaseRun, run_case
from mmulab.lab.cases.table import Case, read_case, run_work
from mmulab.lab.cases.works import find_works
from mmulab.lab.designs import compare as designs_compared
from mmulab.lab.designs.compare import Comparison
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.scenario import Scenario

__all__ = ["cases", "compare", "guest", "run"]

ROOT = 0x10000
"""Where :func:`guest` puts the root table."""

Work = Scenario | ScenarioBuilder | Case | str
"""What can be run: a scenario, a builder, a case, or what names one."""


def guest(mode: str = "64", **options: Any) -> ScenarioBuilder:
    """Begin a guest: its root table is there, pages and ops are to be added.

    Parameters
    ----------
    mode : {"np", "32", "pae", "64", "57"}
        Without paging, 32-bit, PAE, 4-level, 5-level.
    **options
        As :class:`~mmulab.scenario.builder.ScenarioBuilder` takes them:
        ``vendor="intel"``, ``host={"npt": 1}``, ``cpu={"smep": 0}``, ``vcpus=2``.

    Raises
    ------
    GrammarError
        There is no such mode or option value.

    Examples
    --------
    >>> guest("32").map(0x40000000, 0x100000).op("rd u 40000000")
    <ScenarioBuilder: 32 guest, CR3 0x10000, amd host, 1 ops>
    """
    builder = ScenarioBuilder(mode, **options)
    return builder if mode == "np" else builder.root(ROOT)


def run(
    work: Work, design: RoleDesign | str = "passthrough", *, kernel: Kernel | str | None = None
) -> CaseRun:
    """Run a guest, op by op, and judge each access by what the architecture allows.

    Parameters
    ----------
    work : Scenario, ScenarioBuilder, Case or str
        A string names a case, a recording or a workload, as ``mmulab run`` takes it.
    design : RoleDesign or str
        What a role word says and how: ``D7``, ``glevel``, ``file.py:Class``.
    kernel : Kernel or str, optional
        Instead of the scenario's own: ``6.12``, ``6.1+B13``.

    Raises
    ------
    InputError
        A name is unknown, an op is not modelled, or `work` is a boot, which has no scenario.
    """
    chosen = find_kernel(kernel) if isinstance(kernel, str) else kernel
    if isinstance(work, ScenarioBuilder):
        work = work.build()
    if isinstance(work, Scenario):
        return run_case(work, design, kernel=chosen)
    case = work if isinstance(work, Case) else _the_only(work)
    if case.kind is CaseKind.BOOT:
        raise InputError(f"{case.name} is a recorded boot; 'mmulab replay' runs it")
    return run_work(read_case(case), design, kernel=chosen)


def _the_only(name: str) -> Case:
    found = find_works([name])
    if len(found) > 1:
        raise InputError(f"case '{name}': {len(found)} have this name, expected one")
    return found[0]


def cases(*patterns: str) -> list[Case]:
    """Return the cases that are hard to run on real machines: those that `patterns` name, or all.

    >>> [case.name for case in cases("mixed-wp-*")]
    ['mixed-wp-32', 'mixed-wp-pae', 'mixed-wp-64']
    """
    return table.find_cases(patterns) if patterns else table.cases()


def compare(
    designs: Iterable[RoleDesign | str], works: Work | Iterable[Work], *, kernel: Kernel | str | None = None
) -> Comparison:
    """Run each design on each piece of work.

    Parameters
    ----------
    designs : iterable of RoleDesign or str
    works : Scenario, ScenarioBuilder, Case, str, or iterable of those
        A string may name many: ``mixed-*``.
    kernel : Kernel or str, optional

    Raises
    ------
    InputError
        A name is unknown, or two designs have one name.
    """
    chosen = find_kernel(kernel) if isinstance(kernel, str) else kernel
    several = [works] if isinstance(works, Work) else list(works)
    found = [case for number, work in enumerate(several) for case in _cases(work, number)]
    return designs_compared.compare(list(designs), found, kernel=chosen)


def _cases(work: Work, number: int) -> list[Case]:
    if isinstance(work, str):
        return find_works([work])
    if isinstance(work, Case):
        return [work]
    scenario = work.build() if isinstance(work, ScenarioBuilder) else work
    name = f"guest-{number}" if scenario.source == "<built>" else scenario.source
    return [Case(name, scenario.header.vendor, scenario.header.mode, scenario=lambda: scenario)]
