"""INVPCID: which roots it refreshes or frees, and what it asks for at the next entry.

The rules are those of ``kvm_handle_invpcid`` and ``kvm_invalidate_pcid`` (Linux 6.1
``arch/x86/kvm/x86.c``) and of ``kvm_mmu_invpcid_gva`` (``mmu/mmu.c``).
"""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.kvm.emulate import Verdict
from mmulab.kvm.invariants import violations
from mmulab.kvm.invpcid import invpcid_is_allowed, invpcid_is_undefined, kvm_handle_invpcid
from mmulab.kvm.mmu import INVALID_PAGE
from mmulab.kvm.state import Request
from mmulab.machine.config import HostConfig
from mmulab.x86.regs import X86_CR3_PCID_NOFLUSH, X86_CR4_LA57, X86_CR4_PCIDE, CpuModel
from tests.kvm.guest import DATA, GVA, HOLE, PAGE, Guest, cr4

CPU = CpuModel(maxphyaddr=40, pcid=True, invpcid=True)
OPERAND, WINDOW, DEVICE = GVA + 0x2000, GVA + 0x100000, GVA + 0x3000
INDIV_ADDR, SINGLE_CTXT, ALL_INCL_GLOBAL, ALL_NON_GLOBAL = range(4)


class PcidGuest:
    """A guest with PCIDs 1 and 2: roots of their own, and tables that are out of sync below both.

    PCID 2 is the current one; PCID 0 is from the time before, with the root of 1. Each
    root maps GVA to a page of its own, and both tables say by now that it lies elsewhere.
    """

    def __init__(self, host: HostConfig | None = None) -> None:
        self.guest = guest = Guest("64", on=cr4(X86_CR4_PCIDE), cpu=CPU, host=host)
        self.roots = {1: guest.root, 2: guest.new_table()}
        for pcid, root in self.roots.items():
            guest.map(GVA, DATA + pcid * 0x1000, root=root)
            guest.map(OPERAND, DATA, root=root)
            guest.map(WINDOW, guest.table(GVA, root=root), root=root)
            self.load(pcid)
            guest.read(GVA)
            guest.write(WINDOW + (guest.entry(GVA, root=root) & 0xFFF), DATA + 0x4000 | PAGE, size=8)
        self.hpas = [guest.vcpu.mmu.root_hpa, guest.vcpu.mmu.prev_roots[0].hpa]

    def load(self, pcid: int) -> None:
        """Load CR3 without a flush."""
        self.guest.cr3(self.roots[pcid] | pcid | X86_CR3_PCID_NOFLUSH)

    def invpcid(self, kind: int, pcid: int, gla: int = 0) -> Verdict:
        """Let KVM execute an intercepted INVPCID."""
        guest = self.guest
        guest.poke(DATA, pcid, 8)
        guest.poke(DATA + 8, gla, 8)
        return kvm_handle_invpcid(guest.vcpu, kind, OPERAND)

    def kept(self) -> list[int]:
        """Return the PCIDs whose root is at hand, the current one first."""
        mmu = self.guest.vcpu.mmu
        roots = [(mmu.root_pgd, mmu.root_hpa), *mmu.prev_roots]
        return [pgd & 0xFFF for pgd, hpa in roots if hpa != INVALID_PAGE]


def dropped_below(pcids: PcidGuest, seen: list[ev.Event]) -> list[int]:
    """Return the PCIDs from whose tables an spte was dropped."""
    tables = {pcids.guest.table(GVA, root=root) >> 12: pcid for pcid, root in pcids.roots.items()}
    kvm = pcids.guest.kvm
    return [tables[kvm.pages[e.sptep >> 12].gfn] for e in seen if isinstance(e, ev.drop_spte)]


@pytest.mark.parametrize("pcid", [1, 2])
def test_one_address_is_refreshed_below_roots_of_its_pcid_alone(pcid: int) -> None:
    pcids = PcidGuest()
    guest = pcids.guest
    with guest.watch() as seen:
        assert pcids.invpcid(INDIV_ADDR, pcid, GVA) is Verdict.DONE
    assert dropped_below(pcids, seen) == [pcid]
    assert guest.vcpu.stat["invlpg"] == 1
    assert not guest.vcpu.requests & (Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT | Request.TLB_FLUSH_GUEST)
    assert pcids.kept() == [2, 1, 0]
    assert violations(guest.kvm) == []


def test_a_pcid_without_a_root_has_nothing_to_refresh() -> None:
    pcids = PcidGuest()
    with pcids.guest.watch() as seen:
        assert pcids.invpcid(INDIV_ADDR, 3, GVA) is Verdict.DONE
    assert dropped_below(pcids, seen) == []
    assert not any(isinstance(e, ev.kvm_mmu_free_roots) for e in seen)


def test_the_current_pcid_is_synced_at_the_next_entry() -> None:
    pcids = PcidGuest()
    guest = pcids.guest
    assert pcids.invpcid(SINGLE_CTXT, 2) is Verdict.DONE
    assert guest.vcpu.requests & Request.MMU_SYNC
    assert guest.vcpu.requests & Request.TLB_FLUSH_CURRENT
    assert pcids.kept() == [2, 1, 0]
    assert guest.maps(GVA, DATA + 0x2000)
    with guest.watch() as seen:
        guest.enter()
    assert any(isinstance(e, ev.kvm_mmu_sync_roots) for e in seen)
    assert guest.read(GVA).hpa == guest.hpa(DATA + 0x4000)


