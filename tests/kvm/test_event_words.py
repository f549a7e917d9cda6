"""A kernel's own names and numbers of events."""

from __future__ import annotations

import pytest

from mmulab import events as ev
from mmulab.errors import InputError
from mmulab.kvm.event_words import EVENTS_6_1, EVENTS_6_12, EventWords
from mmulab.kvm.mmu_internal import RetPf


def test_the_models_numbers_are_those_of_6_1() -> None:
    assert [RetPf[name] for name in EVENTS_6_1.ret_pf] == list(range(len(EVENTS_6_1.ret_pf)))


def test_6_12_numbers_all_that_the_model_knows() -> None:
    """``enum`` in Linux 6.12.117 arch/x86/kvm/mmu/mmu_internal.h."""
    assert set(EVENTS_6_12.ret_pf) == set(RetPf.__members__)
    assert EVENTS_6_12.ret_pf.index("WRITE_PROTECTED") == 3
    assert EVENTS_6_12.ret_pf.index("SPURIOUS") == 6


def test_only_functions_are_renamed() -> None:
    renamed = {kind.__name__ for kind in ev.EVENT_TYPES.values() if EVENTS_6_12.name(kind) != kind.__name__}
    assert renamed == {
        "kvm_flush_remote_tlbs_with_address",
        "kvm_mmu_pte_write",
        "kvm_mmu_unprotect_page",
    }
    assert all(EVENTS_6_1.name(kind) == kind.__name__ for kind in ev.EVENT_TYPES.values())


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("kvm_mmu_get_page", "other"), "event 'kvm_mmu_get_page': it is no function's entry"),
        (("nothing", "other"), "event 'nothing': it is no function's entry"),
        (("drop_spte", "\x1b[2J"), "event drop_spte: '.*' is no name of a function"),
    ],
)
def test_other_names_are_refused(pair: tuple[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        EventWords(EVENTS_6_1.ret_pf, (pair,))
