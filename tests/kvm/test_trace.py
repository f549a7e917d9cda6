"""Events are made for a listener, of what is there at that moment."""

from __future__ import annotations

from mmulab import events as ev
from mmulab.event import Event
from mmulab.kvm.trace import trace, trace_page
from tests.kvm.guest import GVA, Guest


def test_an_event_has_the_fields_given(guest: Guest) -> None:
    with guest.watch() as seen:
        trace(guest.kvm, ev.kvm_mmu_load)
        trace(guest.kvm, ev.kvm_mmu_pte_write, 0x1000, 8)
    assert seen == [ev.kvm_mmu_load(), ev.kvm_mmu_pte_write(0x1000, 8)]


def test_a_page_event_is_the_page_as_it_is(guest: Guest) -> None:
    guest.read(GVA)
    sp = guest.page(GVA)
    sp.unsync, sp.root_count = True, 3
    with guest.watch() as seen:
        trace_page(guest.kvm, ev.kvm_mmu_sync_page, sp)
        trace_page(guest.kvm, ev.kvm_mmu_get_page, sp, False)
    state = (sp.gfn, sp.role, guest.kvm.mmu_valid_gen, 3, True)
    assert seen == [ev.kvm_mmu_sync_page(*state), ev.kvm_mmu_get_page(*state, created=False)]


def test_nobody_listens_and_no_event_is_made(guest: Guest) -> None:
    def made(*fields: int) -> Event:
        raise AssertionError(fields)

    guest.kvm.emit = None
    trace(guest.kvm, made, 1)
