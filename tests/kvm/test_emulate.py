"""The emulator: its walks, its memory operands, its retries."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.emulate import EmulationType, Verdict, x86_emulate_instruction
from mmulab.kvm.inject import UD_VECTOR
from mmulab.machine import op as ops
from mmulab.machine.config import Stubs
from mmulab.machine.op import Mmio, OutcomeKind
from mmulab.memory.memslots import KVM_MEM_READONLY
from mmulab.x86.insn import Instruction, Mnemonic
from mmulab.x86.pferr import PF_VECTOR
from tests.kvm.guest import DATA, GVA, HOLE, PAGE, D, Guest, U

CODE = GVA + 0x200000
"""An address at which tests let an instruction lie."""
WINDOW = GVA + 0x1000
FAULT = EmulationType(page_fault=True)


def emulate(guest: Guest, mnemonic: Mnemonic, gva: int, kind: EmulationType = FAULT, **more: int) -> Verdict:
    guest.enter()
    return x86_emulate_instruction(guest.vcpu, gva, kind, Instruction(mnemonic, gva=gva, **more))


def tracked_guest() -> Guest:
    """A guest that has a page directory in use, and mapped at :data:`WINDOW`."""
    guest = Guest("64").map(GVA, DATA)
    guest.map(WINDOW, guest.table(GVA, 2))
    guest.read(GVA)
    guest.read(WINDOW)
    return guest


# Operands -------------------------------------------------------------------------------


def test_a_load_reads_and_a_store_writes(guest: Guest) -> None:
    guest.poke(DATA + 8, 0x1122334455667788)
    assert emulate(guest, Mnemonic.LOAD, GVA + 8, size=8) is Verdict.DONE
    assert guest.vcpu.emulation.result == 0x1122334455667788
    assert emulate(guest, Mnemonic.STORE, GVA + 8, size=4, value=0xAABBCCDD) is Verdict.DONE
    assert guest.load(DATA + 8) == 0x11223344AABBCCDD


@pytest.mark.parametrize(("old", "zf", "after"), [(5, 1, 9), (6, 0, 5)])
def test_cmpxchg8b_writes_in_either_case(guest: Guest, old: int, zf: int, after: int) -> None:
    guest.poke(DATA, 5)
    assert emulate(guest, Mnemonic.CMPXCHG8B, GVA, size=8, value=9, old=old) is Verdict.DONE
    assert (guest.vcpu.emulation.zf, guest.load(DATA)) == (zf, after)
    assert guest.of(ev.kvm_mmu_pte_write)[-1] == ev.kvm_mmu_pte_write(DATA, 8)


def test_xchg_walks_for_the_read_and_for_the_write(guest: Guest) -> None:
    guest.poke(DATA, 5)
    guest.enter()
    with guest.watch() as seen:
        assert emulate(guest, Mnemonic.XCHG, GVA, size=4, value=7) is Verdict.DONE
    assert [e.pferr for e in seen if isinstance(e, ev.kvm_mmu_pagetable_walk)] == [0, 2]
    assert (guest.vcpu.emulation.result, guest.load(DATA)) == (5, 7)


def test_a_byte_added_wraps(guest: Guest) -> None:
    guest.poke(DATA, 0xFF, 1)
    assert emulate(guest, Mnemonic.ADD, GVA, size=1, value=2) is Verdict.DONE
    assert guest.load(DATA, 2) == 1


def test_a_fault_of_an_operand_goes_to_the_guest(guest: Guest) -> None:
    assert emulate(guest, Mnemonic.LOAD, GVA + 0x5000, size=4) is Verdict.RESUME
    assert guest.vcpu.exception == (PF_VECTOR, 0, GVA + 0x5000)


@pytest.mark.parametrize("mnemonic", [Mnemonic.XCHG, Mnemonic.CMPXCHG8B, Mnemonic.ADD])
def test_the_read_of_an_operand_to_be_written_faults_as_a_write(guest: Guest, mnemonic: Mnemonic) -> None:
    emulate(guest, mnemonic, GVA + 0x5000, size=4)
    assert guest.vcpu.exception == (PF_VECTOR, 2, GVA + 0x5000)


def test_an_operand_over_a_page_border_is_two_accesses(guest: Guest) -> None:
    guest.map(GVA + 0x1000, DATA + 0x5000)
    guest.enter()
    with guest.watch() as seen:
        assert emulate(guest, Mnemonic.STORE, GVA + 0xFFE, size=4, value=0x44332211) is Verdict.DONE
    assert guest.load(DATA + 0xFFE, 2) == 0x2211
    assert guest.load(DATA + 0x5000, 2) == 0x4433
    assert [(e.gpa, e.bytes) for e in seen if isinstance(e, ev.kvm_mmu_pte_write)] == [
        (DATA + 0xFFE, 2),
        (DATA + 0x5000, 2),
    ]


# Devices -----------------------------------------------------------------------------------


def test_a_locked_write_to_a_device_is_a_plain_one() -> None:
    guest = Guest("64").map(GVA, HOLE)
    guest.read(GVA)
    assert emulate(guest, Mnemonic.XCHG, GVA, size=4, value=7) is Verdict.MMIO
    access = guest.vcpu.emulation.mmio
    assert [(m.write, m.gpa, m.value) for m in access] == [(False, HOLE, 0xD0D0D0D0), (True, HOLE, 7)]
    assert guest.vcpu.stat["mmio_exits"] == 2


def test_of_an_operand_half_in_a_device_only_that_half_is_left_to_the_vmm() -> None:
    guest = Guest("64").map(GVA, DATA).map(GVA + 0x1000, HOLE)
    outcome = guest.write(GVA + 0xFFE, 0x44332211)
    assert outcome.mmio == [Mmio(True, HOLE, 2, 0x4433)]
    assert guest.load(DATA + 0xFFE, 2) == 0x2211


def test_a_read_only_slot_is_a_device_for_writes_only() -> None:
    rom = 0x2000000
    guest = Guest("64").map(GVA, rom)
    guest.machine.execute(ops.SetMemslot(1, rom, 0x1000, KVM_MEM_READONLY, DATA))
    guest.poke(DATA, 5)
    assert emulate(guest, Mnemonic.ADD, GVA, size=1, value=2) is Verdict.MMIO
    assert [(m.write, m.value) for m in guest.vcpu.emulation.mmio] == [(True, 7)]


def test_known_device_addresses_are_not_walked_unless_the_rights_forbid() -> None:
    guest = Guest("64").map(GVA, HOLE, PAGE & ~U)
    guest.read(GVA)
    with guest.watch() as seen:
        guest.read(GVA + 4)
    assert not any(isinstance(e, ev.kvm_mmu_pagetable_walk) for e in seen)
    outcome = guest.read(GVA, "u")
    assert (outcome.kind, outcome.error_code) == (OutcomeKind.EXC, 5)


# The opcode -------------------------------------------------------------------------------------


def with_code(mapped: bool = True) -> Guest:
    guest = Guest("64", stubs=Stubs(CODE, CODE)).map(GVA, DATA)
    if mapped:
        guest.map(CODE, DATA + 0x1000)
    return guest


def at_code(mnemonic: Mnemonic = Mnemonic.STORE) -> Instruction:
    return Instruction(mnemonic, CODE, b"\x89\x03", GVA, 4, 7)


def test_the_opcode_is_fetched_by_a_walk_of_its_own() -> None:
    guest = with_code()
    guest.vcpu.cr3 = guest.root
    with guest.watch() as seen:
        assert x86_emulate_instruction(guest.vcpu, GVA, FAULT, at_code()) is Verdict.DONE
    walks = [(e.addr, e.pferr) for e in seen if isinstance(e, ev.kvm_mmu_pagetable_walk)]
    assert walks == [(CODE, 16), (GVA, 2)]
    assert ev.kvm_emulate_insn(CODE, 2, "8903", False) in seen


def test_what_is_only_skipped_needs_its_opcode_too() -> None:
    guest = with_code()
    with guest.watch() as seen:
        assert x86_emulate_instruction(guest.vcpu, 0, EmulationType(skip=True), at_code()) is Verdict.DONE
    assert [e.addr for e in seen if isinstance(e, ev.kvm_mmu_pagetable_walk)] == [CODE]
    assert guest.load(DATA, 4) == 0


def test_an_opcode_that_cannot_be_fetched_faults() -> None:
    guest = with_code(mapped=False)
    assert x86_emulate_instruction(guest.vcpu, GVA, FAULT, at_code()) is Verdict.RESUME
    assert guest.vcpu.exception == (PF_VECTOR, 16, CODE)


@pytest.mark.parametrize(("cpl", "verdict"), [(0, Verdict.FAILED), (3, Verdict.RESUME)])
def test_an_opcode_in_no_memory_is_an_internal_error_or_ud(cpl: int, verdict: Verdict) -> None:
    """``handle_emulation_failure``: the VMM is told only about the kernel's."""
    guest = with_code().map(CODE, HOLE)
    guest.vcpu.cpl = cpl
    with guest.watch() as seen:
        assert x86_emulate_instruction(guest.vcpu, GVA, FAULT, at_code()) is verdict
    assert seen[-1] == ev.kvm_emulate_insn(CODE, 0, "", True)
    assert guest.vcpu.exception == (UD_VECTOR, None, None)
    assert guest.vcpu.stat["insn_emulation_fail"] == 1


