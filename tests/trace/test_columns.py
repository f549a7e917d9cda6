"""Logs give back what was put into them, whatever the values and however they came."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmulab import events as ev
from mmulab.machine import op as ops
from mmulab.machine.op import Mmio, Mode, Outcome, OutcomeKind
from mmulab.trace.codec import Constants, decode, encode
from mmulab.trace.columns import Column, Log

NUMBERS = st.integers(-1, 2**64 - 1) | st.sampled_from([2**64 - 1, 2**64 - 2, 2**64 - 3, 0, -1])
LEVELS, SIZES = st.integers(1, 3), st.sampled_from([1, 4, 8])
OPTIONAL = st.none() | NUMBERS
EVENTS = st.one_of(
    st.builds(ev.kvm_mmu_pagetable_walk, NUMBERS, st.integers(0, 255)),
    st.builds(
        ev.kvm_mmu_set_spte,
        NUMBERS,
        NUMBERS,
        st.integers(1, 3),
        NUMBERS,
        st.booleans(),
        st.booleans(),
        NUMBERS,
    ),
    st.builds(
        ev.kvm_exit,
        st.sampled_from(["pf", "npf", "db"]),
        *(NUMBERS, OPTIONAL, OPTIONAL),
        qualification=OPTIONAL,
        idt_vectoring=OPTIONAL,
    ),
    st.builds(ev.kvm_mmu_free_roots, NUMBERS),
    st.just(ev.kvm_mmu_load()),
)
OUTCOMES = st.builds(
    Outcome,
    st.sampled_from(OutcomeKind),
    rip=OPTIONAL,
    hpa=NUMBERS,
    mmio=st.none() | st.lists(st.builds(Mmio, st.booleans(), NUMBERS, st.just(4), NUMBERS), max_size=2),
    dirty=st.none() | st.lists(st.integers(0, 9)),
)
OPS = st.one_of(
    st.builds(
        ops.Read, mode=st.sampled_from(Mode), size=st.sampled_from([1, 4, 8]), gva=st.integers(0, 2**64 - 1)
    ),
    st.builds(ops.WriteCr, st.sampled_from([0, 3, 4]), st.integers(0, 2**64 - 1), st.booleans()),
    st.just(ops.Teardown()),
)


def same(a: object, b: object) -> bool:
    """Whether two records are equal, True being another value than 1."""
    return type(a) is type(b) and repr(a) == repr(b)


def reopened(log: Log) -> Log:
    """Return a log as a file gives it back."""
    constants = Constants()
    made = Log(table.kind for table in log.tables)
    for table, new in zip(log.tables, made.tables, strict=True):
        count = len(log.places(table.kind))
        for name, column in table.columns.items():
            words = [getattr(word, "value", word) for word in column.words]
            aside = {row: decode(encode(value, constants), constants) for row, value in column.aside.items()}
            new.columns[name].load(column.compact().copy(), count, words, aside)
    made.load(log.kinds().copy())
    return made


@given(st.lists(st.lists(EVENTS | OUTCOMES | OPS, max_size=12), max_size=6))
def test_log_gives_back_what_was_put_in(batches: list[list[object]]) -> None:
    log = Log()
    for batch in batches:
        log.extend(batch)
    wanted = [record for batch in batches for record in batch]
    for found in (log, reopened(log)):
        assert len(found) == len(wanted)
        assert all(map(same, found, wanted))
        for kind in {type(record) for record in wanted}:
            assert found.places(kind).tolist() == [
                n for n, record in enumerate(wanted) if type(record) is kind
            ]


def test_rows_are_counted_across_blocks() -> None:
    log = Log()
    records = [ev.kvm_mmu_new_pgd(n) if n % 3 else ev.drop_spte(n, 2 * n) for n in range(1000)]
    log.extend(records)
    assert [log[n] for n in range(999, -1, -1)] == records[::-1]
    with pytest.raises(IndexError):
        log[1000]


def test_columns_are_narrow() -> None:
    log = Log()
    log.extend([ev.kvm_mmu_paging_element(n, 1) for n in range(200)])
    assert log.nbytes == 200 + 200
    log.extend([ev.kvm_mmu_paging_element(1 << 40, 1)])
    assert log.nbytes == 201 + 8 * 201
    assert log[7] == ev.kvm_mmu_paging_element(7, 1)


def test_numbers_for_searching() -> None:
    column = Column(int)
    column.extend([5, None, -1])
    assert column.numbers().tolist() == [7, 0, 1]
    same_all = Column(int)
    same_all.extend([9] * 4)
    assert same_all.numbers().tolist() == [11] * 4
    assert same_all.nbytes == 0


def test_changed_record_is_another() -> None:
    outcome = Outcome(OutcomeKind.OK, rax=1)
    log = Log()
    log.extend([outcome, replace(outcome, rax=2)])
    assert [found.rax for found in log] == [1, 2]
    assert np.array_equal(log.kinds(), [0, 0])
