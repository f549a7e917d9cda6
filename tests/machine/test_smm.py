"""System management mode: another address space, the MMU's roles, the way in and out.

What KVM does is in ``enter_smm`` (Linux 6.1 ``arch/x86/kvm/x86.c``) and ``em_rsm``
(``emulate.c``); which memory is seen, in ``kvm_arch_vcpu_memslots_id``.
"""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.invariants import Invariant, status, violations
from mmulab.kvm.roles.design import DESIGNS
from mmulab.kvm.state import Vcpu
from mmulab.machine import op as ops
from mmulab.machine.config import SlotConfig
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome, OutcomeKind
from mmulab.scenario.builder import FIRST_TABLE, ScenarioBuilder
from mmulab.scenario.runner import Result, Runner
from tests.kvm.guest import MIB, MODES
from tests.machine.random_guest import DATA, Layout, layout_of, random_machine
from tests.machine.test_architecture import Access, compare, guest_ops
from tests.machine.test_random_ops import BROKEN_BY_MMIO_SPTES

HOSTS: dict[str, tuple[str, dict[str, int]]] = {
    "amd": ("amd", {}),
    "amd-decode": ("amd", {"nrips": 1, "decode_assists": 1}),
    "amd-npt": ("amd", {"npt": 1, "tdp_mmu": 0}),
    "amd-npt-tdp-mmu": ("amd", {"npt": 1, "tdp_mmu": 1}),
    "intel": ("intel", {}),
    "intel-ept": ("intel", {"ept": 1, "unrestricted_guest": 1, "tdp_mmu": 0}),
    "intel-ept-tdp-mmu": ("intel", {"ept": 1, "unrestricted_guest": 1}),
}
SMM = 1 << 16
"""Slots of address space 1."""
MEM = 0x800000
ROOT, TABLES_AT = 0x10000, FIRST_TABLE
GVA = 0x40000000
PLACE = 0x300000
"""Where both address spaces have memory, but not the same."""
NORMAL, HIDDEN = 0xAAAA, 0xBBBB
HIDDEN_AT = 0x500000
SMRAM = 0x38000
"""SMBASE + 8000h: the handler; the manual's offsets into the state-save area count from here."""
CR0_OFFSET, SMBASE_OFFSET, CR3_OFFSET = 0x7F58, 0x7F00, 0x7F50
NOP_STUB, RSM_STUB = 0x18A0, 0x19F0
FACTS = DESIGNS["passthrough"].facts


def builder(host: str = "amd", mode: str = "64", **changes: int) -> ScenarioBuilder:
    """Return a guest that has memory of its own at PLACE in SMM, and maps it at GVA outside."""
    vendor, parameters = HOSTS[host]
    made = ScenarioBuilder(mode, vendor=vendor, host={**parameters, **changes}, mem=MEM, cpu={"pcid": 1})
    made.slot(0, 0, MEM)
    made.slot(SMM, 0, PLACE).slot(SMM | 1, PLACE, 0x1000, 0, HIDDEN_AT)
    made.slot(SMM | 2, PLACE + 0x1000, MEM - PLACE - 0x1000, 0, PLACE + 0x1000)
    if mode != "np":
        made.root(ROOT).map(GVA, PLACE)
    return made.value(4, PLACE, NORMAL).value(4, HIDDEN_AT, HIDDEN)


class Played:
    """Ops that were run, and the machine as the last of them left it.

    Attributes
    ----------
    all : list of Result
        Helpers included.
    steps : list of Result
        Of the ops as they were given.
    """

    def __init__(self, made: ScenarioBuilder, *texts: str) -> None:
        for text in texts:
            made.op(text)
        runner = Runner(made.build())
        self.machine = runner.machine
        self.all: list[Result] = []
        for result in runner.results():
            self.all.append(result)
            if result.index == len(texts) - 1 and not result.text.startswith("~"):
                break
        self.steps = [r for r in self.all if r.index >= 0 and not r.text.startswith("~")]

    @property
    def vcpu(self) -> Vcpu:
        return self.machine.kvm.vcpus[0]

    @property
    def registers(self) -> tuple[int, ...]:
        """CR0, CR3, CR4 and EFER."""
        return self.vcpu.cr0, self.vcpu.cr3, self.vcpu.cr4, self.vcpu.efer

    def outcome(self, number: int = -1) -> Outcome:
        return self.steps[number].outcome

    def of(self, kind: type) -> list[tuple[int, ev.Event]]:
        """Return the events of a type, each with the number of its op."""
        return [(r.index, e) for r in self.all for e in r.events if isinstance(e, kind)]


