"""Running a case: what KVM builds for it, and whether every access goes where the guest's tables lead.

The judge knows no shadow page. Before an access it walks the guest's own
tables, through L1's nested ones where there are some, and afterwards compares
what the guest sees. The scenarios flush before each judged access, so no stale
translation is allowed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from mmulab.conform.outcome import encode_outcome, outcome_str
from mmulab.conform.recording import Recording
from mmulab.events import Event, kvm_mmu_get_page, kvm_page_fault
from mmulab.kvm.design import find_design
from mmulab.kvm.mmu import INVALID_PAGE, Mmu
from mmulab.kvm.role import RoleFacts
from mmulab.kvm.state import Vcpu, to_shadow_page
from mmulab.kvm.svm_nested import SVM_EXITS, SvmNested
from mmulab.machine import op as ops
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, OutcomeKind
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.scenario import Scenario
from mmulab.trace.view import gpa_of, shadow_steps
from mmulab.x86.paging import KVM_WALK, make_paging
from mmulab.x86.pferr import PFERR_USER_MASK, PFERR_WRITE_MASK
from mmulab.x86.regs import X86_CR0_PG
from mmulab.x86.walk import Load, Walk, walk

Access = ops.Read | ops.Write
NPF_FINAL, NPF_TABLE = 1 << 32, 1 << 33
"""In EXITINFO1 of a #NPF: at the final address, or at a table of the guest's (APM 2, 15.25.6)."""


class TwoWalks(NamedTuple):
    """A walk of the guest's tables, and where there are nested ones, a walk of those for each step.

    Attributes
    ----------
    outer : Walk
        L2's walk, or the only guest's. Addresses of its tables are L2's
        guest-physical ones.
    inner : tuple of Walk
        Of L1's nested tables: for each entry that `outer` read, root first, and
        for the address it arrived at. Empty without nested tables.
    gpa : int or None
        L1's guest-physical address; None if either walk faults.
    """

    outer: Walk
    inner: tuple[Walk, ...]
    gpa: int | None


def two_walks(machine: Machine, gva: int, pfec: int = 0, *, vcpu: int = 0) -> TwoWalks:
    """Walk the running guest's tables as they are now, without setting A or D.

    Every step of L2's walk is a user access to L1's nested tables (APM 2, 15.25.5).
    """
    v = machine.kvm.vcpus[vcpu]
    slots = machine.kvm.slots[v.smm]
    paging = make_paging(v.cr0, v.cr4, v.efer, v.cpu, KVM_WALK)
    inner: list[Walk] = []

    def from_memory(width: int) -> Load:
        return lambda gpa, level: slots.read(machine.memory.bytes, gpa, width)

    nested = v.nested
    if not (isinstance(nested, SvmNested) and nested.npt):
        outer = walk(paging, v.cr3, gva, pfec, from_memory(paging.mode.entry_bytes))
        return TwoWalks(outer, (), None if outer.error is not None else outer.pa)
    format_of = make_paging(X86_CR0_PG, nested.l1["cr4"], nested.l1["efer"], v.cpu, KVM_WALK)

    def through_npt(ngpa: int, kind: int) -> int | None:
        read = from_memory(format_of.mode.entry_bytes)
        found = walk(format_of, nested.nested_pgd, ngpa, kind | PFERR_USER_MASK, read)
        inner.append(found)
        return None if found.error is not None else found.pa

    def load(ngpa: int, level: int) -> int | None:
        gpa = through_npt(ngpa, PFERR_WRITE_MASK)
        return None if gpa is None else slots.read(machine.memory.bytes, gpa, paging.mode.entry_bytes)

    outer = walk(paging, v.cr3, gva, pfec, load)
    gpa = through_npt(outer.pa, pfec) if outer.error is None else None
    return TwoWalks(outer, tuple(inner), gpa)


class WrongAccess(NamedTuple):
    """An access, or a change of world, that did not do what the guest's own state says.

    Attributes
    ----------
    op : int
        Index of the step.
    text : str
    expected, reached : int or None
        Guest-physical addresses; None where there is no translation.
    seen : str
        The outcome in words.
    """

    op: int
    text: str
    expected: int | None
    reached: int | None
    seen: str

    def __str__(self) -> str:
        ends = [f"{name} {address:#x}" for name, address in self._ends() if address is not None]
        return f"op {self.op} '{self.text}': " + "; ".join([*ends, self.seen])

    def _ends(self) -> Iterator[tuple[str, int | None]]:
        yield "expected gpa", self.expected
        yield "reached gpa", self.reached


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
        Of the same access, before it; None for a recording.
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
        design = self.machine.kvm.config.design
        made = [e for e in self.events if isinstance(e, kvm_mmu_get_page) and e.created]
        return dict(Counter(design.facts(event.role).full_str() for event in made))

    @property
    def pages_by_level(self) -> dict[str, int]:
        """Shadow pages created, by level, ``d`` if direct, ``p`` if passthrough, 4-byte tables' quadrant."""
        facts = self.machine.kvm.config.design.facts
        made = [facts(e.role) for e in self.events if isinstance(e, kvm_mmu_get_page) and e.created]
        return dict(Counter(map(_short, made)))

    @property
    def shadow_pages(self) -> int:
        """Number of shadow pages created."""
        return sum(self.created.values())


