"""NX huge pages: what counts as one that was split, and what a pass of the worker makes possible again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab import events as ev
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12
from mmulab.kvm.nx_huge_page import account_nx_huge_page, is_nx_huge_page_enabled, unaccount_nx_huge_page
from mmulab.kvm.zap import kvm_mmu_zap_all
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from tests.kvm.guest import GVA, MIB, NX, PS, Guest

HOSTS = {
    "shadow": HostConfig(nx_huge_pages=True),
    "direct": HostConfig(nx_huge_pages=True, tdp=True),
    "tdp_mmu": HostConfig(nx_huge_pages=True, tdp=True, tdp_mmu=True),
}
STEP = 2 * MIB


def split(host: str, *, pages: int = 3, mode: str = "np", **config: object) -> tuple[Guest, list[int]]:
    """A guest of which a fetch has split some huge pages, in ascending order."""
    guest = Guest(mode, mib=16, thp=True, host=HOSTS[host], **config)
    gvas = [4 * MIB + i * STEP for i in range(pages)]
    for gva in gvas:
        if mode != "np":
            guest.map(gva, gva, level=2)
        guest.fetch(gva)
    return guest, gvas


def recover(guest: Guest, ratio: int) -> list[ev.Event]:
    with guest.watch() as seen:
        assert guest.machine.execute(ops.RecoverNxHugePages(ratio)).result is None
    return seen


@pytest.mark.parametrize("host", ["direct", "tdp_mmu"])
@pytest.mark.parametrize(("ratio", "left"), [(0, 3), (1, 0), (2, 1), (3, 2), (60, 2)])
def test_a_ratio_th_goes_rounded_up_oldest_first(host: str, ratio: int, left: int) -> None:
    guest, gvas = split(host)
    assert guest.kvm.stat["nx_lpage_splits"] == 3
    seen = recover(guest, ratio)
    zapped = [e.gfn << 12 for e in seen if isinstance(e, ev.kvm_mmu_prepare_zap_page)]
    assert zapped == gvas[: 3 - left]
    assert sum(isinstance(e, ev.kvm_flush_remote_tlbs) for e in seen) == bool(zapped), "one flush for all"
    assert guest.kvm.stat["nx_lpage_splits"] == len(guest.kvm.possible_nx_huge_pages) == left
    for i, gva in enumerate(gvas):
        guest.read(gva)
        huge = i < 3 - left
        assert guest.spte(gva, 2) & (PS | NX) == (PS | NX if huge else 0)


def test_without_paging_on_shadow_tables_linux_6_1_counts_nothing() -> None:
    counts = {}
    for kernel in (LINUX_6_1, LINUX_6_12):
        guest, _ = split("shadow", behaviours=kernel.behaviours)
        counts[kernel.name] = guest.kvm.stat["nx_lpage_splits"]
    assert counts == {"6.1.192": 0, "6.12.117": 3}
    assert recover(split("shadow")[0], 1) == []


def test_a_page_of_a_slot_with_dirty_logging_is_spared_from_6_2_on() -> None:
    for kernel, zapped in ((LINUX_6_1, 3), (LINUX_6_12, 0)):
        guest, _ = split("tdp_mmu", behaviours=kernel.behaviours)
        guest.machine.execute(ops.SetMemslot(0, 0, 16 * MIB, 1, 0))
        seen = recover(guest, 1)
        assert sum(isinstance(e, ev.kvm_mmu_prepare_zap_page) for e in seen) == zapped
        assert guest.kvm.stat["nx_lpage_splits"] == 0, "it is no longer counted either"


@pytest.mark.parametrize("tagged", [False, True])
def test_a_table_gives_way_to_a_huge_page_if_no_fetch_made_it(tagged: bool) -> None:
    behaviours = LINUX_6_12.behaviours if tagged else LINUX_6_1.behaviours
    guest = Guest("np", thp=True, host=HOSTS["direct"], behaviours=behaviours)
    guest.fetch(GVA)
    sp = guest.page(GVA)
    unaccount_nx_huge_page(guest.kvm, sp)
    guest.read(GVA + 0x10000)
    assert bool(guest.spte(GVA, 2) & PS) == tagged


def test_a_page_is_counted_once() -> None:
    guest, gvas = split("tdp_mmu", pages=1)
    sp = guest.page(gvas[0])
    account_nx_huge_page(guest.kvm, sp, possible=True)
    assert guest.kvm.stat["nx_lpage_splits"] == 1
    for _ in range(2):
        unaccount_nx_huge_page(guest.kvm, sp)
        assert guest.kvm.stat["nx_lpage_splits"] == 0
    assert not sp.lpage_disallowed


def test_without_nx_huge_pages_there_is_no_pass() -> None:
    guest = Guest("np", thp=True)
    guest.fetch(GVA)
    assert recover(guest, 1) == []


def test_a_page_in_place_of_a_huge_one_is_counted_once(guest: Guest) -> None:
    guest.read(GVA)
    sp = guest.page(GVA)
    for _ in range(2):
        account_nx_huge_page(guest.kvm, sp, possible=True)
    assert guest.kvm.stat["nx_lpage_splits"] == 1
    kvm_mmu_zap_all(guest.kvm)
    assert guest.kvm.stat["nx_lpage_splits"] == 0


def switch(guest: Guest, enabled: bool) -> list[ev.Event]:
    with guest.watch() as seen:
        assert guest.machine.execute(ops.SetNxHugePages(enabled)).result is None
    return seen


@pytest.mark.parametrize("host", HOSTS)
def test_switching_zaps_all_and_huge_pages_come_back_with_the_other_right(host: str) -> None:
    guest, gvas = split(host, pages=2)
    untouched = gvas[-1] + STEP
    guest.read(untouched)
    assert guest.spte(untouched, 2) & (PS | NX) == PS | NX
    assert any(isinstance(e, ev.kvm_mmu_zap_all_fast) for e in switch(guest, False))
    assert guest.kvm.possible_nx_huge_pages == {}
    assert guest.kvm.stat["nx_lpage_splits"] == 0
    for gva in (*gvas, untouched):
        guest.fetch(gva)
        assert guest.spte(gva, 2) & (PS | NX) == PS
    assert guest.kvm.stat["nx_lpage_splits"] == 0
    assert any(isinstance(e, ev.kvm_mmu_zap_all_fast) for e in switch(guest, True))
    guest.read(untouched)
    assert guest.spte(untouched, 2) & (PS | NX) == PS | NX
    guest.fetch(untouched)
    assert not guest.spte(untouched, 2) & PS
    assert not guest.spte(untouched) & NX


@pytest.mark.parametrize("enabled", [False, True])
def test_writing_the_same_value_does_nothing(enabled: bool) -> None:
    guest = Guest("np", thp=True, host=replace(HOSTS["tdp_mmu"], nx_huge_pages=enabled))
    guest.read(GVA)
    assert switch(guest, enabled) == []
    assert guest.spte(GVA, 2) & PS


def test_while_it_is_off_there_is_no_pass() -> None:
    guest, gvas = split("tdp_mmu")
    switch(guest, False)
    assert recover(guest, 1) == []
    switch(guest, True)
    guest.fetch(gvas[0])
    assert any(isinstance(e, ev.kvm_mmu_prepare_zap_page) for e in recover(guest, 1))


@pytest.mark.parametrize("host", HOSTS)
def test_a_vm_that_opted_out_has_executable_huge_pages(host: str) -> None:
    guest, gvas = split(host, disable_nx_huge_pages=True)
    assert not is_nx_huge_page_enabled(guest.kvm)
    assert [guest.spte(gva, 2) & (PS | NX) for gva in gvas] == [PS] * 3
    assert recover(guest, 1) == []
    assert any(isinstance(e, ev.kvm_mmu_zap_all_fast) for e in switch(guest, False)), "every VM's are zapped"
    switch(guest, True)
    guest.fetch(gvas[0])
    assert guest.spte(gvas[0], 2) & (PS | NX) == PS