# Which memory -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("host", HOSTS)
def test_each_address_space_has_its_memory(host: str, mode: str) -> None:
    outside, inside = f"rd s 4 {PLACE if mode == 'np' else GVA:x}", f"rd s 4 {PLACE:x}"
    played = Played(builder(host, mode), outside, "smm on", inside, f"wr s 4 {PLACE:x} 7", "smm off", outside)
    assert [played.outcome(i).rax for i in (0, 2, 5)] == [NORMAL, HIDDEN, NORMAL]
    memory = played.machine.memory
    assert [memory.read((memory.backing << 12) + at, 4) for at in (PLACE, HIDDEN_AT)] == [NORMAL, 7]


@pytest.mark.parametrize("host", HOSTS)
def test_every_page_of_smm_has_it_in_its_role(host: str) -> None:
    read = f"rd s 4 {GVA:x}"
    played = Played(builder(host), read, "smm on", f"rd s 4 {PLACE:x}", "smm off", read)
    kvm = played.machine.kvm
    made = {(number, FACTS(e.role).smm) for number, e in played.of(ev.kvm_mmu_get_page)}
    made |= {(number, e.as_id) for number, e in played.of(ev.kvm_tdp_mmu_spte_changed)}
    assert {number for number, smm in made if smm} == {1, 2}
    assert {number for number, smm in made if not smm} >= {0}
    assert not {1, 2} & {number for number, smm in made if not smm}
    assert {sp.smm for sp in kvm.pages.values()} == {0, 1}
    assert all(sp.smm == FACTS(sp.role).smm for sp in kvm.pages.values())
    assert violations(kvm) == []


@pytest.mark.parametrize("host", ["amd-npt-tdp-mmu", "intel-ept-tdp-mmu"])
def test_the_tdp_mmu_has_a_root_for_each_address_space(host: str) -> None:
    played = Played(builder(host), f"rd s 4 {GVA:x}", "smm on", f"rd s 4 {PLACE:x}", "smm off", "nop")
    kvm = played.machine.kvm
    roots = list(kvm.tdp_mmu_roots)
    assert [kvm.pages[frame].smm for frame in roots] == [0, 1]
    assert played.vcpu.mmu.root_hpa == roots[0] << 12


@pytest.mark.parametrize("host", HOSTS)
def test_a_hole_of_smm_is_a_device_there_and_memory_outside(host: str) -> None:
    """The vCPU's last device translation goes with the change too (``kvm_mmu_unload``)."""
    vendor, parameters = HOSTS[host]
    made = ScenarioBuilder("np", vendor=vendor, host=parameters, mem=MEM).slot(SMM, 0, PLACE)
    made.value(4, PLACE, NORMAL)
    read = f"rd s 4 {PLACE:x}"
    played = Played(made, read, "smm on", read, "smm off", read)
    assert [played.outcome(i).mmio is not None for i in (0, 2, 4)] == [False, True, False]
    assert [played.outcome(i).rax for i in (0, 4)] == [NORMAL, NORMAL]


@pytest.mark.parametrize("host", HOSTS)
def test_the_dirty_log_is_the_address_spaces_own(host: str) -> None:
    log = [f"slot {SMM | 1:x} {PLACE:x} 1000 1 {HIDDEN_AT:x}", f"slot 0 0 {MEM:x} 1 0"]
    write, read = f"wr s 4 {PLACE:x} 1", [f"getdirty {SMM | 1:x}", "getdirty 0", f"getdirty {SMM:x}"]
    played = Played(builder(host), *log, "smm on", write, "smm off", *read)
    hidden, normal, unlogged = (result.outcome for result in played.steps[-3:])
    assert hidden.dirty == [0]
    assert normal.dirty is not None
    assert PLACE >> 12 not in normal.dirty
    assert unlogged.result == -2  # ENOENT


