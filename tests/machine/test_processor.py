"""The processor under a guest: which tables it walks, with which control bits, and what it reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab import events as ev
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import OutcomeKind
from mmulab.machine.processor import (
    KNOWN_WAYS,
    GuestFault,
    NestedFault,
    ShadowFault,
    access,
    guest_canonical,
    host_paging,
    host_walk,
    linear_address,
    load_cr,
    nested_paging,
)
from mmulab.x86.mode import PAGING_4LEVEL, PAGING_5LEVEL, PAGING_PAE
from mmulab.x86.pferr import (
    PFERR_FETCH_MASK,
    PFERR_PK_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
)
from mmulab.x86.regs import EFER_NX, X86_CR0_WP, X86_CR4_PKE, X86_CR4_SMAP, X86_CR4_SMEP, CpuModel
from tests.kvm.guest import DATA, GVA, HOLE, NX, PAGE, A, D, Guest, P, U, W, cr4
from tests.scenario.texts import ran

R, WRITE, USER, FETCH = 0, PFERR_WRITE_MASK, PFERR_USER_MASK, PFERR_FETCH_MASK


def mapped(mode: str = "64", flags: int = PAGE, **config: object) -> Guest:
    guest = Guest(mode, **config)
    if mode != "np":
        guest.map(GVA, DATA, flags)
        guest.read(GVA)
    return guest


# One dimension -----------------------------------------------------------------------------


SHAPES = {"np": PAGING_PAE, "32": PAGING_PAE, "pae": PAGING_PAE, "64": PAGING_4LEVEL, "57": PAGING_5LEVEL}


@pytest.mark.parametrize(("mode", "shape"), SHAPES.items())
def test_shadow_tables_are_pae_or_the_guests_depth(mode: str, shape: object) -> None:
    """Write protection and NX are on whatever the guest has."""
    guest = Guest(mode, off=X86_CR0_WP | EFER_NX << 64)
    paging = host_paging(guest.vcpu, guest.machine.processor)
    assert paging.mode is shape
    assert paging.nx
    assert paging.wp
    assert paging.sets_ad


def test_smep_and_smap_are_the_guests_unless_it_does_not_page() -> None:
    bits = cr4(X86_CR4_SMEP | X86_CR4_SMAP)
    for mode, on in (("64", True), ("np", False)):
        guest = Guest(mode, on=bits)
        paging = host_paging(guest.vcpu, guest.machine.processor)
        faults = paging.permissions[FETCH >> 1] >> 7 & 1
        assert bool(faults) is on


def test_an_access_reads_the_frames_that_kvm_wrote() -> None:
    guest = mapped()
    assert access(guest.vcpu, guest.machine.processor, GVA | 0x123, R) == guest.hpa(DATA) | 0x123
    leaf = guest.sptep(GVA)
    guest.machine.memory.store64(leaf, guest.spte(GVA) + 0x1000)
    assert access(guest.vcpu, guest.machine.processor, GVA, R) == guest.hpa(DATA) + 0x1000


def test_a_walk_known_from_another_machine_holds_only_where_memory_says_the_same() -> None:
    first, second = mapped(), mapped()
    host = first.machine.processor
    assert host is second.machine.processor
    known = host_walk(first.vcpu, host, GVA, R)
    assert host_walk(second.vcpu, host, GVA, R) is known
    second.machine.memory.store64(second.sptep(GVA), second.spte(GVA) + 0x1000)
    assert host_walk(second.vcpu, host, GVA, R).pa == known.pa + 0x1000
    # What the other's tables say is known beside it.
    assert host_walk(first.vcpu, host, GVA, R) is known


def test_of_one_address_the_newest_walks_are_known() -> None:
    guest = mapped()
    host = replace(guest.machine.processor, known={})  # all machines of a host share what is known
    memory, sptep, spte = guest.machine.memory, guest.sptep(GVA), guest.spte(GVA)
    walks = []
    for page in range(KNOWN_WAYS + 1):
        memory.store64(sptep, spte + 0x1000 * page)
        walks.append(host_walk(guest.vcpu, host, GVA, R))
    for page in range(KNOWN_WAYS, 0, -1):
        memory.store64(sptep, spte + 0x1000 * page)
        assert host_walk(guest.vcpu, host, GVA, R) is walks[page]
    memory.store64(sptep, spte)
    again = host_walk(guest.vcpu, host, GVA, R)
    assert again is not walks[0]
    assert again.pa == walks[0].pa


def test_the_processor_sets_a_and_d_in_the_shadow_tables() -> None:
    guest = mapped()
    sptep = guest.sptep(GVA)
    guest.machine.memory.store64(sptep, guest.spte(GVA) & ~(A | D))
    host_walk(guest.vcpu, guest.machine.processor, GVA, R)
    assert guest.spte(GVA) & (A | D) == A
    host_walk(guest.vcpu, guest.machine.processor, GVA, WRITE)
    assert guest.spte(GVA) & (A | D) == A | D
    assert guest.load(guest.entry(GVA)) == DATA | PAGE


@pytest.mark.parametrize(
    ("gva", "kind", "error"),
    [
        (GVA, WRITE, PFERR_PRESENT_MASK | WRITE),
        (GVA + 0x1000, USER, USER),
        (GVA, FETCH | USER, PFERR_PRESENT_MASK | FETCH | USER),
    ],
)
def test_what_the_tables_do_not_allow_is_kvms(gva: int, kind: int, error: int) -> None:
    guest = mapped(flags=P | U | A | NX)
    with pytest.raises(ShadowFault) as fault:
        access(guest.vcpu, guest.machine.processor, gva, kind)
    assert (fault.value.va, fault.value.error_code) == (gva, error)


@pytest.mark.parametrize(("quirk", "present"), [(False, PFERR_PRESENT_MASK), (True, 0)])
def test_a_device_entry_faults_on_its_reserved_bit(quirk: bool, present: int) -> None:
    guest = Guest("64", host=HostConfig(rsvd_without_p=quirk)).map(GVA, HOLE)
    guest.read(GVA)
    with pytest.raises(ShadowFault) as fault:
        access(guest.vcpu, guest.machine.processor, GVA, R)
    assert fault.value.error_code == PFERR_RSVD_MASK | present


def test_ac_lifts_smap_from_explicit_accesses_only() -> None:
    guest = mapped(on=cr4(X86_CR4_SMAP), flags=PAGE & ~U)
    guest.map(GVA + 0x40000, DATA)
    guest.vcpu.ac = True
    guest.read(GVA + 0x40000, "a")
    guest.vcpu.ac = True
    assert access(guest.vcpu, guest.machine.processor, GVA + 0x40000, R)
    with pytest.raises(ShadowFault):
        access(guest.vcpu, guest.machine.processor, GVA + 0x40000, R, explicit=False)


# Two dimensions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "la57", "ept"), [("amd", False, False), ("amd", True, False), ("intel", False, True)]
)
def test_nested_tables_are_the_hosts_own_or_ept(vendor: str, la57: bool, ept: bool) -> None:
    guest = Guest("64", host=HostConfig(vendor=vendor, tdp=True, la57=la57))
    paging = nested_paging(guest.vcpu, guest.machine.processor)
    assert paging.ept is ept
    assert paging.mode.root_level == (5 if la57 else 4)


@pytest.mark.parametrize("vendor", ["amd", "intel"])
def test_the_guests_own_faults_are_the_guests(vendor: str) -> None:
    guest = mapped(flags=PAGE & ~U, host=HostConfig(vendor=vendor, tdp=True))
    with pytest.raises(GuestFault) as fault:
        access(guest.vcpu, guest.machine.processor, GVA, USER)
    assert (fault.value.va, fault.value.error_code) == (GVA, PFERR_PRESENT_MASK | USER)
    assert access(guest.vcpu, guest.machine.processor, GVA, R) == guest.hpa(DATA)


@pytest.mark.parametrize(("vendor", "kind"), [("amd", WRITE | USER), ("intel", WRITE | USER)])
def test_a_guest_table_that_is_not_mapped_is_a_nested_fault(vendor: str, kind: int) -> None:
    """NPT writes A, and EPT with A/D bits counts every walk as a write."""
    guest = Guest("64", host=HostConfig(vendor=vendor, tdp=True)).map(GVA, DATA)
    guest.read(GVA)
    guest.machine.memory.store64(guest.sptep(guest.table(GVA)), 0)
    with pytest.raises(NestedFault) as fault:
        access(guest.vcpu, guest.machine.processor, GVA, R)
    assert (fault.value.gpa, fault.value.va, fault.value.final) == (guest.entry(GVA), GVA, False)
    assert fault.value.kind == kind


def test_the_final_address_is_a_fault_of_its_own() -> None:
    guest = Guest("64", host=HostConfig(tdp=True)).map(GVA, HOLE)
    guest.read(GVA)
    with pytest.raises(NestedFault) as fault:
        access(guest.vcpu, guest.machine.processor, GVA | 8, WRITE)
    assert (fault.value.gpa, fault.value.final) == (HOLE | 8, True)
    assert fault.value.kind == WRITE | USER


def test_the_processor_itself_sets_the_guests_a_and_d() -> None:
    guest = Guest("64", host=HostConfig(tdp=True)).map(GVA, DATA, P | W | U)
    guest.write(GVA)
    assert guest.load(guest.entry(GVA)) & (A | D) == A | D


@pytest.mark.parametrize(("tdp", "fault"), [(False, ShadowFault), (True, NestedFault)])
def test_a_pae_root_is_read_anew(tdp: bool, fault: type[Exception]) -> None:
    """The walk before is known, and the tables below the root are as they were."""
    guest = mapped("32", host=HostConfig(tdp=tdp, tdp_mmu=False, x86_64=False))
    vcpu, host = guest.vcpu, guest.machine.processor
    assert access(vcpu, host, GVA, R) == access(vcpu, host, GVA, R) == guest.hpa(DATA)
    root = vcpu.mmu.root_hpa
    for word in range(4):
        guest.machine.memory.store64(root + 8 * word, 0)
    with pytest.raises(fault):
        access(vcpu, host, GVA, R)


# Control registers that are not intercepted ----------------------------------------------


def test_a_load_of_cr3_is_the_guests_own_business() -> None:
    guest = Guest("64", host=HostConfig(tdp=True)).map(GVA, DATA)
    other = guest.new_table()
    assert load_cr(guest.vcpu, guest.machine.processor, 3, other)
    assert guest.vcpu.cr3 == other


@pytest.mark.parametrize(("vendor", "fine"), [("intel", False), ("amd", True)])
def test_pdptes_are_checked_where_the_processor_keeps_them(vendor: str, fine: bool) -> None:
    """SDM 3, 4.4.1: MOV to CR3 loads and checks them; AMD's nested paging leaves them in memory."""
    guest = Guest("pae", host=HostConfig(vendor=vendor, tdp=True)).map(GVA, DATA)
    guest.read(GVA)
    other = guest.table(GVA)
    guest.poke(other, DATA | P | 2)
    assert load_cr(guest.vcpu, guest.machine.processor, 3, other) is fine
    assert guest.vcpu.cr3 == (other if fine else guest.root)
    guest.poke(other, DATA | P)
    assert load_cr(guest.vcpu, guest.machine.processor, 3, other)
    assert (guest.vcpu.walk_mmu.pdptrs[0] == DATA | P) is not fine


