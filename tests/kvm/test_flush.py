"""Flushes: every vCPU is asked, and what is counted and reported."""

from __future__ import annotations

from mmulab import events as ev
from mmulab.kvm.flush import kvm_flush_remote_tlbs, kvm_flush_remote_tlbs_range
from mmulab.kvm.state import Request
from tests.kvm.guest import DATA, GVA, Guest


def test_all_vcpus_are_asked_and_each_serves_it_at_its_next_entry() -> None:
    guest = Guest("64", vcpus=3)
    for vcpu in guest.kvm.vcpus:
        guest.reset(vcpu.id)
        guest.enter(vcpu.id)
    before = [vcpu.stat["tlb_flush"] for vcpu in guest.kvm.vcpus]
    kvm_flush_remote_tlbs(guest.kvm)
    assert all(vcpu.requests & Request.TLB_FLUSH for vcpu in guest.kvm.vcpus)
    guest.enter(1)
    assert [bool(vcpu.requests & Request.TLB_FLUSH) for vcpu in guest.kvm.vcpus] == [True, False, True]
    assert [vcpu.stat["tlb_flush"] for vcpu in guest.kvm.vcpus] == [before[0], before[1] + 1, before[2]]


def test_a_range_is_reported_and_everything_flushed() -> None:
    guest = Guest("64")
    count = guest.kvm.stat["remote_tlb_flush_requests"]
    with guest.watch() as seen:
        kvm_flush_remote_tlbs_range(guest.kvm, 0x10, 2)
    assert seen == [ev.kvm_flush_remote_tlbs_with_address(0x10, 2), ev.kvm_flush_remote_tlbs()]
    assert guest.kvm.stat["remote_tlb_flush_requests"] == count + 1
    assert guest.vcpu.requests & Request.TLB_FLUSH


def test_nothing_is_reported_without_a_sink() -> None:
    guest = Guest("64")
    guest.machine.emit = None
    kvm_flush_remote_tlbs(guest.kvm)
    assert guest.vcpu.requests & Request.TLB_FLUSH


def test_flushes_and_entries_are_told() -> None:
    guest = Guest("64").map(GVA, DATA)
    told: list[int] = []
    guest.kvm.tlb_sink = lambda vcpu, request: told.append(request)
    guest.read(GVA)  # a root is made, which is flushed; entered, and again after the fault
    assert told == [Request.TLB_FLUSH_CURRENT, 0, 0]
    told.clear()
    kvm_flush_remote_tlbs(guest.kvm)
    assert told == []
    guest.read(GVA)
    assert told == [Request.TLB_FLUSH, 0]
    told.clear()
    guest.vcpu.requests |= Request.TLB_FLUSH_GUEST
    guest.read(GVA)
    assert told == [Request.TLB_FLUSH_GUEST, 0]