def test_the_state_save_area_is_logged() -> None:
    """``kvm_vcpu_write_guest`` marks the page dirty, in address space 1."""
    played = Played(builder(), f"slot {SMM:x} 0 {PLACE:x} 1 0", "smm on", f"getdirty {SMM:x}")
    assert 0x3F in (played.outcome().dirty or [])


def test_a_table_is_tracked_in_both_address_spaces() -> None:
    """A directory that is shadowed outside is write-protected in SMM, and the write reaches its shadow."""
    read = f"rd s 4 {GVA:x}"
    before = Played(builder(), read).machine.kvm
    gfn = next(sp.gfn for sp in before.pages.values() if sp.level == 2 and sp.gfn << 12 >= TABLES_AT)
    played = Played(builder(), read, "smm on", f"wr s 4 {gfn << 12:x} 2", "smm off", read)
    assert [(number, e.gpa) for number, e in played.of(ev.kvm_mmu_pte_write)] == [(2, gfn << 12)]
    assert played.steps[2].stats["mmu_pde_zapped"] == 1
    assert played.outcome().vector == 14


# In and out ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_the_handler_begins_in_real_mode_and_rsm_brings_everything_back(host: str) -> None:
    pcid = ("cr4 20020", f"cr3 {ROOT | 5:x}")
    wanted = Played(builder(host), *pcid).registers
    there = Played(builder(host), *pcid, "smm on")
    cr0, *rest = there.registers
    assert there.outcome().rip == 0x8001
    assert (there.vcpu.smm, cr0, *rest) == (1, wanted[0] & ~0x8000000D, ROOT | 5, 0, 0)
    back = Played(builder(host), *pcid, "smm on", "smm off")
    assert back.vcpu.smm == 0
    assert back.registers == wanted
    assert back.outcome().rip == NOP_STUB  # the SMI came before it


def test_the_events_of_the_way_in() -> None:
    """Two resets: with the address space (``kvm_smm_changed``), and at the end of ``enter_smm``."""
    played = Played(builder(), "nop", "smm on")
    events = played.steps[1].events
    reset = [ev.kvm_mmu_reset_context, ev.kvm_mmu_free_roots, ev.kvm_mmu_free_roots]
    assert [type(e) for e in events[:8]] == [ev.kvm_smm_transition, *reset, *reset, ev.kvm_mmu_load]
    assert events[0] == ev.kvm_smm_transition(0x30000, True)
    # The fetch faults at SMBASE + 8000h, then the VMM gets its #DB; RIP counts from the segment's base.
    assert [e.guest_rip for e in events if isinstance(e, ev.kvm_exit)] == [0x8000, 0x8001]
    assert [e.fault_address for e in events if isinstance(e, ev.kvm_page_fault)] == [SMRAM]


def test_without_ept_kvm_emulates_the_handlers_first_instruction() -> None:
    """No exit is told of, and no spte made for the handler's page (``handle_invalid_guest_state``)."""
    played = Played(builder("intel"), "nop", "smm on")
    entered = played.steps[1]
    assert [e for e in entered.events if isinstance(e, ev.kvm_exit | ev.kvm_mmu_set_spte)] == []
    assert entered.events[-1] == ev.kvm_emulate_insn(0x8000, 1, "90", False)
    assert entered.stats["insn_emulation"] == 1
    assert entered.outcome.rip == 0x8001