# Retries -------------------------------------------------------------------------------------------


def test_a_usual_writer_of_tables_is_emulated() -> None:
    guest = tracked_guest()
    assert guest.write(WINDOW + 0xFF8, 1).kind is OutcomeKind.OK
    assert not guest.of(ev.kvm_mmu_unprotect_page)
    assert guest.page(GVA, 2)


def test_another_instruction_gets_the_page_unprotected() -> None:
    """``retry_instruction``: it is no table any more, so its shadow pages go and the guest tries again."""
    guest = tracked_guest()
    kind = EmulationType(page_fault=True, allow_retry=True)
    with guest.watch() as seen:
        assert emulate(guest, Mnemonic.ADD, WINDOW + 0xFF8, kind, size=1, value=1) is Verdict.RESUME
    gfn = guest.table(GVA, 2) >> 12
    assert ev.kvm_mmu_unprotect_page(gfn) in seen
    assert not guest.pages(gfn)
    assert guest.load(guest.table(GVA, 2) + 0xFF8, 1) == 0


def test_the_same_instruction_at_the_same_address_is_not_retried_twice() -> None:
    guest = tracked_guest()
    kind = EmulationType(page_fault=True, allow_retry=True)
    verdicts = [emulate(guest, Mnemonic.ADD, GVA, kind, size=1, value=1) for _ in range(3)]
    assert verdicts == [Verdict.RESUME, Verdict.DONE, Verdict.RESUME]


def test_an_emulation_that_is_no_faults_is_not_retried() -> None:
    guest = tracked_guest()
    assert emulate(guest, Mnemonic.ADD, GVA, EmulationType(), size=1, value=1) is Verdict.DONE


@pytest.mark.parametrize(("gva", "retried"), [(GVA + 8, False), (8, True)])
def test_a_load_from_a_device_at_page_0_sets_d(gva: int, retried: bool) -> None:
    """The MMIO cache has 0 for nothing, so the load is retried first; and to find what to
    unprotect, ``retry_instruction`` walks as for a write.
    """
    guest = Guest("64").map(gva & ~0xFFF, HOLE, PAGE & ~D)
    assert guest.read(gva).mmio
    assert bool(guest.of(ev.kvm_mmu_unprotect_page)) is retried
    assert bool(guest.load(guest.entry(gva)) & D) is retried
