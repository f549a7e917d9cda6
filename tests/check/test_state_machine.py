"""Hypothesis plays guest and host by rules of its own, and every watcher looks at each op."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from mmulab.check.area import Area, Entry, leaf_flags, link_flags
from mmulab.check.asserted import Asserted
from mmulab.check.finding import Finding, MakeWatcher
from mmulab.check.guest import CONTROL_BLOCKS, Plan, plan
from mmulab.check.guests import GUESTS
from mmulab.check.known import beyond
from mmulab.check.mmu import Invariants
from mmulab.check.oracle import Oracle
from mmulab.check.tlb import Adversary
from mmulab.check.trial import make_bench
from mmulab.errors import DesignError, InputError
from mmulab.kvm.assertions import host_died
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1, find_kernel
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmulab.scenario.grammar import Step
from mmulab.scenario.runner import Result, Runner
from mmulab.scenario.tables import PAGE, mode_of
from mmulab.x86.mode import NONPAGING, PT64_NX_MASK, PT_USER_MASK, PT_WRITABLE_MASK
from mmulab.x86.regs import EFER_LMA, X86_CR0_WP, X86_CR4_SMAP, X86_CR4_SMEP

WATCHERS = (Oracle, Asserted, Invariants, Adversary)
RIGHTS = (0, 0, PT_WRITABLE_MASK, PT_USER_MASK, PT64_NX_MASK)
"""What an entry may lack of every right; NX is what it may have besides."""
CONTROL_BITS = ((0, X86_CR0_WP), (4, X86_CR4_SMEP), (4, X86_CR4_SMAP))
MODES = st.sampled_from((Mode.SUPERVISOR, Mode.USER, Mode.SUPERVISOR_AC))


@cache
def plan_of(guest: str) -> Plan:
    """Return the plan of a guest, which takes longer to make than an example to run."""
    return plan(GUESTS[guest])


class SmallGuest(RuleBasedStateMachine):
    """A guest and its host, op by op."""

    kernel: ClassVar[Kernel] = LINUX_6_1
    guest: ClassVar[str] = "shadow-64"
    watching: ClassVar[tuple[MakeWatcher, ...]] = WATCHERS

    def __init__(self) -> None:
        super().__init__()
        self.plan = plan_of(self.guest)
        bench = make_bench(self.plan.scenario, self.kernel, ())
        self.runner = Runner(self.plan.scenario, config=bench.config)
        self.watchers = [make(self.runner.machine) for make in beyond(self.watching, {})]
        self.steps = 0
        self.refused = False
        self.look(self.runner.begin())
        for step in self.plan.scenario.steps:
            self.run(step.op, step.when)

    def look(self, results: Iterator[Result]) -> None:
        """Let the watchers see each result; what they find is a failure."""
        for result in results:
            found: list[Finding] = [f for f in (watcher.after(result) for watcher in self.watchers) if f]
            assert not found, "\n".join(map(str, found))

    def run(self, op: Op, when: str = "") -> None:
        """Execute an op where its condition holds; after one that cannot be done here, none is."""
        if self.is_over:
            return
        try:
            self.look(self.runner.step(self.steps, Step(op, when)))
        except DesignError:
            raise  # the op is not at fault
        except (InputError, NotImplementedError):
            self.refused = True
        self.steps += 1

    @property
    def is_over(self) -> bool:
        """Whether the guest has shut down, the host died, or an op could not be done."""
        return self.refused or self.runner.ended or host_died(self.runner.machine.kvm)

    def vcpu(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, self.plan.guest.vcpus - 1), "vcpu")

    def area(self, data: st.DataObject) -> Area:
        areas = {area.name + area.mode.name: area for area in self.plan.areas}
        return areas[data.draw(st.sampled_from(list(areas)), "area")]

    @rule(data=st.data(), mode=MODES, kind=st.sampled_from(("read", "write", "execute")))
    def access(self, data: st.DataObject, mode: Mode, kind: str) -> None:
        """A vCPU, in L1 or L2 as it is, meets an address of an area."""
        address, vcpu = data.draw(st.sampled_from(self.area(data).addresses), "address"), self.vcpu(data)
        kinds: dict[str, Op] = {
            "read": ops.Read(mode, 4, address, vcpu=vcpu),
            "write": ops.Write(mode, 4, address | 8, 0x55AA5590, vcpu=vcpu),
            "execute": ops.Execute(mode, address | 0x800, vcpu=vcpu),
        }
        self.run(kinds[kind])

    @rule(data=st.data(), lacks=st.sampled_from(RIGHTS), linked=st.booleans(), by_host=st.booleans())
    def change(self, data: st.DataObject, lacks: int, linked: bool, by_host: bool) -> None:
        """An entry becomes a link or a page with most rights, or nothing."""
        area = self.area(data)
        entry = data.draw(st.sampled_from(area.entries), "entry")
        value = self.value(data, area, entry, linked) ^ lacks if data.draw(st.booleans(), "present") else 0
        value &= (1 << 8 * area.mode.entry_bytes) - 1
        size, long_mode = area.mode.entry_bytes, bool(self.plan.regs.efer & EFER_LMA)
        if by_host or (size == 8 and not long_mode):
            self.run(ops.HostWrite(size, entry.gpa, value))
        else:
            self.run(ops.Write(Mode.SUPERVISOR, size, entry.gpa, value, vcpu=self.vcpu(data)), "?")

    def value(self, data: st.DataObject, area: Area, entry: Entry, linked: bool) -> int:
        if entry.level > 1 and (linked or entry.level > 2):
            table = data.draw(st.sampled_from(area.tables[entry.level - 1]), "table")
            return table | link_flags(area.mode, entry.level, area.ept)
        if entry.level > 1:
            return leaf_flags(entry.level, area.ept)  # of frame 0
        return data.draw(st.sampled_from(area.targets), "page") | leaf_flags(1, area.ept)

    @rule(data=st.data())
    def invlpg(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(self.area(data).addresses), "address")
        self.run(ops.Invlpg(address, vcpu=self.vcpu(data)))

    @precondition(lambda self: mode_of(self.plan.regs) is not NONPAGING)
    @rule(data=st.data(), number=st.integers(0, 1))
    def load_cr3(self, data: st.DataObject, number: int) -> None:
        self.run(ops.WriteCr(3, self.plan.areas[0].roots[number], vcpu=self.vcpu(data)), "?")

    @rule(data=st.data(), control=st.sampled_from(CONTROL_BITS))
    def flip_control_bit(self, data: st.DataObject, control: tuple[int, int]) -> None:
        number, bit = control
        vcpu = self.runner.machine.kvm.vcpus[self.vcpu(data)]
        held = vcpu.cr0 if number == 0 else vcpu.cr4
        self.run(ops.WriteCr(number, held ^ bit, vcpu=vcpu.id), "?")

    @precondition(lambda self: bool(self.plan.guest.l2))
    @rule(data=st.data(), inside=st.booleans())
    def change_world(self, data: st.DataObject, inside: bool) -> None:
        """L1 enters a guest of its own, or that one leaves."""
        vcpu = self.vcpu(data)
        if inside:
            block = data.draw(st.sampled_from(CONTROL_BLOCKS[: len(self.plan.l2_regs)]), "block")
            self.run(ops.Vmrun(block, vcpu=vcpu), "?")
        else:
            leave = ops.Vmcall if self.plan.guest.vendor == "intel" else ops.Vmmcall
            self.run(leave(vcpu=vcpu), "!")

    @rule(data=st.data(), what=st.sampled_from(("delete", "make", "log", "read the log")))
    def slot(self, data: st.DataObject, what: str) -> None:
        slot = data.draw(st.sampled_from(self.plan.slots), "slot")
        flags = KVM_MEM_LOG_DIRTY_PAGES if what == "log" else 0
        kinds: dict[str, Op] = {
            "delete": ops.DeleteMemslot(slot.id),
            "read the log": ops.GetDirtyLog(slot.id),
        }
        self.run(kinds.get(what, ops.SetMemslot(slot.id, slot.gpa, slot.size, flags, slot.offset)))

    @rule(data=st.data(), ages=st.booleans())
    def host(self, data: st.DataObject, ages: bool) -> None:
        """The host takes a page back for a moment, or asks whether it was used."""
        pages = (*self.plan.tables, *(slot.offset for slot in self.plan.slots))
        page = data.draw(st.sampled_from(pages), "page")
        self.run(ops.Age(page, PAGE) if ages else ops.InvalidateHva(page, PAGE))


def run_machine(
    guest: str,
    kernel: Kernel,
    examples: int,
    steps: int,
    watching: tuple[MakeWatcher, ...] = WATCHERS,
) -> None:
    """Run the machine of a guest under a kernel; raise what is found, as it is found."""
    changes = {"guest": guest, "kernel": kernel, "watching": watching}
    run_state_machine_as_test(
        type("SmallGuest", (SmallGuest,), changes),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=(Phase.generate,),
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )


@pytest.mark.parametrize("guest", ["shadow-32", "shadow-64", "shadow-pae", "nested-npt-64-64+pae"])
def test_no_rule_makes_the_right_kernel_wrong(guest: str) -> None:
    run_machine(guest, LINUX_6_1, examples=8, steps=30)


WITH_TABLES = [name for name, guest in GUESTS.items() if plan(guest).areas]
"""The rules are about tables; a guest without paging has none."""


@pytest.mark.slow
@pytest.mark.parametrize("guest", WITH_TABLES)
def test_no_rule_makes_the_right_kernel_wrong_in_any_guest(guest: str) -> None:
    run_machine(guest, LINUX_6_1, examples=5, steps=40)


@pytest.mark.parametrize(
    ("guest", "bug", "watching", "found"),
    [
        pytest.param("shadow-32", "B17", (Oracle,), "outcome", id="B17-oracle", marks=pytest.mark.slow),
        pytest.param("shadow-32", "B17", (Invariants,), "invariant QUADRANT", id="B17-invariants"),
    ],
)
def test_it_finds_a_bug_that_is_switched_on(
    guest: str, bug: str, watching: tuple[MakeWatcher, ...], found: str
) -> None:
    with pytest.raises(AssertionError, match=f"^op .*: {found}"):
        run_machine(guest, find_kernel(f"6.1+{bug}"), 400, 40, watching)