@pytest.mark.parametrize(("host", "reason"), [("amd", "rsm"), ("intel-ept", "ud"), ("intel", "ud")])
def test_the_events_of_the_way_out(host: str, reason: str) -> None:
    """Resets: leaving, then EFER, CR4 and CR0 as ``rsm_load_state_64`` loads them; CR3 is the same."""
    events = Played(builder(host), "nop", "smm on", "nop", "smm off").steps[3].events
    at = next(i for i, e in enumerate(events) if isinstance(e, ev.kvm_exit) and e.reason == reason)
    rest = [e for e in events[at + 1 :] if not isinstance(e, ev.kvm_mmu_free_roots)]
    assert rest[0] == ev.kvm_emulate_insn(RSM_STUB, 2, "0faa", False)
    assert rest[1] == ev.kvm_smm_transition(0x30000, False)
    assert [type(e) for e in rest[2:]] == [ev.kvm_mmu_reset_context] * 4


def test_the_guest_may_change_what_it_comes_back_to() -> None:
    """RSM loads what SMRAM holds, whoever wrote it: another CR3, another SMBASE."""
    other, far = 0x11000, 1 << 39
    made = builder().root(other).map(far, PLACE)
    changes = (f"wr s 4 {SMRAM + CR3_OFFSET:x} {other:x}", f"wr s 4 {SMRAM + SMBASE_OFFSET:x} 50000")
    played = Played(made, f"rd s 4 {far:x}", "smm on", *changes, "smm off", f"rd s 4 {far:x}", "smm on")
    assert played.vcpu.cr3 == other
    assert [played.outcome(i).vector for i in (0, 5)] == [None, 14]
    assert [e for number, e in played.of(ev.kvm_smm_transition) if number == 6] == [
        ev.kvm_smm_transition(0x50000, True)
    ]


def test_a_state_that_cannot_be_loaded_shuts_down() -> None:
    """CR0.PG without PE; ``em_rsm`` asks for a triple fault, which comes at the next entry."""
    played = Played(builder(), "smm on", f"wr s 4 {SMRAM + CR0_OFFSET:x} 80000000", "smm off", "nop")
    assert [played.outcome(i).kind for i in (2, 3)] == [OutcomeKind.OK, OutcomeKind.SHUTDOWN]


def test_without_memory_for_the_state_there_is_no_way_back() -> None:
    """``enter_smm`` does not look whether it was written; RSM cannot be emulated."""
    made = ScenarioBuilder("64", mem=MEM).slot(SMM, 0, 0x3F000).root(ROOT)
    played = Played(made, "smm on", "smm off")
    assert [result.outcome.kind for result in played.steps] == [OutcomeKind.OK, OutcomeKind.INTERNAL_ERROR]
    assert played.vcpu.smm == 1


@pytest.mark.parametrize("vendor", ["amd", "intel"])
def test_without_memory_for_the_handler_kvm_gives_up(vendor: str) -> None:
    played = Played(ScenarioBuilder("64", vendor=vendor, mem=MEM).root(ROOT), "smm on")
    assert played.outcome().kind is OutcomeKind.INTERNAL_ERROR
    tried = [(e.len, e.failed) for _, e in played.of(ev.kvm_emulate_insn)]
    assert tried == [(0, False), (0, True)]


def test_an_smi_in_smm_waits_for_rsm() -> None:
    """``svm_smi_allowed``: blocked in SMM, then taken before the next instruction."""
    played = Played(builder(), "smm on", "smm on", "smm off", f"rd s 4 {PLACE:x}")
    assert [result.outcome.rip for result in played.steps] == [0x8001, NOP_STUB + 1, NOP_STUB, 0x8001]
    assert [e.entering for _, e in played.of(ev.kvm_smm_transition)] == [True, False, True]


@pytest.mark.parametrize("host", HOSTS)
def test_outside_smm_rsm_is_undefined(host: str) -> None:
    outcome = Played(builder(host), "smm off").outcome()
    assert (outcome.kind, outcome.vector, outcome.rip) == (OutcomeKind.EXC, 6, RSM_STUB)


