"""Running a case: what KVM builds for it, and whether every access goes where the guest's tables lead.

How an access is judged is in :mod:`mmulab.check.oracle`; a recording has its own
judge, the outcomes of the real guest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from mmulab.check.access import Access, TwoWalks, WrongAccess, seen_str
from mmulab.check.allowed import walks_of
from mmulab.check.failure import FAILURES
from mmulab.check.judge import Judge
from mmulab.check.oracle import Oracle, Verdict
from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.conform.recording import KernelRecording, is_around
from mmulab.errors import DesignError, InputError
from mmulab.events import Event, kvm_mmu_get_page, kvm_page_fault
from mmulab.kvm.invariants import Check
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.mmu import INVALID_PAGE, Mmu
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.find import find_design
from mmulab.kvm.roles.word import RoleFacts
from mmulab.kvm.state import context_name, to_shadow_page
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, OutcomeKind
from mmulab.machine.view import Pages, Walks, shadow_steps
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.grammar import format_step
from mmulab.scenario.runner import HOST_OPS, Result, Runner
from mmulab.scenario.scenario import Scenario
from mmulab.x86.markup import table_html

_ENDS: dict[type[Op], OutcomeKind] = {
    ops.Vmrun: OutcomeKind.L2,
    ops.Vmmcall: OutcomeKind.VMEXIT,
    ops.Vmcall: OutcomeKind.VMEXIT,
}


class Link(NamedTuple):
    """A table on the processor's way: a special root by its name, or a shadow page by its role.

    Attributes
    ----------
    name : str
        ``pae_root``, ``pml4_root``, ``pml5_root``, or the role in words.
    level : int
    gfn : int or None
    role : int or None
    """

    name: str
    level: int
    gfn: int | None
    role: int | None
    short: str
    """Level, and ``d``, ``p`` or quadrant as :attr:`CaseRun.pages_by_level` has them; ``pae`` and so on."""


class Moment(NamedTuple):
    """The contexts after an op.

    Attributes
    ----------
    op : str
    world : {"L1", "L2"}
    mmu, walk_mmu : str
        Which of ``root_mmu``, ``guest_mmu`` and ``nested_mmu`` the processor's
        tables come from, and which translates the guest's virtual addresses.
    kind : str
        ``direct`` or ``shadow``: what the tables of `mmu` are.
    root : str
        The root in use, as :attr:`Link.name`; ``none`` after it was freed.
    """

    op: str
    world: str
    mmu: str
    walk_mmu: str
    kind: str
    root: str


@dataclass(frozen=True)
class CaseRun:
    """What came of a case under one design.

    Attributes
    ----------
    machine : Machine
        After the last op before the teardown.
    results : tuple of Result
    chain : tuple of Link
        Of the deepest guest's first access to data: root first.
    walks : TwoWalks or None
        Of the same access, before it.
    moments : tuple of Moment
        After each op, ``init`` included.
    judged : int
        Accesses that were compared.
    wrong : WrongAccess or None
        The first one.
    """

    machine: Machine
    results: tuple[Result, ...]
    chain: tuple[Link, ...]
    walks: TwoWalks | None
    moments: tuple[Moment, ...]
    judged: int
    wrong: WrongAccess | None

    def pages(self) -> Pages:
        """Return the shadow pages after the last op."""
        return self.machine.pages()

    def walk(self, gva: int, *, vcpu: int = 0) -> Walks:
        """Return where `gva` leads after the last op, by the guest's tables and by those in use."""
        return self.machine.walk(gva, vcpu=vcpu)

    def check(self) -> Check:
        """Ask every invariant of the MMU's own state after the last op."""
        return self.machine.check()

    def __repr__(self) -> str:
        design = self.machine.config.kernel.design.name
        end = "right" if self.wrong is None else f"wrong in {self.wrong}"
        ops = sum(result.index >= 0 for result in self.results)
        return f"<CaseRun under {design}: {ops} ops, {self.judged} judged, {self.shadow_pages} pages: {end}>"

    def _repr_html_(self) -> str:
        rows = [[r.index, r.text, seen_str(r.outcome), len(r.events)] for r in self.results]
        return table_html(["op", "text", "outcome", "events"], rows, repr(self))

    @property
    def events(self) -> list[Event]:
        """All events before the teardown, in order."""
        return [event for result in self.results for event in result.events]

    @property
    def counts(self) -> dict[str, int]:
        """Events by name, in alphabetical order."""
        return dict(sorted(Counter(type(event).__name__ for event in self.events).items()))

    @property
    def created(self) -> dict[str, int]:
        """Shadow pages created, by role in words, in the order in which each was first made."""
        return dict(Counter(facts.full_str() for facts in self._made))

    @property
    def pages_by_level(self) -> dict[str, int]:
        """Shadow pages created, by level, ``d`` if direct, ``p`` if passthrough, 4-byte tables' quadrant."""
        return dict(Counter(map(_short, self._made)))

    @property
    def shadow_pages(self) -> int:
        """Number of shadow pages created."""
        return len(self._made)

    @property
    def _made(self) -> list[RoleFacts]:
        """What the word of each shadow page that was created says, in order."""
        facts = self.machine.kvm.config.kernel.design.facts
        return [facts(e.role) for e in self.events if isinstance(e, kvm_mmu_get_page) and e.created]


