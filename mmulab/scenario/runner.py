"""Runs a scenario: builds its machine, puts its memory in place, executes its ops.

What the recordings' VMM does around an op is done here too: the first op is
``init``, the last ``teardown``; a ``sysexit`` or ``sysenter`` goes before an op
of another privilege in PAE paging; the rest is skipped after a shutdown, and
``teardown`` too if the host died. A vCPU that got an SMI is put into protected
mode, with flat segments as ever.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.errors import DesignError, InputError
from mmulab.events import Event, EventSink
from mmulab.kvm.assertions import host_died
from mmulab.kvm.state import Vcpu
from mmulab.kvm.svm.nested import VMCB
from mmulab.machine import op as ops
from mmulab.machine.config import MachineConfig, Stubs
from mmulab.machine.machine import Machine
from mmulab.machine.op import Mode, Op, Outcome, OutcomeKind
from mmulab.machine.stubs import l2_rip
from mmulab.memory.host import FRAME_BYTES, HostMemory
from mmulab.scenario.adapter import cpu_model, host_config, machine_config
from mmulab.scenario.check import check_header
from mmulab.scenario.grammar import Step, format_step, op_name, vcpu_prefix
from mmulab.scenario.helpers import HELPER_S, HELPER_U, STUBS_OF_OPS, helper_lines
from mmulab.scenario.scenario import BACKGROUND, Header, Scenario
from mmulab.x86.mode import PAGING_PAE, PT_ACCESSED_MASK, paging_mode
from mmulab.x86.regs import X86_CR0_PE

INIT = -1
"""Index of the op ``init``."""

VMX_OPS = (
    ops.Vmxon,
    ops.Vmptrld,
    ops.Vmclear,
    ops.Vmlaunch,
    ops.Vmcall,
    ops.Vmwrite,
    ops.Invept,
    ops.Invvpid,
    ops.Vmfunc,
)
VMX_HOST = ("vpid", "enable_shadow_vmcs")
"""Parameters of kvm_intel without which nested VMX is not modelled; without ``nested`` there is none."""

HOST_OPS = (
    ops.HostWrite,
    ops.SetMemslot,
    ops.DeleteMemslot,
    ops.GetDirtyLog,
    ops.ClearDirtyLog,
    ops.GetDirtyRing,
    ops.ResetDirtyRings,
    ops.InvalidateHva,
    ops.Age,
    ops.Collapse,
    ops.Protect,
    ops.SwapOut,
    ops.RecoverNxHugePages,
    ops.SetNxHugePages,
    ops.SetNrMmuPages,
    ops.SetSregs,
    ops.SetCpuid,
    ops.SetPkru,
)
"""Ops of the VMM and of the host, which no vCPU executes."""


class Result:
    """What one op did.

    Attributes
    ----------
    index : int
        Number of the step; -1 for ``init``, the number of steps for
        ``teardown``; a helper has that of the op it goes with.
    text : str
        The op as a recording names it.
    op : Op
    outcome : Outcome
    events : list of Event
    stats : dict of str to int
        Non-zero changes of KVM's statistics.
    """

    __slots__ = ("_stats", "_text", "events", "index", "op", "outcome")

    def __init__(
        self,
        index: int,
        text: str | Step,
        op: Op,
        outcome: Outcome,
        events: list[Event],
        stats: dict[str, int] | _Stats,
    ) -> None:
        self.index, self.op, self.outcome, self.events = index, op, outcome, events
        # A search looks at neither for most ops, and runs many.
        self._text, self._stats = text, stats

    @property
    def text(self) -> str:
        """The op as a recording names it."""
        if not isinstance(self._text, str):
            self._text = format_step(self._text)
        return self._text

    @property
    def stats(self) -> dict[str, int]:
        """Non-zero changes of KVM's statistics."""
        if not isinstance(self._stats, dict):
            self._stats = self._stats.changes()
        return self._stats

    def with_(self, *, index: int | None = None, outcome: Outcome | None = None) -> Result:
        """Return the result with another number or outcome."""
        number = self.index if index is None else index
        return Result(number, self._text, self.op, outcome or self.outcome, self.events, self._stats)

    def __repr__(self) -> str:
        return f"<Result of op {self.index} '{self.text}': {self.outcome!r}, {len(self.events)} events>"


class _Stats(NamedTuple):
    """KVM's statistics before and after an op: the VM's, then each vCPU's."""

    before: list[dict[str, int]]
    after: list[dict[str, int]]

    def changes(self) -> dict[str, int]:
        """Return the non-zero changes, those of the vCPUs added up."""
        found: dict[str, int] = {}
        for old, new in zip(self.before, self.after, strict=True):
            for name, value in new.items():
                found[name] = found.get(name, 0) + value - old.get(name, 0)
        return {name: change for name, change in found.items() if change}


def check_modelled(scenario: Scenario) -> None:
    """Refuse a header that cannot be, and an op that the machine does not know on such a host.

    Raises
    ------
    InputError
        Naming the op and its line.
    """
    check_header(scenario, host_config(scenario.header), cpu_model(scenario.header))
    for step in scenario.steps:
        why = _why_not_modelled(scenario.header, step.op)
        if why:
            place = f"line {step.line}" if step.line else f"{format_step(step)!r}"
            name = op_name(step.op)
            raise InputError(f"{scenario.source}: {place}: the op {name} is not modelled {why}")