def test_a_32_bit_host_saves_the_state_in_the_older_layout() -> None:
    """No EFER in it, and none is loaded: NX stays on in SMM (``CONFIG_X86_64`` in ``enter_smm``)."""
    regs = tuple(Played(builder(mode="pae", x86_64=0), "nop").registers)
    there = Played(builder(mode="pae", x86_64=0), "smm on")
    memory = there.machine.memory
    base = (memory.backing << 12) + SMRAM
    saved = [memory.read(base + at, 4) for at in (0x7FFC, 0x7FF8, 0x7F14, 0x7EFC, 0x7EF8)]
    assert saved == [*regs[:3], 0x20000, 0x30000]
    assert there.vcpu.efer == regs[3]
    assert Played(builder(mode="pae", x86_64=0), "smm on", "smm off").registers == regs


@pytest.mark.parametrize(
    ("vendor", "host", "cpu", "why"),
    [
        ("intel", {"ept": 1}, {}, "on a host with ept=1 and unrestricted_guest=0"),
        ("amd", {}, {"lm": 0}, "for a guest with lm=0"),
    ],
)
def test_where_it_is_not_modelled(vendor: str, host: dict[str, int], cpu: dict[str, int], why: str) -> None:
    made = ScenarioBuilder("np", vendor=vendor, host=host, cpu=cpu).op("smm on")
    with pytest.raises(InputError, match=f"the op smm is not modelled {why}"):
        Runner(made.build())


@pytest.mark.parametrize("host", ["amd", "intel"])
def test_only_a_nop_is_decoded_in_real_mode(host: str) -> None:
    made = builder(host).value(1, SMRAM, 0x89)
    with pytest.raises(InputError, match="instruction at 0x38000: bytes 89909090 are not modelled"):
        Played(made, "smm on")


# Random guests --------------------------------------------------------------------------


def smm_slots(layout: Layout) -> tuple[SlotConfig, ...]:
    """Return slots of address space 1 that show other memory behind DATA and one table, else the same."""
    other, slots, gpa = 8 * MIB + 0x20000, [], 0
    for page in (*DATA, layout.tables[1][0]):
        slots += [SlotConfig(SMM + len(slots), gpa, page - gpa, 0, gpa)] if page > gpa else []
        slots.append(SlotConfig(SMM + len(slots), page, 0x1000, 0, other))
        other, gpa = other + 0x1000, page + 0x1000
    return (*slots, SlotConfig(SMM + len(slots), gpa, 8 * MIB - gpa, 0, gpa))


def smm_machine(seed: int, layout: Layout) -> Machine:
    """Make a random guest on AMD with an address space 1 of its own, and a handler that is a NOP."""
    machine = random_machine(2 * seed, layout, vcpus=1)
    for slot in smm_slots(layout):
        machine.execute(ops.SetMemslot(slot.id, slot.gpa, slot.size, slot.flags, slot.offset))
    machine.memory.write((machine.memory.backing << 12) + SMRAM, 1, 0x90)
    return machine


@pytest.mark.parametrize("name", MODES)
def test_a_flushed_access_is_what_the_guests_tables_say(name: str) -> None:
    """In and out of SMM, with paging and without; and nothing that must hold of the MMU is violated."""
    layout = layout_of(name)
    turns = st.sampled_from((ops.Smm(True), ops.Smm(False)))
    compared = [0, 0]

    @settings(max_examples=80, phases=[Phase.generate])
    @given(st.integers(0, 1 << 16), guest_ops(layout), st.lists(turns, min_size=40, max_size=40))
    def check(seed: int, listed: list[Op], turns: list[Op]) -> None:
        machine = smm_machine(seed, layout)
        if machine.config.host.vendor == "intel":
            return
        allowed = BROKEN_BY_MMIO_SPTES if machine.config.host.mmio_caching else Invariant.VALID
        vcpu = machine.kvm.vcpus[0]
        for number, (op, turn) in enumerate(zip(listed, turns, strict=False)):
            if not number % 5 and (isinstance(turn, ops.Smm) and turn.on != bool(vcpu.smm)):
                machine.execute(turn)
            if isinstance(op, Access):
                compared[vcpu.smm] += compare(machine, op)
            elif not isinstance(op, ops.HostWrite):
                machine.execute(op)
            assert not status(machine.kvm) & ~allowed, violations(machine.kvm)

    check()
    assert min(compared) > 50
