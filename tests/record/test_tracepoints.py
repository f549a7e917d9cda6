"""Raw events as recordings have them."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.conform.values import FRAME_HOST, FRAME_SP, PFN_NOSLOT
from mmulab.errors import InputError
from mmulab.kvm.event_words import EVENTS_6_1, EVENTS_6_12, EventWords
from mmulab.record.ring import EventFormat
from mmulab.record.tracepoints import RawReader, event_words

PRESENT = 1 << 11
FAST = {"cr2_or_gpa": 0, "error_code": 7, "sptep": 0x7008, "old_spte": 0, "new_spte": 0}


def reader(words: EventWords = EVENTS_6_1, vendor: str = "amd") -> RawReader:
    made = RawReader(vendor, {}, words, 40)
    made.add_frames([0x500, 0x501])
    return made


def test_frames_become_pages_of_the_backing() -> None:
    made = reader()
    assert made._spte(PRESENT | 0x501 << 12 | 1 << 63) == PRESENT | 1 << 12 | 1 << 63
    assert made._spte(0x501 << 12) == 0x501 << 12  # not present: no frame
    assert made._spte(PRESENT | 0x999 << 12) == PRESENT | FRAME_HOST << 12
    assert made._spte(PRESENT | 0x999 << 12, 2, leaf=False) == PRESENT | FRAME_SP << 12
    assert made._spte(PRESENT | 0x500 << 12 | 1 << 7, 2, leaf=False) == PRESENT | 1 << 7
    assert made.unknown == {0x999}


def test_later_frames_do_not_hide_earlier_ones() -> None:
    made = reader()
    made.add_frames([0x600, 0x501])
    assert (made._frame(0x500), made._frame(0x600), made._frame(0x501)) == (0, 0, 1)


def test_of_a_frame_that_holds_one_page_after_another_the_later_one_counts() -> None:
    made = reader()
    made.frames_now([0x500, 0x501], [0, 0x501])  # page 0 is swapped out
    assert (made._frame(0x500), made._frame(0x501)) == (0, 1), "the op's events still name it"
    made.frames_now([0, 0x501], [0x600, 0x500])  # page 0 is back, page 1 lies where it lay
    assert (made._frame(0x500), made._frame(0x600), made._frame(0x501)) == (1, 0, 1)
    assert 0 not in made.frames


def test_a_gfn_without_slot_has_no_frame() -> None:
    raw = {"gfn": 5, "pfn": 0x7FF0000000000002 | PFN_NOSLOT, "level": 1}
    assert reader()._event("kvm_mmu_spte_requested", raw) == ev.kvm_mmu_spte_requested(5, PFN_NOSLOT, 1)


@pytest.mark.parametrize(("words", "number"), [(EVENTS_6_1, 4), (EVENTS_6_12, 5)])
def test_results_of_fast_faults_have_the_numbers_of_6_1(words: EventWords, number: int) -> None:
    assert reader(words)._event("fast_page_fault", {**FAST, "ret": number}).ret == 4


def test_a_result_that_6_1_has_not_comes_behind_its_own() -> None:
    assert reader(EVENTS_6_12)._event("fast_page_fault", {**FAST, "ret": 3}).ret == 6


def test_a_kernel_says_its_numbers_by_how_it_prints() -> None:
    def printed(spurious: int, fixed: int) -> list[EventFormat]:
        return [EventFormat(1, "fast_page_fault", (), f"x, REC->ret == {spurious}, REC->ret == {fixed}")]

    assert event_words(printed(5, 4)) is EVENTS_6_1
    assert event_words(printed(6, 5)) is EVENTS_6_12
    with pytest.raises(InputError, match=r"\(9, 8\)"):
        event_words(printed(9, 8))
    with pytest.raises(InputError, match="no tracepoint"):
        event_words([])


def test_what_host_interrupts_cause_is_left_out() -> None:
    made = reader()
    inject = {"reinjected": 1}
    assert not made._is_seen("kvm_exit", {"exit_reason": 0x60})
    assert made._is_seen("kvm_inj_exception", {})
    assert not made._is_seen("kvm_exit", {"exit_reason": 0x60})
    assert not made._is_seen("kvm_inj_exception", inject)  # put in again after the interrupt
    assert made._is_seen("kvm_exit", {"exit_reason": 0x4E})
    assert made._is_seen("kvm_inj_exception", inject)  # after an exit of the guest's own
    assert not made._is_seen("kvm_nested_vmexit", {"exit_reason": 0x60})


def test_a_ring_is_the_vcpus_index() -> None:
    raw = {"index": 1, "dirty_index": 5, "reset_index": 2, "slot": 0x10000, "offset": 0x101}
    assert reader()._event("kvm_dirty_ring_push", raw) == ev.kvm_dirty_ring_push(1, 5, 2, 0x10000, 0x101)
    assert reader()._event("kvm_dirty_ring_reset", raw) == ev.kvm_dirty_ring_reset(1, 5, 2)
    assert reader()._event("kvm_dirty_ring_exit", {"vcpu_id": 1}) == ev.kvm_dirty_ring_exit(1)
    assert reader()._event("kvm_age_hva", {"start": 0x1000, "end": 0x2000}) == ev.kvm_age_hva()


def test_dropping_an_empty_entry_is_no_event() -> None:
    assert not reader()._is_seen("drop_spte", {"old_spte": 1 << 63})
    assert reader()._is_seen("drop_spte", {"old_spte": PRESENT})


def test_an_entry_into_l2_has_the_root_that_the_kernel_names() -> None:
    raw = {"vmcb": 0xB000, "nested_rip": 0x18F0, "tdp_enabled": 1, "guest_pgd": 0x1405E, "isa": 1}
    made = reader(vendor="intel")._event("kvm_nested_vmenter", raw)
    assert made == ev.kvm_nested_vmenter(0xB000, 0x18F0, True, 0x1405E)


def test_what_the_hosts_clock_causes_on_intel_is_left_out() -> None:
    made = reader(vendor="intel")
    assert [made._is_seen("kvm_exit", {"exit_reason": code}) for code in (1, 52, 48, 0)] == [
        False,
        False,
        True,
        True,
    ]
    assert not made._is_seen("kvm_nested_vmexit", {"exit_reason": 1})
