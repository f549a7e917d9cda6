"""The page that a recorded run found wrongly, told by a run under a correct design beside it."""

from __future__ import annotations

from mmulab.check.access import WrongAccess
from mmulab.check.failure import FAILURES
from mmulab.events import kvm_mmu_get_page
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.roles.derivation import parity
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.root_strategy import special
from mmulab.lab.cases.run import run_case
from mmulab.lab.designs.collision import collisions
from mmulab.lab.designs.measures import Lookup
from mmulab.lab.designs.missing import blamed
from mmulab.scenario.record import record_steps
from mmulab.scenario.scenario import Scenario
from mmulab.trace.recording import Recording

__all__ = ["mark_found_wrongly"]


def mark_found_wrongly(recording: Recording, scenario: Scenario, kernel: Kernel) -> None:
    """Name the shared page behind the first wrong op of a recording, where one is found.

    Parameters
    ----------
    recording : Recording
        Of the scenario, judged; its verdict is completed.
    scenario : Scenario
    kernel : Kernel
        The one that it ran with.
    """
    if not recording.verdicts:
        return
    op = min(recording.verdicts)
    plain = kernel.with_(design=DESIGNS["passthrough"], derivation=parity, root_strategy=special)
    if kernel == plain:
        return
    try:
        beside, _ = record_steps(scenario, kernel=plain)
    except FAILURES:
        return
    until = int(recording.steps[op])
    shared = list(collisions(lookups_of(recording), plain.design, lookups_of(beside), until))

    def again(design: RoleDesign) -> WrongAccess | None:
        return run_case(scenario, design, kernel=kernel).wrong

    found = blamed(kernel.design, until, shared, again)
    if found is not None:
        recording.found_wrongly[op] = found.gfn, found.shared
        recording.verdicts[op] += f"; {found}"


def lookups_of(recording: Recording) -> list[Lookup]:
    """Return the lookups of shadow pages, each with the step that it belongs to."""
    places = recording.events.places(kvm_mmu_get_page)
    events = ((int(at), recording.events[int(at)]) for at in places)
    return [
        Lookup(int(recording.steps[recording.op_of(at)]), event.gfn, event.role, event.created)
        for at, event in events
    ]
