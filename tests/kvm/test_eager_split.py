"""Eager page splitting of the sptes of a nested guest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.conform.recording import read_recording
from mmulab.kvm.eager_split import (
    KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE,
    SPLIT_DESC_CACHE_CAPACITY,
    SPLIT_DESC_CACHE_MIN_NR_OBJECTS,
    kvm_mmu_slot_try_split_huge_pages,
    kvm_mmu_try_split_huge_pages,
)
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.memory_region import kvm_set_memory_region
from mmulab.kvm.memslot import KvmMemslot
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.rmap import pte_list_iter, rmap_add
from mmulab.kvm.roles.derivation import copied, get_page, parity, scratch
from mmulab.kvm.shadow_page import kvm_mmu_get_shadow_page, shadow_path
from mmulab.kvm.spte import SPTE_MMU_PRESENT_MASK, SPTE_TDP_AD_MASK, SPTE_TDP_AD_WRPROT_ONLY_MASK
from mmulab.kvm.zap import KVM_MIN_FREE_MMU_PAGES, kvm_mmu_available_pages
from mmulab.lab.cases.build import VMCB_GPA
from mmulab.lab.eager_split.guest import HUGE, MEMORY, access, huge_guest
from mmulab.machine import op as ops
from mmulab.machine.config import HostConfig
from mmulab.machine.op import Mode, OutcomeKind
from mmulab.scenario.builder import ScenarioBuilder
from tests.kvm.guest import NX, PS, D, Guest, W
from tests.kvm.nested import Nested, started

RECORDINGS = Path(__file__).resolve().parents[2] / "data/conformance/6.1.192"
EAGAIN, ENOSPC = -11, -28
PAGE = 0x1000
FIRST, SECOND = MEMORY, MEMORY + HUGE
HUGE_FRAMES = 512
WRITE_PROTECT = ["write_protect"]


def splits(events: list[ev.Event]) -> list[tuple[int, int, int]]:
    """Return (gfn, level, errno) of each split in L2's memory."""
    found = [e for e in events if isinstance(e, ev.kvm_mmu_split_huge_page) and e.gfn >= MEMORY >> 12]
    return [(e.gfn, e.level, e.errno) for e in found]


def of(events: list[ev.Event], kind: Any) -> list[Any]:
    return [e for e in events if isinstance(e, kind)]


# What the guest and the VMM see ---------------------------------------------------------------


@pytest.mark.parametrize("l1", ["32", "pae", "64", "57"])
def test_only_writes_fault_and_only_they_are_dirty(l1: str) -> None:
    vm = started(l1=l1)
    vm.log()
    assert vm.faults(FIRST + 3 * PAGE, write=False) == []
    assert vm.faults(FIRST + 4 * PAGE, write=True) == WRITE_PROTECT
    assert vm.faults(FIRST + 4 * PAGE, write=True) == []
    assert vm.faults(SECOND + HUGE - PAGE, write=True) == WRITE_PROTECT
    assert vm.faults(SECOND, write=False) == []
    assert vm.dirty() == [FIRST + 4 * PAGE >> 12, SECOND + HUGE - PAGE >> 12]
    assert vm.faults(FIRST + 4 * PAGE, write=True) == WRITE_PROTECT
    assert vm.dirty() == [FIRST + 4 * PAGE >> 12]
    assert vm.do(access(FIRST + 4 * PAGE, write=False)).rax == FIRST + 4 * PAGE >> 12


@pytest.mark.parametrize(
    "host", [{"eager_page_split": False}, {"tdp_mmu": False}], ids=["eager_page_split=0", "tdp_mmu=0"]
)
def test_without_it_a_fault_splits_and_the_rest_is_not_present(host: dict[str, bool]) -> None:
    """Neither is anything split with the TDP MMU off: ``is_tdp_mmu_enabled`` comes first."""
    vm = started(host=host)
    assert splits(vm.log()) == []
    assert vm.faults(FIRST + 3 * PAGE, write=False) == []
    assert vm.faults(FIRST + 4 * PAGE, write=True) == ["huge_write_protect"]
    assert vm.faults(FIRST + 3 * PAGE, write=False) == ["not_present"]
    assert vm.faults(FIRST + 5 * PAGE, write=True) == ["not_present"]
    assert vm.leaf(SECOND)[0] == 2
    # A page that is mapped because it was read is mapped writable, and so is dirty.
    assert vm.dirty() == [(FIRST >> 12) + page for page in (3, 4, 5)]