def test_a_kept_root_of_the_pcid_is_freed() -> None:
    pcids = PcidGuest()
    guest = pcids.guest
    with guest.watch() as seen:
        assert pcids.invpcid(SINGLE_CTXT, 1) is Verdict.DONE
    assert [e for e in seen if isinstance(e, ev.kvm_mmu_free_roots)] == [ev.kvm_mmu_free_roots(2)]
    assert pcids.kept() == [2, 0]
    assert not guest.vcpu.requests & (Request.MMU_SYNC | Request.TLB_FLUSH_CURRENT)
    pcids.load(1)
    assert guest.read(GVA).hpa == guest.hpa(DATA + 0x4000)


@pytest.mark.parametrize("kind", [ALL_INCL_GLOBAL, ALL_NON_GLOBAL])
def test_all_contexts_are_synced_or_freed_at_the_next_entry(kind: int) -> None:
    """Global pages are not told apart, so both types do the same."""
    pcids = PcidGuest()
    guest = pcids.guest
    with guest.watch() as seen:
        assert pcids.invpcid(kind, 0) is Verdict.DONE
    assert guest.vcpu.requests & Request.TLB_FLUSH_GUEST
    assert not any(isinstance(e, ev.kvm_mmu_free_roots) for e in seen)
    with guest.watch() as seen:
        guest.enter()
    kinds = [type(e) for e in seen]
    assert kinds.index(ev.kvm_mmu_sync_roots) < kinds.index(ev.kvm_mmu_sync_prev_roots)
    assert [e for e in seen if isinstance(e, ev.kvm_mmu_free_roots)] == [ev.kvm_mmu_free_roots(6)]
    assert pcids.kept() == [2]
    assert guest.read(GVA).hpa == guest.hpa(DATA + 0x4000)


def test_without_the_flush_the_old_translations_stay() -> None:
    """What the tests above rely on: nothing but INVPCID makes KVM look at the tables again."""
    pcids = PcidGuest()
    for pcid in (2, 1):
        pcids.load(pcid)
        assert pcids.guest.read(GVA).hpa == pcids.guest.hpa(DATA + pcid * 0x1000)


@pytest.mark.parametrize(
    ("kind", "pcid", "gla", "bits", "allowed"),
    [
        (INDIV_ADDR, 5, GVA, X86_CR4_PCIDE, True),
        (INDIV_ADDR, 5, GVA, 0, False),
        (INDIV_ADDR, 0, GVA, 0, True),
        (INDIV_ADDR, 0, 1 << 47, X86_CR4_PCIDE, False),
        (INDIV_ADDR, 0, 1 << 47, X86_CR4_PCIDE | X86_CR4_LA57, True),
        (INDIV_ADDR, 0, 0xFFFF800000000000, X86_CR4_PCIDE, True),
        (INDIV_ADDR, 0, 0xFF00000000000000, X86_CR4_PCIDE, False),
        (INDIV_ADDR, 0, 0xFF00000000000000, X86_CR4_PCIDE | X86_CR4_LA57, True),
        (SINGLE_CTXT, 5, 1 << 47, X86_CR4_PCIDE, True),
        (SINGLE_CTXT, 5, 0, 0, False),
        (ALL_INCL_GLOBAL, 5, 1 << 47, 0, True),
        (ALL_NON_GLOBAL, 5, 1 << 47, 0, True),
        (ALL_NON_GLOBAL, 0x1000, 0, X86_CR4_PCIDE, False),
        (INDIV_ADDR, 1 << 63, 0, X86_CR4_PCIDE, False),
        (4, 0, 0, X86_CR4_PCIDE, False),
        ((1 << 64) - 1, 0, 0, X86_CR4_PCIDE, False),
    ],
)
def test_what_is_valid(kind: int, pcid: int, gla: int, bits: int, allowed: bool) -> None:
    """SDM 2, INVPCID: reserved bits, types, the PCID while CR4.PCIDE=0, the address of type 0."""
    guest = Guest("64", cpu=CPU)
    guest.vcpu.cr4 = guest.vcpu.cr4 & ~X86_CR4_PCIDE | bits
    assert invpcid_is_allowed(guest.vcpu, kind, pcid, gla) is allowed


def test_what_is_not_valid_is_a_general_protection_fault() -> None:
    pcids = PcidGuest()
    assert pcids.invpcid(4, 0) is Verdict.RESUME
    assert pcids.guest.vcpu.exception == (13, 0, None)
    assert pcids.kept() == [2, 1, 0]


def test_an_operand_that_cannot_be_read() -> None:
    """``kvm_handle_memory_failure``: the fault is the guest's; a device's bytes end in an internal error."""
    guest = Guest("64", on=cr4(X86_CR4_PCIDE), cpu=CPU)
    guest.map(DEVICE, HOLE)
    assert kvm_handle_invpcid(guest.vcpu, 2, OPERAND) is Verdict.RESUME
    assert guest.vcpu.exception == (14, 0, OPERAND)
    guest.vcpu.exception = None
    assert kvm_handle_invpcid(guest.vcpu, 2, DEVICE) is Verdict.FAILED
    assert guest.vcpu.exception is None


@pytest.mark.parametrize("vendor", ["amd", "intel"])
def test_a_guest_whose_cpuid_has_it_not(vendor: str) -> None:
    guest = Guest("64", host=HostConfig(vendor=vendor), cpu=CpuModel(pcid=True))
    assert invpcid_is_undefined(guest.vcpu)
    assert kvm_handle_invpcid(guest.vcpu, 2, OPERAND) is Verdict.RESUME
    assert guest.vcpu.exception == (6, None, None)