def _short(facts: RoleFacts) -> str:
    quadrant = f"q{facts.quadrant}" if facts.has_4_byte_gpte else ""
    return f"{facts.level}{'d' if facts.direct else ''}{'p' if facts.passthrough else ''}{quadrant}"


def runner_of(scenario: Scenario, design: str) -> Runner:
    """Return the runner of a scenario whose machine's role words follow `design`, a name or an id.

    Raises
    ------
    InputError
        An op is not modelled yet, or the design is unknown.
    """
    return Runner(scenario, config=replace(machine_config(scenario), design=find_design(design)))


def run_case(scenario: Scenario, design: str = "passthrough") -> CaseRun:
    """Run a scenario op by op, judge its accesses and keep what is asked of a case.

    Parameters
    ----------
    scenario : Scenario
        Without conditional steps, and without user accesses in PAE paging, which need
        instructions of the VMM's in between.
    design : str
        Name or id of a role design.

    Raises
    ------
    InputError
        An op is not modelled yet, or the design is unknown.
    """
    runner = runner_of(scenario, design)
    machine, running = runner.machine, runner.results()
    results = [next(running)]
    first: dict[bool, tuple[TwoWalks, tuple[Link, ...]]] = {}
    moments = [_moment(machine, results[0].text)]
    judged, wrong = 0, None
    for index, step in enumerate(scenario.steps):
        access = step.op if isinstance(step.op, Access) else None
        walks = None if access is None else two_walks(machine, access.gva, _kind(access))
        result = next(running)
        results.append(result)
        nested = machine.kvm.vcpus[0].guest_mode
        if access is not None:
            judged += 1
            assert walks is not None
            first.setdefault(nested, (walks, _chain(machine, _in_the_tables(machine, access.gva, walks))))
        found = _judge(machine, index, result, access, walks)
        wrong = wrong or found
        moments.append(_moment(machine, result.text))
        if result.outcome.kind is OutcomeKind.SHUTDOWN:
            break
    shown, chain = first[max(first)] if first else (None, ())
    return CaseRun(machine, tuple(results), chain, shown, tuple(moments), judged, wrong)


def _kind(access: Access) -> int:
    return PFERR_WRITE_MASK if isinstance(access, ops.Write) else 0


_ENDS: dict[type[Op], OutcomeKind] = {ops.Vmrun: OutcomeKind.L2, ops.Vmmcall: OutcomeKind.VMEXIT}


def _judge(
    machine: Machine, index: int, result: Result, access: Access | None, walks: TwoWalks | None
) -> WrongAccess | None:
    """Compare an outcome with what the guest's state said before the op."""
    outcome = result.outcome
    seen = outcome_str(encode_outcome(outcome))
    if access is None or walks is None:
        ends = _ENDS.get(type(result.op), OutcomeKind.OK)
        return None if outcome.kind is ends else WrongAccess(index, result.text, None, None, seen)
    reached = None if outcome.hpa == -1 else gpa_of(machine, outcome.hpa)
    right = False
    if walks.gpa is None:
        right = outcome.vmexit is not None and outcome.vmexit.items() >= _npf(walks).items()
    elif outcome.kind is OutcomeKind.OK:
        right = _value_at(machine, walks.gpa) == (
            access.value if isinstance(access, ops.Write) else outcome.rax
        ) and reached in (None, walks.gpa)
    return None if right else WrongAccess(index, result.text, walks.gpa, reached, seen)


def _npf(walks: TwoWalks) -> dict[str, int]:
    """Return what L1 is told of a fault in its nested tables (APM 2, 15.25.6)."""
    fault = walks.inner[-1]
    assert fault.error is not None, "the guest's own tables never fault in a case"
    final = walks.outer.error is None
    info1 = fault.error | (NPF_FINAL if final else NPF_TABLE)
    return {"code": SVM_EXITS["npf"], "info1": info1, "info2": fault.va}


def _value_at(machine: Machine, gpa: int) -> int | None:
    return machine.kvm.slots[0].read(machine.memory.bytes, gpa, 4)