def test_a_page_mapped_while_its_entry_was_clean_is_split_without_the_right_to_write() -> None:
    """The first write makes D true and with it another page, which begins empty."""
    builder, npt = huge_guest(2)
    builder.op(ops.Vmrun(VMCB_GPA)).op(access(FIRST, write=False)).op(access(SECOND, write=True))
    builder.value(8, npt.entry(FIRST, 2), FIRST | 0xA7)
    vm = Nested(builder)
    assert not vm.leaf(FIRST)[1] & W
    assert splits(vm.log())[-2:] == [(FIRST >> 12, 2, 0), (SECOND >> 12, 2, 0)]
    assert vm.kvm.pages[vm.sptes(FIRST, 1)[0] >> 12].access == 0b101
    assert vm.faults(FIRST, write=True) == WRITE_PROTECT
    assert vm.faults(FIRST + PAGE, write=False) == ["not_present"]
    assert vm.faults(SECOND + PAGE, write=False) == []


touches = st.lists(
    st.one_of(
        st.tuples(st.just("access"), st.integers(0, 1023), st.booleans()),
        st.tuples(st.sampled_from(["log", "stop", "get"]), st.just(0), st.just(False)),
    ),
    max_size=24,
)


@settings(max_examples=25, deadline=None)
@given(touches, st.sampled_from(["32", "64"]), st.sampled_from([parity, copied, scratch, get_page]))
def test_any_order_of_accesses_and_logging(
    steps: list[tuple[str, int, bool]], l1: str, derivation: Any
) -> None:
    """The oracle is a dict of what was written, and a set of what was written since logging began."""
    vm = started(l1=l1, kernel=LINUX_6_1.with_(derivation=derivation))
    memory = {FIRST: FIRST >> 12, SECOND: SECOND >> 12}
    written: set[int] | None = None
    for what, page, write in steps:
        address = FIRST + page * PAGE
        if what == "access":
            outcome = vm.do(access(address, write=write))
            if write:
                memory[address] = address >> 12
                if written is not None:
                    written.add(address >> 12)
            else:
                assert outcome.rax == memory.get(address, 0x90909090)
        elif what == "get" and written is not None:
            assert written <= set(vm.dirty())
            written = set()
        elif what in ("log", "stop"):
            vm.log(what == "log")
            written = None if what == "stop" else set() if written is None else written


# What is reported ---------------------------------------------------------------------------------


def test_the_events_of_a_split() -> None:
    """First the caches are empty; the link drops the huge spte and flushes; no spte is told one by one."""
    vm = started(1)
    level, huge = vm.leaf(FIRST)
    assert (level, bool(huge & W)) == (2, True)
    (huge_sptep,) = vm.sptes(FIRST, 2)
    before = dict(vm.kvm.stat)
    events = vm.log()
    first = next(i for i, e in enumerate(events) if isinstance(e, ev.kvm_mmu_split_huge_page))
    (sptep, *_) = vm.sptes(FIRST, 1)
    sp = vm.kvm.pages[sptep >> 12]
    gfn = FIRST >> 12
    assert events[first : first + 5] == [
        ev.kvm_mmu_split_huge_page(gfn, huge, 2, EAGAIN),
        ev.kvm_mmu_get_page(gfn, sp.role, 0, 0, False, True),
        ev.drop_spte(huge_sptep, huge),
        ev.kvm_flush_remote_tlbs(),
        ev.kvm_mmu_split_huge_page(gfn, huge, 2, 0),
    ]
    assert (sp.direct, sp.level, sp.guest_mode, sp.access) == (True, 1, True, 7)
    assert not of(events, ev.kvm_mmu_set_spte)
    changed = {name: n - before[name] for name, n in vm.kvm.stat.items() if n != before[name]}
    # L1's own huge page over the low memory is split by the TDP MMU.
    assert changed == {
        "mmu_cache_miss": 1,
        "pages_4k": 2 * HUGE_FRAMES,
        "pages_2m": -2,
        "remote_tlb_flush_requests": 2,
    }


def test_nested_pages_come_before_the_tdp_mmus() -> None:
    events = started(1).log()
    levels = [type(e) for e in events if isinstance(e, ev.drop_spte | ev.kvm_tdp_mmu_spte_changed)]
    assert levels == [ev.drop_spte, ev.kvm_tdp_mmu_spte_changed]