def _why_not_modelled(header: Header, op: Op) -> str:
    if isinstance(op, ops.Smm):
        return _why_no_smm(header)
    needed = VMX_HOST if isinstance(op, VMX_OPS) else ()
    lacking = [name for name in needed if header.vendor == "intel" and not header.host[name]]
    return f"on a host with {lacking[0]}=0" if lacking else ""


def _why_no_smm(header: Header) -> str:
    """Real mode, where SMM begins, is the processor's with an unrestricted guest and KVM's without EPT."""
    if header.host["ept"] and not header.host["unrestricted_guest"]:
        return "on a host with ept=1 and unrestricted_guest=0"
    return "" if header.cpuid["lm"] else "for a guest with lm=0"


def _both(first: EventSink, second: EventSink) -> EventSink:
    """Return a sink that gives each event to both. It holds no runner, so that none is cyclic garbage."""

    def sink(event: Event) -> None:
        first(event)
        second(event)

    return sink


class Runner:
    """A scenario on its machine, op by op.

    Parameters
    ----------
    scenario : Scenario
    emit : callable, optional
        Gets every event as it happens, before it is kept in the result.
    config : MachineConfig, optional
        Instead of the scenario's own: the same host and guest under another role design, say.
    beginning : Beginning, optional
        Of the scenario's header, for those who run many scenarios of one.

    Attributes
    ----------
    machine : Machine
    ended : bool
        The last step was a shutdown, or ``KVM_RUN`` will never return: no other follows.
    cpl : dict of int to int
        Privilege that each vCPU is left with, by its number; one that is not there has 0.
    """

    def __init__(
        self,
        scenario: Scenario,
        emit: EventSink | None = None,
        config: MachineConfig | None = None,
        beginning: Beginning | None = None,
    ) -> None:
        check_modelled(scenario)
        self.scenario = scenario
        self._events: list[Event] = []
        keep = self._events.append if emit is None else _both(emit, self._events.append)
        self.machine = Machine(config or machine_config(scenario), keep)
        self._at: tuple[int, str | Step] = (INIT, "init")
        self.ended = False
        self.cpl: dict[int, int] = {}
        kinds = frozenset(STUBS_OF_OPS.keys() & {type(step.op) for step in scenario.steps})
        if beginning is None:
            load_memory(self.machine.memory, scenario.header, kinds)
        else:
            beginning.load(self.machine.memory, kinds)

    @property
    def at(self) -> tuple[int, str]:
        """Step and text of the op that runs, or that ran last: where the MMU stands if it fails."""
        index, text = self._at
        return index, text if isinstance(text, str) else format_step(text)

    def results(self) -> Iterator[Result]:
        """Execute the scenario and yield the result of each op, in order."""
        yield from self.begin()
        for index, step in enumerate(self.scenario.steps):
            yield from self.step(index, step)
            if host_died(self.machine.kvm):
                return
            if self.ended:
                break
        yield self._execute(len(self.scenario.steps), "teardown", ops.Teardown())

    def begin(self) -> Iterator[Result]:
        """Give each vCPU the registers that the scenario begins with."""
        for vcpu in self.machine.kvm.vcpus:
            init = ops.SetSregs(vcpu=vcpu.id, **self.scenario.header.regs._asdict())
            yield self._execute(INIT, f"{vcpu_prefix(init)}init", init)

    def step(self, index: int, step: Step) -> Iterator[Result]:
        """Execute one step with the helpers around it; nothing where its condition does not hold."""
        vcpu = self.machine.kvm.vcpus[step.op.vcpu]
        if step.when and (step.when == "!") != vcpu.guest_mode:
            return
        if isinstance(step.op, ops.Vmrun):
            if self.scenario.header.vendor == "intel":
                yield from self._load_vmcs(index, step.op)
            else:
                self._aim_vmcb(step.op.gpa)
        if self.scenario.header.pdptfix:
            self._fix_pdptes()
        helper = self._change_cpl(step)
        if helper is not None:
            name = f"{vcpu_prefix(helper)}~{type(helper).__name__.lower()}"
            yield self._execute(index, name, helper)
        was_in_smm = vcpu.smm
        result = self._execute(index, step, step.op)
        yield result
        self.ended = result.outcome.kind.is_last
        if vcpu.smm and not was_in_smm and not self.ended:
            yield self._leave_real_mode(index, vcpu)

    def _execute(self, index: int, text: str | Step, op: Op) -> Result:
        self._events.clear()
        self._at = index, text
        kvm = self.machine.kvm
        before = [dict(kvm.stat), *(dict(vcpu.stat) for vcpu in kvm.vcpus)]
        try:
            outcome = self.machine.execute(op)
        except DesignError:
            raise  # the op is not at fault
        except InputError as error:
            raise InputError(f"{self.scenario.source}: {self._place(*self.at)}: {error}") from error
        stats = _Stats(before, [dict(kvm.stat), *(dict(vcpu.stat) for vcpu in kvm.vcpus)])
        if outcome.kind is OutcomeKind.EXC or (isinstance(op, ops.SetSregs) and outcome.result is None):
            self.cpl[op.vcpu] = 0  # handlers run at CPL 0, and the VMM's registers have it
        return Result(index, text, op, outcome, self._events.copy(), stats)

    def _place(self, index: int, text: str) -> str:
        steps = self.scenario.steps
        line = steps[index].line if 0 <= index < len(steps) else 0
        return f"line {line}" if line else f"op {text!r}"

    def _change_cpl(self, step: Step) -> Op | None:
        """Note the privilege that a step runs at; return the instruction that leads there.

        The VMM sets CPL with ``KVM_SET_SREGS``. That resets the MMU in PAE
        paging, where the guest changes its privilege itself instead.
        """
        op = step.op
        if isinstance(op, HOST_OPS):
            return None
        wanted = 3 if getattr(op, "mode", None) is Mode.USER else 0
        current = self.cpl.get(op.vcpu, 0)
        self.cpl[op.vcpu] = wanted
        vcpu = self.machine.kvm.vcpus[op.vcpu]
        if wanted == current or paging_mode(vcpu.cr0, vcpu.cr4, vcpu.efer) is not PAGING_PAE:
            return None
        return ops.Sysexit(vcpu=op.vcpu) if wanted else ops.Sysenter(vcpu=op.vcpu)

    def _leave_real_mode(self, index: int, vcpu: Vcpu) -> Result:
        """Put a vCPU that got an SMI into protected mode without paging, for which the stubs are written."""
        registers = vcpu.cr0 | X86_CR0_PE, vcpu.cr3, vcpu.cr4, vcpu.efer
        helper = ops.SetSregs(*registers, vcpu=vcpu.id)
        return self._execute(index, f"{vcpu_prefix(helper)}~sregs", helper)

    def _aim_vmcb(self, gpa: int) -> None:
        """Let L2 begin at the stub that tells the VMM of it; where no memory is, VMRUN will fault."""
        offset, size = VMCB["rip"]
        if gpa + offset + size > self.scenario.header.backing_bytes:
            return
        self.machine.execute(ops.HostWrite(size, gpa + offset, l2_rip(Stubs(HELPER_S, HELPER_U))))

    def _load_vmcs(self, index: int, op: ops.Vmrun) -> Iterator[Result]:
        """Make the VMCS of an entry current, unless it is; of this helper no flags are told."""
        if self.machine.kvm.vcpus[op.vcpu].vmx.current_vmptr == op.gpa:
            return
        helper = ops.Vmptrld(op.gpa, vcpu=op.vcpu)
        result = self._execute(index, f"{vcpu_prefix(helper)}~vmptrld", helper)
        result.outcome.cf = result.outcome.zf = None
        yield result

    def _fix_pdptes(self) -> None:
        """Undo what the emulated processor of the recordings does to PDPTEs it walks: it sets A."""
        memory = self.machine.memory
        for gpa in self.scenario.header.pdptfix:
            for at in range(gpa, gpa + 32, 8):
                pdpte = memory.load64((memory.backing << 12) + at)
                if pdpte & PT_ACCESSED_MASK:
                    self.machine.execute(ops.HostWrite(8, at, pdpte & ~PT_ACCESSED_MASK))


