"""What a trace amounts to: a table of counts, of the same rows for a host's trace and for a model's run.

A count is of events as they stand; what is more than that says so in its row's name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.ftrace.forms import flags_text
from mmulab.ftrace.trace import Table, Trace

SPTE_MMU_PRESENT = 1 << 11
"""Set in every present spte that KVM made (``spte.h``, since 5.13)."""
CAUSES = (
    "kvm_mmu_pte_write",
    "kvm_mmu_zap_all_fast",
    "kvm_mmu_free_roots",
    "kvm_mmu_get_page",
    "kvm_mmu_sync_page",
    "kvm_mmu_spte_requested",
    "kvm_mmu_unprotect_page",
    "kvm_mmu_load",
    "kvm_mmu_new_pgd",
    "kvm_unmap_hva_range",
    "__kvm_set_memory_region",
    "kvm_page_fault",
    "kvm_exit",
)
"""Events after which a page is zapped; the last of them before a zap stands for its reason."""
ROOTS = ("kvm_set_cr3", "kvm_mmu_new_pgd", "kvm_mmu_load", "kvm_mmu_free_roots", "kvm_mmu_sync_roots")
TOP = 5


GROUPS = (
    "exits",
    "exits of L2",
    "faults",
    "shadow pages",
    "zaps",
    "lifetimes",
    "unsync",
    "sptes",
    "roots",
    "walks and emulation",
)
"""The groups of rows, in the table's order."""


class Row(NamedTuple):
    """One number of the table; `value` is a count, or seconds where the name says so."""

    group: str
    name: str
    value: float


def statistics(trace: Trace) -> list[Row]:
    """Return the table, group by group."""
    return [row for part in _PARTS for row in part(trace)]


def _table(trace: Trace, name: str, *fields: str) -> Table | None:
    """Return the rows of an event that tell some fields; None if there are none."""
    table = trace.tables.get(name)
    found = None if table is None else table.telling(*fields)
    return found if found is not None and len(found) else None


def _counted(group: str, values: Iterable[object], prefix: str = "") -> Iterator[Row]:
    """Yield a row for each value, the most frequent first."""
    counts = Counter(values)
    for value, count in sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))):
        yield Row(group, f"{prefix}{value}", count)


def _number(column: npt.NDArray[np.generic], wording: Callable[[int], str]) -> Iterator[str]:
    """Yield a word for each number of a column."""
    values, where = np.unique(column, return_inverse=True)
    words = [wording(int(value)) for value in values]
    return (words[index] for index in where)


def _exits(trace: Trace) -> Iterator[Row]:
    for name, group in (("kvm_exit", "exits"), ("kvm_nested_vmexit", "exits of L2")):
        table = _table(trace, name, "reason")
        if table is not None:
            yield Row(group, "all", trace.event_counts[name])
            yield from _counted(group, table["reason"].tolist())


def _error_code(code: int) -> str:
    return f"{code:#x} {flags_text(code & 0x1F)}".rstrip()


def _faults(trace: Trace) -> Iterator[Row]:
    group = "faults"
    for name, field, what in (
        ("kvm_page_fault", "error_code", "KVM's"),
        ("kvm_mmu_walker_error", "pferr", "the guest's own"),
    ):
        table = _table(trace, name, field)
        if table is not None:
            yield Row(group, f"{what}, all", trace.event_counts[name])
            yield from _counted(group, _number(table[field], _error_code), f"{what} ")
    fast = _table(trace, "fast_page_fault", "fixed", "spurious")
    if fast is not None:
        yield Row(group, "fast, tried", len(fast))
        yield Row(group, "fast, fixed", int(fast["fixed"].sum()))
        yield Row(group, "fast, spurious", int(fast["spurious"].sum()))
    injected = _table(trace, "kvm_inj_exception", "exception")
    if injected is not None:
        yield from _counted(
            group, _number(injected["exception"], lambda vector: f"vector {vector}"), "injected "
        )
    for name in ("handle_mmio_page_fault", "mark_mmio_spte"):
        if name in trace.event_counts:
            yield Row(group, name, trace.event_counts[name])


def _roles(table: Table) -> list[str]:
    return [str(role) for role in table["role"].tolist()]