def test_small_sptes_keep_the_huge_ones_rights() -> None:
    vm = started(1)
    huge = vm.leaf(FIRST)[1]
    vm.log()
    words = vm.runner.machine.memory.words
    for index in range(HUGE_FRAMES):
        (sptep,) = vm.sptes(FIRST + index * PAGE, 1)
        assert sptep & 0xFFF == 8 * index
        assert words[sptep >> 3] == (huge + index * PAGE) & ~PS & ~W


def test_the_caches_last_for_forty_pages() -> None:
    """One table and one header a page; ``KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE``."""
    count = KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE + 2
    vm = started(count)
    errors = [errno for _, _, errno in splits(vm.log())]
    assert errors == [EAGAIN, *[0] * KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE, EAGAIN, 0, 0]


def test_caches_outlast_logging() -> None:
    vm = started(1)
    vm.log()
    vm.log(on=False)
    assert vm.faults(FIRST, write=True) == ["not_present"]
    assert vm.leaf(FIRST)[0] == 2
    assert splits(vm.log()) == [(FIRST >> 12, 2, 0)]


def test_logging_off_makes_room_for_huge_pages_again() -> None:
    vm = started(1)
    vm.log()
    assert vm.leaf(FIRST)[0] == 1
    vm.log(on=False)
    assert vm.sptes(FIRST, 1) == []
    assert vm.faults(FIRST, write=True) == ["not_present"]
    assert vm.leaf(FIRST)[0] == 2


# Aliases --------------------------------------------------------------------------------------


def aliased(flags: int) -> Nested:
    """Return a guest whose second and third huge page are the first one; the third with `flags`."""
    builder, npt = huge_guest(3)
    for address, rights in ((SECOND, 0xE7), (SECOND + HUGE, flags)):
        builder.value(8, npt.entry(address, 2), FIRST | rights)
    builder.op(ops.Vmrun(VMCB_GPA)).op(access(FIRST, write=True))
    builder.op(access(SECOND, write=True)).op(access(SECOND + HUGE, write=False))
    return Nested(builder)


def test_aliases_with_the_same_rights_share_the_table() -> None:
    vm = aliased(0xE7)
    assert len(vm.sptes(FIRST, 2)) == 3
    before = vm.kvm.stat["pages_4k"]
    events = vm.log()
    found = [e for e in of(events, ev.kvm_mmu_get_page) if e.gfn == FIRST >> 12]
    assert [e.created for e in found] == [True, False, False]
    assert splits(events) == [(FIRST >> 12, 2, errno) for errno in (EAGAIN, 0, 0, 0)]
    (sptep,) = vm.sptes(FIRST, 1)
    assert len(list(pte_list_iter(vm.kvm.pages[sptep >> 12].parent_ptes))) == 3
    assert vm.kvm.stat["pages_4k"] - before == 2 * HUGE_FRAMES  # the other half is L1's own
    assert vm.kvm.split_page_header_cache == KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE - 1
    # The second parent of the page needs a descriptor, the third one has room in it.
    assert vm.kvm.split_desc_cache == SPLIT_DESC_CACHE_CAPACITY - 1
    assert vm.faults(SECOND + PAGE, write=True) == WRITE_PROTECT
    assert vm.faults(FIRST + PAGE, write=True) == []
    assert vm.dirty() == [FIRST + PAGE >> 12]


def test_aliases_with_other_rights_have_tables_of_their_own() -> None:
    """The last entry of a reverse map takes the place of the one removed, and so is split second."""
    vm = aliased(0xE5)
    events = vm.log()
    errors = [errno for _, _, errno in splits(events)]
    # Each of the second table's sptes was its gfn's second, and took a descriptor.
    assert errors == [EAGAIN, 0, 0, EAGAIN, 0]
    found = [e for e in of(events, ev.kvm_mmu_get_page) if e.gfn == FIRST >> 12]
    assert [e.created for e in found] == [True, True, False]
    pages = [vm.kvm.pages[sptep >> 12] for sptep in vm.sptes(FIRST, 1)]
    assert [sp.access for sp in pages] == [0b111, 0b101]
    assert SPLIT_DESC_CACHE_CAPACITY - HUGE_FRAMES < SPLIT_DESC_CACHE_MIN_NR_OBJECTS
    assert vm.kvm.split_desc_cache == SPLIT_DESC_CACHE_CAPACITY - 1
    assert vm.do(access(SECOND + HUGE, write=True)).kind is OutcomeKind.VMEXIT