def load_memory(memory: HostMemory, header: Header, kinds: Container[type[Op]] = ()) -> None:
    """Put a scenario's beginning into the guest's backing, with the stubs for ops of these kinds."""
    more = [stub for kind, stub in STUBS_OF_OPS.items() if kind in kinds]
    base = memory.backing << 12
    memory.fill(base, header.backing_bytes, BACKGROUND)
    for page in (HELPER_S, HELPER_U):
        memory.fill(base + page, FRAME_BYTES, 0)
    for address, line in helper_lines(header.vendor, more).items():
        memory.write(base + address, len(line), int.from_bytes(line, "little"))
    for fill in header.fills:
        memory.fill(base + fill.gpa, fill.length, fill.byte)
    for value in header.values:
        memory.write(base + value.gpa, value.size, value.value)


class Beginning:
    """A header's memory, made once for many machines.

    Parameters
    ----------
    header : Header
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        self._images: dict[frozenset[type[Op]], npt.NDArray[np.uint64]] = {}

    def load(self, memory: HostMemory, kinds: frozenset[type[Op]]) -> None:
        """Do what :func:`load_memory` does to memory of which nothing was written yet."""
        backing = memory.frames[memory.backing :]
        image = self._images.get(kinds)
        if image is None:
            load_memory(memory, self._header, kinds)
            self._images[kinds] = backing.copy()
            return
        backing[:] = image
        memory.written[memory.backing :] = memory.epoch


def run(scenario: Scenario, emit: EventSink | None = None) -> list[Result]:
    """Run a scenario and return the result of every op, ``init`` and ``teardown`` included.

    Raises
    ------
    InputError
        The scenario has an op that is not modelled yet.
    """
    return list(Runner(scenario, emit).results())
