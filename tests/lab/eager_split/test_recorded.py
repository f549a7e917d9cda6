"""A real migration beside the model's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmulab.lab.eager_split.recorded import (
    Migration,
    Phase,
    compare,
    machine_of,
    model_lines,
    read_migration,
    read_phases,
    shape,
)
from mmulab.machine import op as ops


@pytest.fixture(scope="module")
def migration() -> Migration:
    return read_migration()


def test_the_model_does_what_linux_did(migration: Migration) -> None:
    """All 32,811 events, in their order: 50 splits by the first clear, 1,432 fast faults, 2 clears."""
    rows = {row.event: row for row in compare(migration.lines, model_lines(migration))}
    assert all(row.equal for row in rows.values())
    assert {name: row.recorded for name, row in rows.items()} == {
        "kvm_page_fault": 2697,
        "fast_page_fault": 1432,
        "kvm_mmu_get_page": 57,
        "kvm_tdp_mmu_spte_changed": 28038,
        "kvm_mmu_set_spte": 526,
        "kvm_mmu_split_huge_page": 50,
        "mark_mmio_spte": 3,
        "handle_mmio_page_fault": 8,
        "all, in their order": 32811,
    }


def test_the_vmms_statistics_agree(migration: Migration) -> None:
    """``pages_2m`` and ``pages_4k`` as KVM counted them before the migration and at its end."""
    machine = machine_of(migration)
    seen = []
    for op in [*migration.ops, None]:
        if op is None or isinstance(op, ops.SetMemslot):
            seen.append((machine.kvm.stat["pages_2m"], machine.kvm.stat["pages_4k"]))
        if op is not None:
            machine.execute(op)
    assert (seen[0], seen[-1]) == ((50, 476), (0, 26076))


def test_what_was_asked_is_read_from_the_trace(migration: Migration) -> None:
    kinds = [type(op) for op in migration.ops]
    assert kinds.count(ops.SetMemslot) == 6
    assert kinds.count(ops.ClearDirtyLog) == 2 * 6
    assert migration.small == {0}


def test_without_the_clears_the_trace_is_another(migration: Migration) -> None:
    migration = replace(migration, ops=[op for op in migration.ops if not isinstance(op, ops.ClearDirtyLog)])
    rows = {row.event: row for row in compare(migration.lines, model_lines(migration))}
    assert rows["kvm_mmu_split_huge_page"][1:] == (50, 0, False)
    assert not rows["all, in their order"].equal


def test_a_host_with_shadow_paging_makes_no_huge_page_while_it_logs() -> None:
    """And splits none eagerly: ``is_tdp_mmu_enabled`` comes first. They come back afterwards."""
    assert read_phases() == [Phase("before", 225, 0), Phase("while logging", 0, 0), Phase("after", 241, 0)]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "kvm_tdp_mmu_spte_changed: as id 0 gfn 200 level 2 old_spte 2f800ee7 new_spte 2e949827",
            "kvm_tdp_mmu_spte_changed: as id 0 gfn 200 level 2 old_spte ee7 new_spte 827",
        ),
        (
            "kvm_page_fault: vcpu 0 rip 0xe974a address 0xe974a error_code 0x100000014",
            "kvm_page_fault: address 0xe974a error_code 0x00000014",
        ),
        (
            "mark_mmio_spte: sptep:0000000003198455 gfn fee00 access 7 gen 54",
            "mark_mmio_spte: gfn fee00 access 7 gen 54",
        ),
    ],
)
def test_the_shape_of_an_event(text: str, left: str) -> None:
    assert shape(text) == left