# Where nothing is split ---------------------------------------------------------------------------


def test_too_few_pages_are_left() -> None:
    """``KVM_MIN_FREE_MMU_PAGES`` must stay; each huge page that is not split says so."""
    vm = started(3)
    vm.kvm.n_max_mmu_pages = vm.kvm.n_used_mmu_pages + KVM_MIN_FREE_MMU_PAGES + 1
    gfns = [FIRST + i * HUGE >> 12 for i in range(3)]
    assert splits(vm.log()) == [
        (gfns[0], 2, EAGAIN),
        (gfns[0], 2, 0),
        (gfns[1], 2, ENOSPC),
        (gfns[2], 2, ENOSPC),
    ]
    assert kvm_mmu_available_pages(vm.kvm) == KVM_MIN_FREE_MMU_PAGES
    assert vm.faults(FIRST + PAGE, write=True) == WRITE_PROTECT
    assert vm.faults(SECOND + PAGE, write=True) == ["huge_write_protect"]
    assert vm.dirty() == [FIRST + PAGE >> 12, SECOND + PAGE >> 12]


@pytest.mark.parametrize("rule", [parity, copied, get_page, scratch], ids=lambda rule: rule.name)
def test_4_byte_tables_under_each_derivation(rule: Any) -> None:
    """A 4 MiB page of a 32-bit L1: its halves differ in their gfn, so the copied quadrant does no harm."""
    vm = started(2, l1="32", kernel=LINUX_6_1.with_(derivation=rule))
    (huge_sptep,) = vm.sptes(SECOND, 2)
    parent = vm.kvm.pages[huge_sptep >> 12]
    assert parent.has_4_byte_gpte
    done = [gfn for gfn, _, errno in splits(vm.log()) if not errno]
    if not rule.splits_4_byte:
        assert done == []
        assert vm.sptes(SECOND, 2) == [huge_sptep]
        assert vm.faults(SECOND + PAGE, write=True) == ["huge_write_protect"]
        return
    assert done == [FIRST >> 12, SECOND >> 12]
    quadrants = [vm.kvm.pages[vm.sptes(at, 1)[0] >> 12].quadrant for at in (FIRST, SECOND)]
    assert quadrants == ([0, 1] if rule is parity else [parent.quadrant] * 2)
    assert vm.faults(SECOND + PAGE, write=True) == WRITE_PROTECT


@pytest.mark.parametrize("rule", [get_page, scratch], ids=lambda rule: rule.name)
def test_8_byte_tables_are_split_under_derivations_that_skip_the_others(rule: Any) -> None:
    vm = started(1, kernel=LINUX_6_1.with_(derivation=rule))
    vm.log()
    assert vm.faults(FIRST + PAGE, write=True) == WRITE_PROTECT


# All pages dirty at first ---------------------------------------------------------------------------


def cleared(first: int, count: int, *, eager: bool = True) -> tuple[Nested, list[ev.Event]]:
    """Return a guest with ``KVM_DIRTY_LOG_INITIALLY_SET`` after a clear from `first`, both in pages."""
    vm = started(manual_dirty=3, host={"eager_page_split": eager})
    assert of(vm.log(), ev.kvm_mmu_split_huge_page) == []
    assert vm.leaf(FIRST)[1] & W
    assert vm.do(ops.ClearDirtyLog(0, first, count)).result == 0
    return vm, list(vm.events)


def test_a_clear_splits_what_it_clears() -> None:
    start = FIRST >> 12
    vm, events = cleared(start + 64, 64)
    assert splits(events) == [(start, 2, EAGAIN), (start, 2, 0)]
    assert vm.leaf(SECOND)[0] == 2
    assert vm.faults(FIRST + 63 * PAGE, write=True) == []
    assert vm.faults(FIRST + 64 * PAGE, write=True) == WRITE_PROTECT
    clean = set(range(vm.slot.npages)) - set(vm.dirty())
    assert clean == set(range(start + 65, start + 128))