def _short(facts: RoleFacts) -> str:
    quadrant = f"q{facts.quadrant}" if facts.has_4_byte_gpte else ""
    return f"{facts.level}{'d' if facts.direct else ''}{'p' if facts.passthrough else ''}{quadrant}"


def design_of(design: RoleDesign | str) -> RoleDesign:
    """Return a design that is given as such, or by its name or id.

    Raises
    ------
    InputError
        No design has this name.
    """
    return design if isinstance(design, RoleDesign) else find_design(design)


def runner_of(
    scenario: Scenario, design: RoleDesign | str | None = None, *, kernel: Kernel | None = None
) -> Runner:
    """Return the runner of a scenario on a kernel, whose role words follow `design` if one is given.

    Parameters
    ----------
    scenario : Scenario
    design : RoleDesign or str
        A design, or the name or id of one.
    kernel : Kernel, optional
        Instead of the scenario's own; the design takes the place of its role design.

    Raises
    ------
    InputError
        An op is not modelled yet, or the design is unknown.
    """
    own = None if design is None else design_of(design)
    return Runner(scenario, config=machine_config(scenario, kernel, own))


@dataclass
class _Found:
    """What a run has shown so far."""

    machine: Machine
    oracle: Oracle | None = None
    results: list[Result] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    chains: dict[bool, tuple[TwoWalks | None, tuple[Link, ...]]] = field(default_factory=dict)
    judged: int = 0
    wrong: WrongAccess | None = None
    place: tuple[int, str, Op | None] = (-1, "init", None)
    """Index and text of the op at hand, and the op if it is judged."""

    def add(self, result: Result) -> None:
        """Keep what an op did."""
        self.results.append(result)
        self.moments.append(_moment(self.machine, result.text))

    def done(self) -> CaseRun:
        """Return the run; the deepest guest's way down is shown."""
        shown, chain = self.chains[max(self.chains)] if self.chains else (None, ())
        return CaseRun(
            self.machine, tuple(self.results), chain, shown, tuple(self.moments), self.judged, self.wrong
        )


def _until_it_fails(found: _Found, scenario: Scenario, execute: Callable[[_Found], None]) -> CaseRun:
    """Execute to the end, or to where the design drives the model into an impossible state."""
    try:
        execute(found)
    except FAILURES as error:
        seen = _designs_failure(error, scenario)
        index, text, op = found.place
        walks = None if op is None or found.oracle is None else found.oracle.walks(op)
        expected = None if walks is None else walks.gpa
        gva = None if walks is None else getattr(op, "gva", None)
        found.wrong = found.wrong or WrongAccess(index, text, expected, None, seen, gva=gva)
    return found.done()


def _designs_failure(error: Exception, scenario: Scenario) -> str:
    """Say in words what a design led to; what is not its doing is raised again."""
    astray = isinstance(error, InputError) and not isinstance(error, DesignError)
    if (astray and not _runs_by_default(scenario)) or isinstance(error, NotImplementedError):
        raise error
    return failure_str(error)


def _runs_by_default(scenario: Scenario) -> bool:
    """Whether the scenario itself is good: the default design takes it to its end."""
    try:
        for _ in Runner(scenario).results():
            pass
    except InputError:
        return False
    return True


def failure_str(error: Exception) -> str:
    """Say in words that the model stopped."""
    if isinstance(error, DesignError):
        return f"the design itself fails ({error})"
    if isinstance(error, InputError):
        return f"the guest is led astray ({error.__cause__ or error})"
    if isinstance(error, RecursionError):
        return "the shadow tables lead in circles"
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    return f"the MMU fails its own checks, where Linux would BUG ({what})"


def results_of(runner: Runner) -> tuple[list[Result], str | None]:
    """Run to the end, or to where the design brings the model to a stop; return that in words."""
    results: list[Result] = []
    try:
        for result in runner.results():
            results.append(result)
    except FAILURES as error:
        return results, _designs_failure(error, runner.scenario)
    return results, None


def run_case(
    scenario: Scenario, design: RoleDesign | str = "passthrough", *, kernel: Kernel | None = None
) -> CaseRun:
    """Run a scenario op by op, judge its accesses and keep what is asked of a case.

    Parameters
    ----------
    scenario : Scenario
        Without conditional steps.
    design : RoleDesign or str
        A design, or the name or id of one.
    kernel : Kernel, optional
        Instead of the scenario's own; the design takes the place of its role design.

    Raises
    ------
    InputError
        An op is not modelled yet, or the design is unknown.
    """
    runner = runner_of(scenario, design, kernel=kernel)
    judge = Judge(runner.machine)

    def execute(found: _Found) -> None:
        running = runner.results()
        result = next(running)
        judge.judge(result)
        found.add(result)
        for index, step in enumerate(scenario.steps):
            found.place = index, format_step(step), step.op
            result = next(running)
            while result.op is not step.op:  # an instruction of the VMM's that goes before
                judge.judge(result)
                found.add(result)
                result = next(running)
            verdict, walks, wrong = judge.judge(result)
            if isinstance(step.op, Access) and walks is not None:
                found.judged += 1
                _keep_chain(found, step.op, walks)
            elif verdict is not Verdict.WRONG:
                wrong = _ends_otherwise(result) or wrong
            found.wrong = found.wrong or wrong
            found.add(result)
            if result.outcome.kind.is_last:
                break

    return _until_it_fails(_Found(runner.machine, judge.oracle), scenario, execute)


