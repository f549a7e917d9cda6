"""The table of a small trace whose every number is known, and of real ones."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from mmulab.ftrace.reader import read_text, read_trace
from mmulab.ftrace.statistics import GROUPS, statistics

DATA = Path(__file__).parents[2] / "data/ftrace"
PAGE = "sp gen 0 gfn {gfn} {role} nxe ad root 0 {state}"
GUEST = "l1 8-byte q0 wux"


def line(number: int, name: str, text: str) -> str:
    return f" vm-7 [000] ..... 1.{number:06}: {name}: {text}"


def page(gfn: int, role: str = GUEST, state: str = "sync") -> str:
    return PAGE.format(gfn=gfn, role=role, state=state)


SMALL = [
    ("kvm_exit", "vcpu 0 reason npf rip 0x1 info1 0x7 info2 0x0 intr_info 0x0 error_code 0x0"),
    ("kvm_page_fault", "vcpu 0 rip 0x1 address 0x5000 error_code 0x7"),
    ("kvm_mmu_spte_requested", "gfn 5 pfn 105 level 1"),
    ("kvm_mmu_get_page", page(20) + " new"),
    ("kvm_mmu_get_page", page(20, "l2 8-byte q0 wux") + " new"),
    ("kvm_mmu_get_page", page(30) + " new"),
    ("kvm_mmu_get_page", page(30) + " existing"),
    ("kvm_mmu_set_spte", "gfn 5 spte 105867 (rwxu) level 1 at 28"),
    ("kvm_mmu_set_spte", "gfn 6 spte 106867 (rwxu) level 1 at 30"),
    ("kvm_mmu_set_spte", "gfn 7 spte 107867 (rwxu) level 1 at 38"),
    ("kvm_mmu_spte_requested", "gfn 6 pfn 106 level 1"),
    ("kvm_mmu_set_spte", "gfn 6 spte 106867 (rwxu) level 1 at 30"),
    ("kvm_mmu_spte_requested", "gfn 2ab pfn 2ab level 2"),
    ("kvm_mmu_set_spte", "gfn 200 spte 2008e7 (rwxu) level 2 at 40"),
    ("kvm_mmu_unsync_page", page(20)),
    ("kvm_mmu_sync_page", page(20, state="unsync")),
    ("kvm_mmu_pte_write", "(kvm_mmu_pte_write+0x0/0x370 [kvm]) gpa=0x20000 new=0x3 bytes=8"),
    ("kvm_mmu_prepare_zap_page", page(20)),
    ("kvm_mmu_free_roots", "(kvm_mmu_free_roots+0x0/0x1c0 [kvm]) roots=0x1"),
    ("kvm_mmu_prepare_zap_page", page(20, GUEST + " invalid")),
    ("kvm_mmu_prepare_zap_page", page(99)),
    ("kvm_tdp_mmu_spte_changed", "as id 0 gfn 0 level 1 old_spte 0 new_spte 5867"),
    ("kvm_tdp_mmu_spte_changed", "as id 0 gfn 0 level 1 old_spte 5867 new_spte 5a0"),
]


def rows(text: str) -> dict[tuple[str, str], float]:
    return {(row.group, row.name): row.value for row in statistics(read_text(text))}


def test_every_number_of_a_small_trace() -> None:
    found = rows("\n".join(line(number, *event) for number, event in enumerate(SMALL)))
    assert (
        found
        | {
            ("exits", "npf"): 1,
            ("faults", "KVM's 0x7 P|W|U"): 1,
            ("shadow pages", "looked up"): 4,
            ("shadow pages", "new"): 3,
            ("shadow pages", "found"): 1,
            ("shadow pages", "gfns shadowed under several roles"): 1,
            ("shadow pages", "new l1 8-byte q0 wux nxe ad"): 2,
            ("zaps", "all"): 3,
            ("zaps", "after kvm_mmu_pte_write"): 1,
            ("zaps", "after kvm_mmu_free_roots"): 2,
            ("lifetimes", "born and zapped"): 1,
            ("lifetimes", "alive at the end"): 2,
            ("lifetimes", "invalid roots zapped again"): 1,
            ("lifetimes", "zapped and not seen born"): 1,
            ("lifetimes", "longest, events"): 14,
            ("lifetimes", "median, seconds"): 14e-6,
            ("unsync", "unsync, gfn 20"): 1,
            ("unsync", "sync"): 1,
            ("sptes", "set"): 5,
            ("sptes", "set, level 2"): 1,
            ("sptes", "set, asked for by a fault"): 3,
            ("sptes", "set, prefetched"): 2,
            ("sptes", "prefetched, and the gfn faulted later all the same"): 1,
            ("sptes", "prefetched, and no later fault on the gfn"): 1,
            ("sptes", "TDP MMU, made"): 1,
            ("sptes", "TDP MMU, zapped"): 1,
            ("roots", "kvm_mmu_free_roots"): 1,
            ("walks and emulation", "kvm_mmu_pte_write"): 1,
        }
        == found
    )


def test_groups_are_those_of_the_table() -> None:
    found = statistics(read_trace(str(DATA / "shadow-686-nonpae-part.trace.xz")))
    assert {row.group for row in found} == set(GROUPS) - {"exits of L2"}


def test_counts_of_a_real_boot_are_those_made_when_it_was_captured() -> None:
    found = statistics(read_trace(str(DATA / "npt-amd64-legacy.trace.gz")))
    values = {(row.group, row.name): row.value for row in found}
    counted = json.loads((DATA / "npt-amd64-legacy.json").read_text("utf-8"))
    assert {row.name: row.value for row in found if row.group == "exits" and row.name != "all"} == counted[
        "exit_reasons"
    ]
    assert values["shadow pages", "new"] == counted["shadow_page_lookups"]["new"]
    levels: Counter[str] = Counter()
    for row in found:
        if row.group == "zaps" and row.name.startswith("l") and row.name[1:].isdigit():
            levels[row.name] += int(row.value)
    assert levels == counted["zapped_by_level"]


def test_a_trace_without_a_group_has_no_rows_of_it() -> None:
    assert {group for group, _ in rows(line(0, "kvm_mmu_paging_element", "pte 67 level 2"))} == {
        "walks and emulation"
    }