def test_a_clear_without_it_protects_the_huge_page() -> None:
    vm, events = cleared((FIRST >> 12) + 64, 64, eager=False)
    assert splits(events) == []
    assert vm.leaf(FIRST)[0] == 2
    assert vm.faults(FIRST + 64 * PAGE, write=True) == ["huge_write_protect"]
    assert vm.faults(FIRST + 63 * PAGE, write=True) == ["not_present"]


def test_a_clear_of_one_page_at_the_beginning_of_a_huge_one() -> None:
    """6.1 gives the last gfn for the end; the way over reverse maps visits its first in any case."""
    vm = started(1)
    for gfn, done in ((FIRST >> 12, [FIRST >> 12]), (0, [])):
        vm.events.clear()
        kvm_mmu_try_split_huge_pages(vm.kvm, vm.slot, gfn, gfn)
        assert [e.gfn for e in of(vm.events, ev.kvm_mmu_split_huge_page) if not e.errno] == done
    vm.events.clear()
    kvm_mmu_try_split_huge_pages(vm.kvm, vm.slot, 0, 1)
    assert [e.gfn for e in of(vm.events, ev.kvm_mmu_split_huge_page)] == [0]


# Other hosts and formats ------------------------------------------------------------------------------


def test_an_nx_huge_page_becomes_executable_and_is_not_counted() -> None:
    vm = started(1, host={"nx_huge_pages": True})
    assert vm.leaf(FIRST)[1] & NX
    before = vm.kvm.stat["nx_lpage_splits"]
    vm.log()
    level, spte = vm.leaf(FIRST)
    assert (level, spte & NX) == (1, 0)
    assert vm.kvm.stat["nx_lpage_splits"] == before


@pytest.mark.parametrize("pml", [False, True])
def test_shadow_ept(pml: bool) -> None:
    """From a recording: two pages that L2 may write, one to read, one only to execute; then logging."""
    scenario = read_recording(RECORDINGS / "nested-ept-tdpmmu/ept-large-thp-ad.jsonl.xz").scenario
    builder = ScenarioBuilder.of(replace(scenario, steps=scenario.steps[:13]))
    vm = Nested(builder, host={"pml": pml})
    before = {at: vm.leaf(at)[1] for at in (0x40000000, 0x40200000, 0x40400000, 0x40600000)}
    assert [spte & 7 for spte in before.values()] == [7, 7, 5, 4]
    assert splits(vm.log())[1:] == [(gfn, 2, 0) for gfn in (0x800, 0x1000, 0x1800, 0x1A00)]
    for address, huge in before.items():
        level, spte = vm.leaf(address)
        assert level == 1
        assert spte == huge & ~PS & ~W
        assert spte & SPTE_TDP_AD_MASK == (SPTE_TDP_AD_WRPROT_ONLY_MASK if pml else 0)
    vm.dirty()
    for page in (1, 2, 300):
        vm.do(ops.Write(Mode.SUPERVISOR, 4, 0x40200000 + page * PAGE, 7))
    assert vm.do(ops.Execute(Mode.SUPERVISOR, 0x40600800 + PAGE)).kind is OutcomeKind.OK
    assert vm.dirty() == [0x1000 + page for page in (1, 2, 300)]
    assert vm.do(ops.Write(Mode.SUPERVISOR, 4, 0x40400000, 7)).kind is OutcomeKind.VMEXIT


def test_a_1_gib_page_of_l1_over_2_mib_pages_of_the_host() -> None:
    """Its 2 MiB sptes are in a direct page already."""
    gib = 1 << 30
    builder, npt = huge_guest(2)
    builder.value(8, npt.entry(gib, 3), gib | 0xE7)
    builder.slot(0, 0, MEMORY).slot(1, gib, 2 * HUGE, 0, FIRST)
    builder.op(ops.Vmrun(VMCB_GPA)).op(access(gib, write=True)).op(access(gib + HUGE, write=True))
    vm = Nested(builder)
    sp = vm.kvm.pages[shadow_path(vm.kvm.vcpus[0], gib)[-1][1] >> 12]
    assert (sp.direct, sp.level, sp.gfn) == (True, 2, GIB_GFN)
    vm.do(ops.SetMemslot(1, gib, 2 * HUGE, 1, FIRST))
    assert splits(vm.events)[1:] == [(GIB_GFN, 2, 0), (GIB_GFN + HUGE_FRAMES, 2, 0)]
    assert vm.faults(gib + PAGE, write=True) == WRITE_PROTECT
    assert vm.faults(gib + 2 * PAGE, write=False) == []
    assert vm.do(ops.GetDirtyLog(1)).dirty == [1]