def test_reading_pdptes_may_need_the_nested_tables() -> None:
    guest = Guest("pae", host=HostConfig(vendor="intel", tdp=True)).map(GVA, DATA)
    guest.enter()
    with pytest.raises(NestedFault) as fault:
        load_cr(guest.vcpu, guest.machine.processor, 3, 0x200000)
    assert (fault.value.gpa, fault.value.va) == (0x200000, None)


# Addresses -------------------------------------------------------------------------------------


def test_outside_long_mode_an_address_has_32_bits() -> None:
    high = 0xFFFF800000000000 | GVA
    assert linear_address(Guest("64").vcpu, high) == high
    for mode in ("np", "32", "pae"):
        assert linear_address(Guest(mode).vcpu, high) == GVA
    guest = mapped("32")
    assert guest.read(high).hpa == guest.hpa(DATA)


@pytest.mark.parametrize(
    ("mode", "va", "canonical"),
    [
        ("64", 1 << 47, False),
        ("64", 0xFFFF800000000000, True),
        ("57", 1 << 47, True),
        ("57", 1 << 56, False),
        ("32", 0xFFFFFFFF, True),
    ],
)
def test_canonical_is_by_the_guests_mode(mode: str, va: int, canonical: bool) -> None:
    assert guest_canonical(Guest(mode).vcpu, va) is canonical


