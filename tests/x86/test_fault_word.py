"""Faults' words: bits by name, what the trace prints of them, and what no processor reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab.x86 import ept, pferr
from mmulab.x86.fault_word import (
    EPT_VIOLATION,
    NPF,
    PAGE_FAULT,
    FaultForm,
    ept_violation_pferr,
    traced_pferr,
)

FORMS = [PAGE_FAULT, EPT_VIOLATION, NPF]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_bits_are_where_the_engine_has_them(form: FaultForm) -> None:
    bits = [bit.bit for bit in form.bits]
    assert bits == sorted(set(bits))
    for bit in form.bits:
        engine = getattr(pferr, bit.name, None) or getattr(ept, bit.name, None)
        assert engine in (None, bit.mask), bit.name


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@given(word=st.integers(0, 2**64 - 1))
def test_no_bit_is_lost(form: FaultForm, word: int) -> None:
    named = {bit.label: bit.mask for bit in form.bits}
    assert sum(named[label] for label in form.labels(word)) | form.unknown(word) == word
    assert form.summary(word)


@given(st.integers(0, 2**64 - 1))
def test_the_trace_prints_32_bits_of_which_it_names_five(code: int) -> None:
    number, _, flags = traced_pferr(code).removeprefix("pferr ").partition(" ")
    assert int(number, 16) == code & 0xFFFFFFFF
    named = {"P": 1, "W": 2, "U": 4, "RSVD": 8, "F": 16}
    told = [named[flag] if flag in named else int(flag, 16) for flag in flags.split("|") if flag]
    assert sum(told) == code & 0xFFFFFFFF


def test_what_kvm_makes_of_an_ept_violation() -> None:
    """A write that the present entry refuses, of the page and of the guest's tables."""
    assert ept_violation_pferr(0x18A) == 0x1_0000_0003
    assert ept_violation_pferr(0x8A) == 0x2_0000_0003
    assert ept_violation_pferr(0x181) == 0x1_0000_0004
    assert ept_violation_pferr(0x184) == 0x1_0000_0010


@pytest.mark.parametrize(
    ("form", "word", "said"),
    [
        (PAGE_FAULT, 0x12, "W and F do not come together"),
        (PAGE_FAULT, 0x8, "RSVD without P"),
        (PAGE_FAULT, 0x20, "PK without P"),
        (PAGE_FAULT, 0x300000001, "a processor sets one of them"),
        (PAGE_FAULT, 1 << 60, "bits 0x1000000000000000 are defined in no manual"),
        (NPF, 0x7, "neither GUEST_FINAL nor GUEST_PAGE"),
        (EPT_VIOLATION, 0x180, "no kind of access"),
        (EPT_VIOLATION, 0x101, "bit 8 means nothing"),
        (EPT_VIOLATION, 0x281, "bits 11:9 mean nothing"),
    ],
)
def test_what_no_processor_reports(form: FaultForm, word: int, said: str) -> None:
    assert any(said in note for note in form.notes(word))


@pytest.mark.parametrize(
    ("form", "word", "summary"),
    [
        (PAGE_FAULT, 0x7, "user write, a present entry without the right"),
        (PAGE_FAULT, 0x10, "supervisor fetch, a non-present entry"),
        (PAGE_FAULT, 0x9, "supervisor read, a reserved bit"),
        (NPF, 0x100000006, "user write, a non-present entry; nested: the guest's final physical address"),
        (NPF, 0x200000006, "user write, a non-present entry; nested: a page table of the guest"),
        (EPT_VIOLATION, 0x1AA, "write, a present entry allows r-x; of the page itself"),
        (EPT_VIOLATION, 0x83, "read and write, not present; of a paging-structure entry of the guest"),
        (EPT_VIOLATION, 0x1, "read, not present; no linear address"),
    ],
)
def test_a_fault_in_a_sentence(form: FaultForm, word: int, summary: str) -> None:
    assert form.summary(word) == summary
    assert form.notes(word) == []