def _pages(trace: Trace) -> Iterator[Row]:
    group = "shadow pages"
    table = _table(trace, "kvm_mmu_get_page", "gfn", "role", "created")
    if table is not None:
        new = table["created"] == 1
        yield Row(group, "looked up", len(table))
        yield Row(group, "new", int(new.sum()))
        yield Row(group, "found", int((~new).sum()))
        yield Row(group, "gfns shadowed under several roles", _several_roles(table))
        yield from _counted(group, np.array(_roles(table), object)[new].tolist(), "new ")


def _several_roles(table: Table) -> int:
    roles: dict[int, set[str]] = {}
    for gfn, role in set(zip(table["gfn"].tolist(), _roles(table), strict=True)):
        if " direct" not in role:
            roles.setdefault(gfn, set()).add(role)
    return sum(len(found) > 1 for found in roles.values())


def _zaps(trace: Trace) -> Iterator[Row]:
    group = "zaps"
    table = _table(trace, "kvm_mmu_prepare_zap_page", "role")
    if table is not None:
        yield Row(group, "all", len(table))
        yield from _counted(group, (role.split()[0] for role in _roles(table)))
        yield from _counted(group, _last_before(trace, table.at), "after ")
    if "kvm_mmu_zap_all_fast" in trace.event_counts:
        yield Row(group, "kvm_mmu_zap_all_fast", trace.event_counts["kvm_mmu_zap_all_fast"])


def _last_before(trace: Trace, at: npt.NDArray[np.int64]) -> list[str]:
    """Return for each event which of the causes came last before it."""
    numbers = [number for number, name in enumerate(trace.names) if name in CAUSES]
    causes = np.flatnonzero(np.isin(trace.kind, numbers))
    found = np.searchsorted(causes, at) - 1
    return [
        "the trace's begin" if one < 0 else trace.names[trace.kind[causes[one]]] for one in found.tolist()
    ]


def _lifetimes(trace: Trace) -> Iterator[Row]:
    """Yield how long pages lived: from the lookup that made one to the zap of the same gfn and role."""
    group = "lifetimes"
    made = _table(trace, "kvm_mmu_get_page", "gfn", "role", "created")
    zapped = _table(trace, "kvm_mmu_prepare_zap_page", "gfn", "role")
    if made is None:
        return
    new = np.flatnonzero(made["created"] == 1)
    roles = _roles(made)
    steps = [(int(made.at[row]), int(made["gfn"][row]), roles[row], True) for row in new.tolist()]
    if zapped is not None:
        ends = zip(zapped.at.tolist(), zapped["gfn"].tolist(), _roles(zapped), strict=True)
        steps += [(at, gfn, role, False) for at, gfn, role in ends]
    born: dict[tuple[int, str], list[int]] = {}
    lives, unknown, again = [], 0, 0
    for at, gfn, role, created in sorted(steps):
        if created:
            born.setdefault((gfn, role), []).append(at)
        elif born.get((gfn, role)):
            lives.append((born[gfn, role].pop(), at))
        elif " invalid" in role:
            again += 1
        else:
            unknown += 1
    yield Row(group, "born and zapped", len(lives))
    yield Row(group, "alive at the end", sum(map(len, born.values())))
    yield Row(group, "zapped and not seen born", unknown)
    yield Row(group, "invalid roots zapped again", again)
    if lives:
        numbers = np.array(lives)
        yield from _spread(group, "events", numbers[:, 1] - numbers[:, 0])
        times = trace.time[numbers]
        if (times >= 0).all():
            yield from _spread(group, "seconds", (times[:, 1] - times[:, 0]) / 1e9)


def _spread(group: str, unit: str, lengths: npt.NDArray[Any]) -> Iterator[Row]:
    """Yield what a typical and an extreme length is; each is one that occurs."""
    ordered = np.sort(lengths)
    for name, share in (("shortest", 0), ("median", 0.5), ("9 of 10 up to", 0.9), ("longest", 1)):
        yield Row(group, f"{name}, {unit}", ordered[math.ceil(share * (len(ordered) - 1))].item())