# A and D without EPT's own; PDPTEs at a MOV to CR0 --------------------------------------------


LOGGED = """host intel ept=1 eptad=0
{quirk}
mode 32
root 10000
alloc 20000
m4 10400 20067
m4 20000 100067 101007
ops
rd s 40000000
slot 0 0 1000000 1 0
rd s 40001000
getdirty 0"""


def test_setting_a_without_eptad_asks_ept_for_w() -> None:
    """The table is logged, so that EPT maps it without W: a read and write (SDM 3, table 28-7)."""
    *_, read, log = ran(LOGGED.format(quirk=""))
    exits = [
        e.qualification for e in read.events if isinstance(e, ev.kvm_exit) if e.reason == "ept_violation"
    ]
    assert exits == [0xAB, 0x181], "R W and the entry's rights R X; then the data page"
    assert log.outcome.dirty == [0x20, 0x101]


def test_an_emulator_may_set_a_behind_epts_back() -> None:
    *_, read, log = ran(LOGGED.format(quirk="quirk ad_ignores_ept_w"))
    exits = [
        e.qualification for e in read.events if isinstance(e, ev.kvm_exit) if e.reason == "ept_violation"
    ]
    assert exits == [0x181]
    assert log.outcome.dirty == [0x101]


@pytest.mark.parametrize(("quirk", "reads"), [("", False), ("quirk cr0_reloads_pdptes", True)])
def test_cr0_reads_the_pdptes_again_if_paging_or_caching_changes(quirk: str, reads: bool) -> None:
    """The page with the PDPTEs has left EPT since: by a memslot change that zaps everything."""
    text = f"host intel ept=1\n{quirk}\nmode pae\nroot 10000\nslot0 1000000\nslot 1 40000000 1000 0 0\nops"
    zapped = f"{text}\nrd s 1000\nslotdel 1\nnop"
    *_, wp = ran(f"{zapped}\ncr0 80000031")
    table = [e.fault_address for e in wp.events if isinstance(e, ev.kvm_page_fault)]
    assert wp.outcome.kind is OutcomeKind.OK
    assert (0x10000 in table) is reads


