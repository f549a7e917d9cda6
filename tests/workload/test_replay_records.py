"""Records of every kind, on streams made by hand: narrow stores, control registers, INVLPG, devices."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.x86.regs import X86_CR4_PSE, X86_CR4_SMAP, X86_CR4_SMEP
from tests.workload.replays import KERNEL_PAGE, USER_PAGE, agrees, differs, two_pages
from tests.workload.streams import CR4_EFER, LONG, PAGE, PAGING_NAMES, Guest, U

ALL_MODES = pytest.mark.parametrize("paging", PAGING_NAMES)


# Table stores of other sizes --------------------------------------------------


@ALL_MODES
def test_a_narrow_store_writes_its_bytes(paging: str) -> None:
    guest = Guest(paging)
    gpa = guest.entry_gpa(1, 0x60000)
    guest.store(gpa, gpa, 1, 0xABCDE0 | PAGE, 1, narrow=True)
    guest.store(gpa + 2, gpa, 1, 0x7F0000, 1, narrow=True)
    guest.store(gpa + 1, gpa, 1, 0x001200, 1, narrow=True)
    run = agrees(guest)
    assert run.memory(gpa, guest.width) == 0x7F1200 | 0xE0 | PAGE


def test_a_pae_entry_in_two_halves() -> None:
    guest = Guest("pae")
    gpa = guest.entry_gpa(1, 0x60000)
    guest.read(0x60000, 0x60000)
    guest.store(gpa + 4, gpa, 1, 0x8000_0000_0006_0000 | PAGE, 4, narrow=True)
    guest.store(gpa, gpa, 1, 0x8000_0000_0007_0000 | PAGE, 4, narrow=True)
    guest.invlpg(0x60000)
    guest.read(0x60000, 0x70000)
    run = agrees(guest)
    assert run.memory(gpa, 8) == 0x8000_0000_0007_0000 | PAGE


def test_a_misaligned_store_ends_with_its_entry() -> None:
    guest = Guest("32")
    gpa = guest.entry_gpa(1, 0x60000)
    guest.store(gpa + 2, gpa, 1, 0x1234_5678, 4, narrow=True)
    run = agrees(guest)
    assert run.memory(gpa, 4) == 0x1234_0000 | (0x60000 | PAGE) & 0xFFFF
    assert run.memory(gpa + 4, 4) == 0x61000 | PAGE


# Control registers and INVLPG -------------------------------------------------


def test_cr4_pse_makes_large_pages() -> None:
    guest = Guest("32")
    high = 1 << 22
    guest.set_entry(high, 0x800000 | PAGE | U | 1 << 7, level=2)
    guest.control(4, X86_CR4_PSE)
    guest.read(high + 0x5000, 0x805000, cpl=3)
    run = agrees(guest)
    assert run.replay.machine.kvm.vcpus[0].cr4 == X86_CR4_PSE


def test_cr0_and_efer_are_written() -> None:
    guest = Guest("4level")
    _, efer = CR4_EFER["4level"]
    guest.control(8, efer | 1)
    cd = guest.registers.cr0 | 1 << 30
    guest.control(0, cd)
    guest.read(KERNEL_PAGE, KERNEL_PAGE)
    run = agrees(guest)
    vcpu = run.replay.machine.kvm.vcpus[0]
    assert (vcpu.efer, vcpu.cr0) == (LONG | 1, cd)


@ALL_MODES
def test_invlpg_forgets_one_page(paging: str) -> None:
    guest = Guest(paging)
    guest.read(0x60000, 0x60000)
    guest.set_entry(0x60000, 0x70000 | PAGE)
    guest.read(0x62000, 0x62000)
    guest.set_entry(0x60000, 0x80000 | PAGE)
    guest.invlpg(0x60000)
    guest.read(0x60000, 0x80000)
    agrees(guest)


@ALL_MODES
def test_a_load_of_cr3_forgets_all(paging: str) -> None:
    """The table is out of sync: KVM looks at it again only when it serves the load's request."""
    guest = Guest(paging)
    guest.set_entry(0x62000, 0x62000 | PAGE)
    guest.read(0x60000, 0x60000)
    guest.set_entry(0x60000, 0x70000 | PAGE)
    guest.control(3, guest.registers.cr3)
    guest.read(0x60000, 0x70000)
    run = agrees(guest)
    assert run.result.stats["mmu_pte_write"] == 0


@ALL_MODES
@pytest.mark.parametrize("smep", [False, True])
def test_the_processor_follows_cr4(paging: str, smep: bool) -> None:
    """KVM finds the same shadow pages again, so only the processor's own SMEP tells the two apart."""
    guest = two_pages(paging)
    guest.fetch(USER_PAGE, USER_PAGE)
    guest.control(4, guest.registers.cr4 | (X86_CR4_SMEP if smep else X86_CR4_SMAP))
    record = guest.fetch(USER_PAGE, USER_PAGE)
    if smep:
        differs(guest, record)
    else:
        agrees(guest)


# Devices ----------------------------------------------------------------------


@ALL_MODES
@pytest.mark.parametrize("gpa", [0xFEE00000, 0xA0000], ids=["beyond the memory", "a hole in it"])
def test_device_accesses_leave_the_guest(paging: str, gpa: int) -> None:
    guest = Guest(paging)
    guest.set_entry(0x60000, gpa | PAGE)
    guest.invlpg(0x60000)
    guest.read(0x60000, gpa, device=True)
    guest.write(0x60000, gpa, size=2, device=True)
    guest.read(0x60000, gpa, size=8, device=True)
    guest.read(0x9F000, 0x9F000)
    guest.read(0xA1000, 0xA1000)
    run = agrees(guest)
    mmio = run.of(ev.kvm_mmio)
    assert [event.gpa for event in mmio if event.type in ("read", "write")] == [gpa, gpa, gpa]
    assert [event.len for event in mmio if event.type in ("read", "write")] == [4, 2, 8]
    assert run.result.stats["mmio_exits"] == 3


def test_another_device_is_a_mismatch() -> None:
    guest = Guest("32")
    guest.set_entry(0x60000, 0xFED00000 | PAGE)
    guest.invlpg(0x60000)
    run = differs(guest, guest.read(0x60000, 0xFEE00000, device=True))
    assert run.result.mismatch is not None
    assert run.result.mismatch.reached == 0xFED00000


def test_memory_in_place_of_a_device_is_a_mismatch() -> None:
    guest = Guest("32")
    guest.read(0x60000, 0x60000)
    differs(guest, guest.read(0x60000, 0xFEE00000, device=True))


def test_a_device_in_place_of_memory_is_a_mismatch() -> None:
    guest = Guest("32")
    guest.set_entry(0x60000, 0xFEE00000 | PAGE)
    guest.invlpg(0x60000)
    run = differs(guest, guest.write(0x60000, 0x60000))
    assert run.result.mismatch is not None
    assert run.result.mismatch.reached == 0xFEE00000
    assert run.result.mismatch.what == "KVM's handling of its fault leads to a device"
