"""Tests of :mod:`mmulab.kvm.dirty_ring`, and of guests whose vCPUs have rings."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.kvm.dirty_ring import DirtyRing, check_dirty_ring, coalesce
from mmulab.kvm.invariants import violations
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import OutcomeKind
from mmulab.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from tests.kvm.guest import DATA, GVA, MIB, Guest, W

EPT = HostConfig(vendor="intel", tdp=True)
HOSTS = {
    "shadow": HostConfig(),
    "npt": HostConfig(tdp=True),
    "tdp_mmu": HostConfig(tdp=True, tdp_mmu=True),
    "noad": replace(EPT, eptad=False),
    "pml": replace(EPT, pml=True),
    "pml-tdp_mmu": replace(EPT, pml=True, tdp_mmu=True),
}
PAGE = DATA >> 12


def ringed(host: str, entries: int = 1024, **config: object) -> Guest:
    guest = Guest("np", host=HOSTS[host], dirty_ring=entries, **config)
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))
    return guest


def taken(guest: Guest, vcpu: int = 0) -> list[int]:
    """What the VMM takes from the ring: pages of slot 0."""
    ring = guest.machine.execute(ops.GetDirtyRing(vcpu=vcpu)).ring
    assert ring is not None
    assert {slot for slot, _ in ring} <= {0}
    return [offset for _, offset in ring]


def reset(guest: Guest) -> int:
    result = guest.machine.execute(ops.ResetDirtyRings()).result
    assert result is not None
    return result


# The ring ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "pml", "errno"),
    [
        (0, False, errno.EINVAL),
        (255, False, errno.EINVAL),
        (128, False, errno.EINVAL),
        (256, False, 0),
        (256, True, errno.EINVAL),
        (512, True, errno.EINVAL),
        (1024, True, 0),
        (65536, True, 0),
        (131072, False, errno.E2BIG),
    ],
)
def test_a_ring_is_a_power_of_two_that_leaves_a_reserve(entries: int, pml: bool, errno: int) -> None:
    assert check_dirty_ring(entries, pml=pml) == -errno


def test_entries_are_taken_and_given_back_in_order() -> None:
    ring = DirtyRing(0, 4, 3)
    for offset in range(3):
        ring.push(1, offset)
    assert ring.soft_full()
    assert ring.give_back() == []
    assert ring.harvest() == [(1, 0), (1, 1), (1, 2)]
    assert ring.harvest() == []
    ring.push(1, 3)
    assert ring.give_back() == [(1, 0), (1, 1), (1, 2)]
    assert not ring.soft_full()
    assert (ring.dirty_index, ring.reset_index) == (4, 3)
    ring.push(1, 4)
    assert ring.harvest() == [(1, 3), (1, 4)]


def test_beyond_its_size_a_ring_loses_the_oldest() -> None:
    ring = DirtyRing(0, 2, 1)
    for offset in range(3):
        ring.push(0, offset)
    assert ring.harvest() == [(0, 2), (0, 1)]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 200)), max_size=60))
def test_masks_hold_each_page_and_none_twice_in_a_row(entries: list[tuple[int, int]]) -> None:
    runs = list(coalesce(entries))
    pages = [(slot, offset + bit) for slot, offset, mask in runs for bit in range(64) if mask >> bit & 1]
    assert set(pages) == set(entries)
    assert all(mask & 1 and mask < 1 << 64 for _, _, mask in runs)


def test_a_mask_reaches_64_pages_up_or_down() -> None:
    assert list(coalesce([(0, 100), (0, 163), (0, 100)])) == [(0, 100, 1 << 63 | 1)]
    assert list(coalesce([(0, 100), (0, 164)])) == [(0, 100, 1), (0, 164, 1)]
    assert list(coalesce([(0, 163), (0, 100)])) == [(0, 100, 1 << 63 | 1)]
    # What is in the mask already must not be shifted out of it.
    assert list(coalesce([(0, 100), (0, 101), (0, 37)])) == [(0, 100, 3), (0, 37, 1)]
    assert list(coalesce([(0, 100), (1, 101)])) == [(0, 100, 1), (1, 101, 1)]


# Guests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_a_page_is_in_the_ring_once_per_reset(host: str) -> None:
    guest = ringed(host)
    guest.write(DATA)
    assert taken(guest).count(PAGE) == 1
    guest.write(DATA)
    assert taken(guest) == []
    assert reset(guest) > 0
    guest.write(DATA)
    assert taken(guest) == [PAGE]
    assert reset(guest) == 1
    assert reset(guest) == 0
    assert violations(guest.kvm) == []


@pytest.mark.parametrize("host", HOSTS)
def test_a_reset_protects_what_was_taken_and_flushes_once(host: str) -> None:
    guest = ringed(host)
    guest.write(DATA)
    before = guest.spte(DATA)
    with guest.watch() as seen:
        assert reset(guest) == 0
    assert seen == [ev.kvm_dirty_ring_reset(0, 1, 0)]  # nothing was taken yet
    assert taken(guest) == [PAGE]
    with guest.watch() as seen:
        assert reset(guest) == 1
    lost = guest.kvm.fmt.dirty if HOSTS[host].pml else W
    assert guest.spte(DATA) == before & ~lost
    assert seen[-2:] == [ev.kvm_dirty_ring_reset(0, 1, 1), ev.kvm_flush_remote_tlbs()]
    assert len(seen) == (3 if HOSTS[host].tdp_mmu else 2)


def test_a_page_of_a_slot_that_has_gone_is_given_back_all_the_same() -> None:
    guest = ringed("shadow")
    guest.write(DATA)
    assert taken(guest) == [PAGE]
    guest.machine.execute(ops.DeleteMemslot(0))
    assert reset(guest) == 1


def test_the_processors_log_is_read_after_an_exit_and_the_newest_comes_first() -> None:
    guest = Guest("64", host=HOSTS["pml"], dirty_ring=1024).map(GVA, DATA)
    guest.machine.execute(ops.SetMemslot(0, 0, 8 * MIB, KVM_MEM_LOG_DIRTY_PAGES, 0))
    guest.write(GVA)
    tables = taken(guest)[:-1]  # from the root down, as they were walked
    reset(guest)
    guest.write(GVA)
    assert taken(guest) == [PAGE, *reversed(tables)]


def test_there_is_no_bitmap_beside_rings() -> None:
    guest = ringed("shadow")
    guest.write(DATA)
    assert guest.slot.dirty_bitmap is None
    log = guest.machine.execute(ops.GetDirtyLog(0))
    assert (log.result, log.dirty) == (-errno.ENXIO, [])
    assert guest.machine.execute(ops.ClearDirtyLog(0, 0, 0x40)).result == -errno.ENXIO


def test_without_rings_there_is_nothing_to_reset() -> None:
    assert reset(Guest("np")) == -errno.EINVAL


def test_a_vcpu_whose_ring_is_all_but_full_waits_for_a_reset() -> None:
    guest = ringed("shadow", entries=256, vcpus=2)
    guest.reset(vcpu=1)
    limit = 256 - 64
    for page in range(limit):
        guest.write(MIB + 0x1000 * page)
    with guest.watch() as seen:
        assert guest.write(DATA).kind is OutcomeKind.DIRTY_RING_FULL
    assert seen == [ev.kvm_dirty_ring_exit(0)]
    assert guest.write(3 * MIB, vcpu=1).kind is OutcomeKind.OK
    assert len(taken(guest)) == limit
    assert guest.write(DATA).kind is OutcomeKind.DIRTY_RING_FULL
    assert reset(guest) == limit
    assert guest.write(DATA).kind is OutcomeKind.OK
    assert guest.write(MIB).kind is OutcomeKind.OK
    assert taken(guest) == [PAGE, MIB >> 12]