def _sync(trace: Trace) -> Iterator[Row]:
    group = "unsync"
    for name, what in (("kvm_mmu_unsync_page", "unsync"), ("kvm_mmu_sync_page", "sync")):
        table = _table(trace, name, "gfn")
        if table is not None:
            gfns, counts = np.unique(table["gfn"], return_counts=True)
            yield Row(group, what, len(table))
            yield Row(group, f"{what}, gfns", len(gfns))
            for index in np.argsort(-counts, kind="stable")[:TOP].tolist():
                yield Row(group, f"{what}, gfn {int(gfns[index]):x}", int(counts[index]))


def _sptes(trace: Trace) -> Iterator[Row]:
    group = "sptes"
    table = _table(trace, "kvm_mmu_set_spte", "gfn", "level", "spte")
    if table is not None:
        yield Row(group, "set", len(table))
        yield from _counted(group, _number(table["level"], lambda level: f"level {level}"), "set, ")
        yield from _prefetched(trace, table)
    changed = _table(trace, "kvm_tdp_mmu_spte_changed", "old_spte", "new_spte")
    if changed is not None:
        old = (changed["old_spte"].astype(np.uint64) & np.uint64(SPTE_MMU_PRESENT)) != 0
        new = (changed["new_spte"].astype(np.uint64) & np.uint64(SPTE_MMU_PRESENT)) != 0
        for name, rows in (
            ("made", ~old & new),
            ("zapped", old & ~new),
            ("changed", old & new),
            ("other", ~old & ~new),
        ):
            yield Row(group, f"TDP MMU, {name}", int(rows.sum()))
    if "kvm_mmu_split_huge_page" in trace.event_counts:
        yield Row(group, "kvm_mmu_split_huge_page", trace.event_counts["kvm_mmu_split_huge_page"])


def _prefetched(trace: Trace, table: Table) -> Iterator[Row]:
    """Yield how many sptes nobody had asked for, and for how many of those gfns a fault asked after all."""
    asked = _table(trace, "kvm_mmu_spte_requested", "gfn", "level")
    if asked is None:
        return
    before = np.searchsorted(asked.at, table.at) - 1
    known = before >= 0
    below = (9 * (table["level"] - 1)).astype(np.uint64)
    same = known & (asked["gfn"][np.maximum(before, 0)] >> below == table["gfn"] >> below)
    first = np.zeros(len(table), bool)
    first[np.unique(before, return_index=True)[1]] = True
    requested = same & first
    extra = ~requested
    yield Row("sptes", "set, asked for by a fault", int(requested.sum()))
    yield Row("sptes", "set, prefetched", int(extra.sum()))
    last: dict[int, int] = {}
    for gfn, at in zip(asked["gfn"].tolist(), asked.at.tolist(), strict=True):
        last[gfn] = at
    later = sum(
        last.get(gfn, -1) > at
        for gfn, at in zip(table["gfn"][extra].tolist(), table.at[extra].tolist(), strict=True)
    )
    yield Row("sptes", "prefetched, and the gfn faulted later all the same", later)
    yield Row("sptes", "prefetched, and no later fault on the gfn", int(extra.sum()) - later)


def _roots(trace: Trace) -> Iterator[Row]:
    counts = trace.event_counts
    for name in ROOTS:
        if name in counts:
            yield Row("roots", name, counts[name])
    table = _table(trace, "kvm_set_cr3", "val")
    if table is not None:
        yield Row("roots", "kvm_set_cr3, different values", len(set(table["val"].tolist())))


def _walks(trace: Trace) -> Iterator[Row]:
    counts = trace.event_counts
    for name in (
        "kvm_mmu_pagetable_walk",
        "kvm_mmu_paging_element",
        "kvm_mmu_set_accessed_bit",
        "kvm_mmu_set_dirty_bit",
        "kvm_emulate_insn",
        "kvm_mmu_pte_write",
        "kvm_mmu_invlpg",
    ):
        if name in counts:
            yield Row("walks and emulation", name, counts[name])


_PARTS: tuple[Callable[[Trace], Iterator[Row]], ...] = (
    _exits,
    _faults,
    _pages,
    _zaps,
    _lifetimes,
    _sync,
    _sptes,
    _roots,
    _walks,
)