def _ends_otherwise(result: Result) -> WrongAccess | None:
    """Tell of an op without an access that does not end as such ops do."""
    ends = _ENDS.get(type(result.op), OutcomeKind.OK)
    ends = OutcomeKind.HOST if isinstance(result.op, HOST_OPS) else ends
    if result.outcome.kind is ends:
        return None
    return WrongAccess(result.index, result.text, None, None, seen_str(result.outcome), str(ends))


def _keep_chain(found: _Found, access: Access, walks: TwoWalks) -> None:
    machine = found.machine
    nested = machine.kvm.vcpus[0].guest_mode
    if nested not in found.chains:
        found.chains[nested] = walks, _chain(machine, _in_the_tables(machine, access.gva, walks))


def _links(machine: Machine, address: int) -> Iterator[Link]:
    mmu, design = machine.kvm.vcpus[0].mmu, machine.kvm.config.kernel.design
    for step in shadow_steps(machine, address):
        if step.page is None:
            name = _special(mmu, step.frame)
            yield Link(name, step.level, None, None, name.removesuffix("_root"))
        else:
            facts = design.facts(step.page.role)
            yield Link(facts.full_str(), step.level, step.page.gfn, step.page.role, _short(facts))


def _chain(machine: Machine, address: int | None) -> tuple[Link, ...]:
    return () if address is None else tuple(_links(machine, address))


def _in_the_tables(machine: Machine, gva: int, walks: TwoWalks) -> int | None:
    """Return the address by which the processor looks into the tables that KVM made; None: none."""
    vcpu = machine.kvm.vcpus[0]
    if vcpu.mmu is vcpu.guest_mmu:
        return walks.outer.pa if walks.outer.error is None else None
    return walks.gpa if vcpu.mmu.direct else gva


def _special(mmu: Mmu, frame: int) -> str:
    named = {mmu.pae_root: "pae_root", mmu.pml4_root: "pml4_root", mmu.pml5_root: "pml5_root"}
    return named[frame]


def _moment(machine: Machine, text: str) -> Moment:
    vcpu = machine.kvm.vcpus[0]
    world = "L2" if vcpu.guest_mode else "L1"
    kind = "direct" if vcpu.mmu.direct else "shadow"
    in_use, walking = context_name(vcpu, vcpu.mmu), context_name(vcpu, vcpu.walk_mmu)
    return Moment(text, world, in_use, walking, kind, _root(machine))


def _root(machine: Machine) -> str:
    mmu = machine.kvm.vcpus[0].mmu
    if mmu.root_hpa == INVALID_PAGE:
        return "none"
    page = to_shadow_page(machine.kvm, mmu.root_hpa)
    if page is None:
        return _special(mmu, mmu.root_hpa >> 12)
    return machine.kvm.config.kernel.design.facts(page.role).full_str()


def run_recorded(
    recording: KernelRecording, design: RoleDesign | str = "passthrough", *, kernel: Kernel | None = None
) -> CaseRun:
    """Run a recording's scenario; the judge is what the real guest saw of each op.

    Parameters
    ----------
    recording : KernelRecording
    design : RoleDesign or str
    kernel : Kernel, optional

    Raises
    ------
    InputError
        An op is not modelled yet, or the design is unknown.
    """
    runner = runner_of(recording.scenario, design, kernel=kernel)

    def execute(found: _Found) -> None:
        running, steps = runner.results(), iter(recording.scenario.steps)
        for number, recorded in enumerate(recording.ops):
            found.place = recorded.index, recorded.text, None
            step = None if is_around(recorded.text) else next(steps, None)
            access = step.op if step is not None and isinstance(step.op, Access) else None
            walks = None if access is None else walks_of(runner.machine, access)
            result = next(running)
            if isinstance(result.op, ops.Teardown):
                break
            found.add(result)
            faults = [event.fault_address for event in result.events if isinstance(event, kvm_page_fault)]
            if faults and isinstance(result.op, Access):
                nested = runner.machine.kvm.vcpus[0].guest_mode
                found.chains.setdefault(nested, (walks, _chain(runner.machine, faults[-1])))
            found.judged = number + 1
            seen = encode_outcome(result.outcome)
            if found.wrong is None and seen != recorded.outcome:
                wanted = outcome_str(recorded.outcome)
                gva = result.op.gva if isinstance(result.op, Access) else None
                found.wrong = WrongAccess(
                    result.index, result.text, None, None, outcome_str(seen), wanted, gva
                )

    return _until_it_fails(_Found(runner.machine), recording.scenario, execute)