# 1 GiB sptes, laid by hand ------------------------------------------------------------------------------

GIB_GFN = 1 << 18


class Gib:
    """A 1 GiB slot and entries that map it whole, each in a direct page of its own."""

    def __init__(self) -> None:
        self.guest = Guest("np", host=HostConfig(tdp=True, tdp_mmu=True))
        self.kvm = self.guest.kvm
        self.slot = KvmMemslot(1, GIB_GFN, GIB_GFN, GIB_GFN)
        assert kvm_set_memory_region(self.kvm, self.slot) == 0
        self.kvm.shadow_root_allocated = True

    def huge(self, page_gfn: int, **role: int) -> tuple[ShadowPage, int]:
        """Map the slot by entry 1 of a page at `page_gfn`; return the page and the entry's address."""
        known = {"level": 3, "access": 7, "direct": 1, "guest_mode": 1, **role}
        word = self.kvm.config.kernel.design.layout.pack(**known)
        sp = kvm_mmu_get_shadow_page(self.kvm, None, page_gfn, word)
        sptep = sp.frame << 12 | 8
        self.kvm.memory.store64(sptep, GIB_GFN << 12 | PS | SPTE_MMU_PRESENT_MASK | W | D | 1)
        rmap_add(self.kvm, self.slot, sptep, GIB_GFN, 7)
        return sp, sptep

    def split(self) -> list[ev.kvm_mmu_split_huge_page]:
        self.guest.events.clear()
        kvm_mmu_slot_try_split_huge_pages(self.kvm, self.slot)
        return self.guest.of(ev.kvm_mmu_split_huge_page)


def test_a_1_gib_spte_is_split_down_to_4_kib() -> None:
    gib = Gib()
    gib.huge(0)
    done = [(e.level, e.gfn) for e in gib.split() if not e.errno]
    assert done == [(3, GIB_GFN)] + [(2, GIB_GFN + 512 * i) for i in range(512)]
    assert [len(gib.slot.rmap[level]) for level in (1, 2, 3)] == [GIB_GFN, 0, 0]
    assert {gib.kvm.stat[f"pages_{size}"] for size in ("2m", "1g")} == {0}
    frames = {
        gib.kvm.memory.words[head[0][0] >> 3] >> 12 & 0xFFFFFFFFFF: gfn
        for gfn, head in gib.slot.rmap[1].items()
    }
    assert all(frame == gfn for frame, gfn in frames.items())
    assert len(frames) == GIB_GFN


def test_a_table_found_keeps_what_it_leads_to() -> None:
    """A second 1 GiB entry, made after the first was split all the way, takes the table over as it is."""
    gib = Gib()
    gib.huge(0)
    gib.split()
    pages = dict(gib.kvm.pages)
    first = gib.huge(0, quadrant=1)
    before = dict(gib.kvm.stat)
    assert [(e.level, e.errno) for e in gib.split()] == [(3, 0)]
    (found,) = gib.guest.of(ev.kvm_mmu_get_page)
    assert not found.created
    assert gib.kvm.memory.words[first[1] >> 3] >> 12 & 0xFFFFFFFFFF in pages
    assert gib.kvm.stat["pages_4k"] == before["pages_4k"]
    assert len(gib.guest.of(ev.kvm_flush_remote_tlbs)) == 1


def test_pages_out_of_use_or_of_no_nested_guest_are_passed_over() -> None:
    gib = Gib()
    invalid, _ = gib.huge(0)
    invalid.invalid = True
    gib.huge(0, guest_mode=0)
    assert gib.split() == []
    _, sptep = gib.huge(0, quadrant=1)
    assert [e.errno for e in gib.split() if e.level == 3] == [EAGAIN, 0]
    assert not gib.kvm.memory.words[sptep >> 3] & PS
    assert len(list(pte_list_iter(gib.slot.rmap[3][1]))) == 2


def test_before_the_first_shadow_root_there_are_no_reverse_maps() -> None:
    gib = Gib()
    gib.huge(0)
    gib.kvm.shadow_root_allocated = False
    assert gib.split() == []
