"""Values that a random search puts into a guest's page tables."""

from __future__ import annotations

from random import Random

from mmulab.check.area import Area, Entry, leaf_flags, link_flags
from mmulab.check.guest import LOW, MMIO, SLOT_PAGES, Plan
from mmulab.x86.mode import (
    PT64_NX_MASK,
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_GLOBAL_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    VMX_EPT_ACCESS_BIT,
    VMX_EPT_DIRTY_BIT,
    VMX_EPT_RWX_MASK,
)

TABLES_IN_SLOTS = SLOT_PAGES[::2]
"""First pages of the slots, which hold tables too: where a large page begins."""
RESERVED = 1 << 45
"""A bit of an address above every guest's physical addresses."""
LARGE_BASES = {2: (0x200000, 0x400000, 0), 3: (0,)}
"""Frames of large pages by level; of 4-byte entries those that are multiples of 4 MiB."""
_EPT_RIGHTS = (7, 7, 7, 7, 3, 3, 5, 1, 4, 2, 0)
_CLEARED = ((PT_WRITABLE_MASK, 0.3), (PT_USER_MASK, 0.2), (PT_ACCESSED_MASK, 0.1), (PT_DIRTY_MASK, 0.15))


def entry_value(rng: Random, plan: Plan, area: Area, entry: Entry) -> int:
    """Draw a value for an entry: a link, a leaf, nothing, or what no entry may be."""
    width, level = area.mode.entry_bytes, entry.level
    choice = rng.random()
    if choice < 0.1:
        return 0
    if level > 1 and (choice < 0.7 or level not in LARGE_BASES or (area.mode.has_pdptes and level == 3)):
        kind = rng.random()
        tables = area.tables[level - 1] if kind < 0.8 else plan.tables if kind < 0.9 else TABLES_IN_SLOTS
        value = rng.choice(tables) | link_flags(area.mode, level, area.ept)
    else:
        value = _frame(rng, plan, area, level) | leaf_flags(level, area.ept)
    if not (area.mode.has_pdptes and level == 3):
        value = _rights(rng, value, area)
    if width == 8 and rng.random() < 0.03:
        value |= RESERVED
    return value & (1 << 8 * width) - 1


def _frame(rng: Random, plan: Plan, area: Area, level: int) -> int:
    if level > 1:
        bases = LARGE_BASES[level]
        return rng.choice([base for base in bases if area.mode.entry_bytes == 8 or base % 0x400000 == 0])
    choice = rng.random()
    if choice < 0.8:
        return rng.choice(area.targets)
    return MMIO if choice < 0.9 else rng.choice(plan.tables)


def _rights(rng: Random, value: int, area: Area) -> int:
    if area.ept:
        value = value & ~VMX_EPT_RWX_MASK | rng.choice(_EPT_RIGHTS)
        return value | rng.choice((0, 0, VMX_EPT_ACCESS_BIT, VMX_EPT_ACCESS_BIT | VMX_EPT_DIRTY_BIT))
    for bit, share in _CLEARED:
        if rng.random() < share:
            value &= ~bit
    if rng.random() < 0.1:
        value |= PT_GLOBAL_MASK
    if area.mode.entry_bytes == 8 and rng.random() < 0.1:
        value |= PT64_NX_MASK
    return value & ~PT_PRESENT_MASK if rng.random() < 0.05 else value


def backing_ranges(plan: Plan) -> tuple[tuple[int, int], ...]:
    """Return ranges of the backing, as offset and length, that the host may do something with."""
    if plan.guest.large:
        return tuple((slot.offset, slot.size) for slot in plan.slots)
    single = [(page, 0x1000) for page in (*plan.tables, *range(0x40000, 0x44000, 0x1000))]
    slots = [(slot.offset + page, 0x1000) for slot in plan.slots for page in (0, 0x1000)]
    return (*single, *slots, (0x40000, LOW - 0x40000), *((slot.offset, slot.size) for slot in plan.slots))
