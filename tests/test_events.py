"""Event types: complete, named as the kernel's, and plain values."""

from __future__ import annotations

import typing

import pytest

from mmulab import events as ev
from tests.kvm.guest import DATA, GVA, HOLE, MODES, Guest

MMUTRACE = {
    "kvm_mmu_pagetable_walk",
    "kvm_mmu_paging_element",
    "kvm_mmu_set_accessed_bit",
    "kvm_mmu_set_dirty_bit",
    "kvm_mmu_walker_error",
    "kvm_mmu_get_page",
    "kvm_mmu_sync_page",
    "kvm_mmu_unsync_page",
    "kvm_mmu_prepare_zap_page",
    "mark_mmio_spte",
    "handle_mmio_page_fault",
    "fast_page_fault",
    "kvm_mmu_zap_all_fast",
    "check_mmio_spte",
    "kvm_mmu_set_spte",
    "kvm_mmu_spte_requested",
    "kvm_tdp_mmu_spte_changed",
    "kvm_mmu_split_huge_page",
}
"""Every event of Linux 6.1's ``arch/x86/kvm/mmu/mmutrace.h``."""


def test_the_group_kvmmmu_is_the_kernels() -> None:
    assert {t.__name__ for t in ev.KVMMMU} == MMUTRACE


def test_every_type_is_listed_once_under_its_name() -> None:
    listed = [*ev.KVMMMU, *ev.KVM, *ev.FUNCTIONS, *ev.CONSOLE]
    assert len(listed) == len(set(listed)) == len(ev.EVENT_TYPES)
    defined = {
        name
        for name, value in vars(ev).items()
        if isinstance(value, type) and value.__module__ == ev.__name__ and issubclass(value, tuple)
    }
    assert defined == set(ev.EVENT_TYPES)
    assert all(ev.EVENT_TYPES[name].__name__ == name for name in defined)


@pytest.mark.parametrize("name", ev.EVENT_TYPES)
def test_a_type_is_a_documented_tuple_of_plain_values(name: str) -> None:
    event_type = ev.EVENT_TYPES[name]
    assert event_type.__doc__
    assert not event_type.__doc__.startswith(name + "(")
    plain = {int, bool, str, int | None, str | None}
    assert set(typing.get_type_hints(event_type).values()) <= plain


@pytest.mark.parametrize("mode", MODES)
def test_what_a_guest_causes_has_fields_of_their_types(mode: str) -> None:
    guest = Guest(mode)
    if mode != "np":
        guest.map(GVA, DATA).map(GVA + 0x1000, HOLE)
    guest.write(GVA)
    guest.read(GVA + 0x1000)
    guest.cr3()
    assert guest.events
    for event in guest.events:
        assert type(event) is ev.EVENT_TYPES[type(event).__name__]
        for field, kind in typing.get_type_hints(type(event)).items():
            assert isinstance(getattr(event, field), kind), (event, field)