def _links(machine: Machine, address: int) -> Iterator[Link]:
    mmu, design = machine.kvm.vcpus[0].mmu, machine.kvm.config.design
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
    return Moment(text, world, _context(vcpu, vcpu.mmu), _context(vcpu, vcpu.walk_mmu), kind, _root(machine))


def _context(vcpu: Vcpu, mmu: Mmu) -> str:
    named = (("root_mmu", vcpu.root_mmu), ("guest_mmu", vcpu.guest_mmu), ("nested_mmu", vcpu.nested_mmu))
    return next(name for name, context in named if context is mmu)


def _root(machine: Machine) -> str:
    mmu = machine.kvm.vcpus[0].mmu
    if mmu.root_hpa == INVALID_PAGE:
        return "none"
    page = to_shadow_page(machine.kvm, mmu.root_hpa)
    if page is None:
        return _special(mmu, mmu.root_hpa >> 12)
    return machine.kvm.config.design.facts(page.role).full_str()


@dataclass(frozen=True)
class Contrast:
    """How a run under another design differs from one under the default.

    Attributes
    ----------
    passthrough : int
        Events of the default's run whose role word says ``passthrough``.
    events : dict of str to int
        Events more (or fewer) than under the default, by name; those of equal number are left out.
    first : tuple of (int, str) or None
        Index of the op and name of the first event that is another one, whatever roles say; None: all same.
    pages : int
        Shadow pages more (or fewer).
    wrong : WrongAccess or None
        The other design's first wrong access, if it is not the default's too.
    """

    passthrough: int
    events: dict[str, int]
    first: tuple[int, str] | None
    pages: int
    wrong: WrongAccess | None

    def __str__(self) -> str:
        if self.wrong is not None:
            return f"WRONG at {self.wrong}"
        parts = [f"{name} {more:+}" for name, more in self.events.items()]
        if self.first is not None:
            parts.append(f"from op {self.first[0]}, {self.first[1]}, other events or another order")
        if self.pages:
            parts.append(f"shadow pages {self.pages:+}")
        if self.passthrough:
            parts.append(f"events with passthrough in the role: 0, not {self.passthrough}")
        return "; ".join(parts) or "the same"


def contrast(base: CaseRun, other: CaseRun) -> Contrast:
    """Compare two runs of one scenario under different designs."""
    facts = base.machine.kvm.config.design.facts
    words = [event.role for event in base.events if hasattr(event, "role")]
    ours, theirs = base.counts, other.counts
    more = {name: theirs.get(name, 0) - ours.get(name, 0) for name in sorted({*ours, *theirs})}
    return Contrast(
        sum(facts(word).passthrough for word in words),
        {name: number for name, number in more.items() if number},
        _first_other(base, other),
        other.shadow_pages - base.shadow_pages,
        None if other.wrong == base.wrong else other.wrong,
    )


def _first_other(base: CaseRun, other: CaseRun) -> tuple[int, str] | None:
    """Return the op and the name of the first event that differs in more than its role word."""

    def flat(run: CaseRun) -> list[tuple[int, str, Event]]:
        return [
            (r.index, type(e).__name__, e._replace(role=0) if hasattr(e, "role") else e)
            for r in run.results
            for e in r.events
        ]

    ours, theirs = flat(base), flat(other)
    for mine, its in zip(ours, theirs, strict=False):
        if mine != its:
            return its[:2]
    longer = max(ours, theirs, key=len)
    return None if len(ours) == len(theirs) else longer[min(len(ours), len(theirs))][:2]


def run_recorded(recording: Recording, design: str = "passthrough") -> CaseRun:
    """Run a recording's scenario; the judge is what the real guest saw of each op.

    Raises
    ------
    InputError
        An op is not modelled yet, or the design is unknown.
    """
    runner = runner_of(recording.scenario, design)
    machine = runner.machine
    results: list[Result] = []
    moments: list[Moment] = []
    chains: dict[bool, tuple[Link, ...]] = {}
    wrong = None
    for result in runner.results():
        if isinstance(result.op, ops.Teardown):
            break
        number = len(results)
        results.append(result)
        moments.append(_moment(machine, result.text))
        faults = [event.fault_address for event in result.events if isinstance(event, kvm_page_fault)]
        if faults and isinstance(result.op, Access):
            chains.setdefault(machine.kvm.vcpus[0].guest_mode, _chain(machine, faults[-1]))
        seen = encode_outcome(result.outcome)
        if wrong is None and (number >= len(recording.ops) or seen != recording.ops[number].outcome):
            wrong = WrongAccess(result.index, result.text, None, None, outcome_str(seen))
    chain = chains[max(chains)] if chains else ()
    return CaseRun(machine, tuple(results), chain, None, tuple(moments), len(results), wrong)