# Protection keys -------------------------------------------------------------------------------------


def test_a_key_forbids_what_pkru_says_while_pke_is_set() -> None:
    """Under two-dimensional paging alone; the processor faults by itself, and KVM sees nothing."""
    key = 3
    guest = Guest("64", on=cr4(X86_CR4_PKE), host=HostConfig(tdp=True), cpu=CpuModel(maxphyaddr=40, pku=True))
    guest.map(GVA, DATA, PAGE | key << 59)
    guest.read(GVA)
    assert guest.machine.execute(ops.SetPkru(2 << 2 * key)).result == 0
    with guest.watch() as seen:
        assert guest.read(GVA, "u").kind is OutcomeKind.OK
        fault = guest.write(GVA, mode="u")
    assert (fault.vector, fault.error_code, fault.cr2) == (14, P | W | U | PFERR_PK_MASK, GVA)
    assert seen == []
    guest.machine.execute(ops.SetPkru(1 << 2 * key))
    assert guest.read(GVA).error_code == P | PFERR_PK_MASK
    assert guest.fetch(GVA).kind is OutcomeKind.OK
    guest.machine.execute(ops.WriteCr(4, guest.vcpu.cr4 & ~X86_CR4_PKE))
    assert guest.read(GVA).kind is OutcomeKind.OK


def test_each_vcpu_has_its_pkru() -> None:
    guest = Guest("np", vcpus=2)
    guest.machine.execute(ops.SetPkru(0xC, vcpu=1))
    assert [vcpu.pkru for vcpu in guest.kvm.vcpus] == [0, 0xC]


def test_shadow_paging_has_no_protection_keys() -> None:
    """Whatever the guest's CPUID says (``kvm_set_cpu_caps``)."""
    guest = Guest("64", cpu=CpuModel(maxphyaddr=40, pku=True)).map(GVA, DATA, PAGE | 3 << 59)
    assert guest.machine.execute(ops.SetPkru(0xFFFFFFFF)).result == 0
    done = guest.machine.execute(ops.WriteCr(4, guest.vcpu.cr4 | X86_CR4_PKE))
    assert (done.kind, done.vector) == (OutcomeKind.EXC, 13)
    assert guest.read(GVA, "u").kind is OutcomeKind.OK
