"""A random trial's finding in its shortest form, as a scenario that names its kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmulab.check.finding import Finding, MakeWatcher
from mmulab.check.fuzz import Found
from mmulab.check.shrink import shrink
from mmulab.check.trial import make_bench
from mmulab.errors import InputError
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import find_kernel
from mmulab.scenario.scenario import Scenario


def shrink_found(
    found: Found, kernel: Kernel, watchers: Sequence[MakeWatcher], right: Kernel | None = None
) -> Scenario:
    """Return the shortest scenario with the same kind and name of finding, which `right` has not.

    Its header names the kernel, if that can be had by a name.
    """

    def still(scenario: Scenario) -> bool:
        finding = make_bench(scenario, kernel, watchers).run(()).finding
        if finding is None or not _same(finding, found.finding):
            return False
        if right is None:
            return True
        other = make_bench(scenario, right, watchers).run(()).finding
        return other is None or other.op > finding.op

    scenario = shrink(found.scenario, still)
    return replace(scenario, header=replace(scenario.header, kernel=_name(kernel, scenario)))


def _name(kernel: Kernel, scenario: Scenario) -> str:
    """Return the name by which a scenario finds the kernel; one that has none stays the header's."""
    try:
        return kernel.name if find_kernel(kernel.name) == kernel else scenario.header.kernel
    except InputError:
        return scenario.header.kernel


def _same(one: Finding, other: Finding) -> bool:
    return (one.kind, one.name) == (other.kind, other.name)
