"""Scopes of a guest without a guest of its own, each aimed at one thing.

Two tables reached by two ways, a register toggled between two accesses, an entry that
changes while KVM does not look: the alphabets hold little else, so that all sequences of
a handful of steps can be tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from mmulab.check.edge_scopes import edge_makers
from mmulab.check.nested_scopes import nested_makers
from mmulab.check.scope import Scope, steps
from mmulab.check.scope_guest import (
    FULL,
    GVA,
    MEMORY,
    OUTSIDE,
    PAGES,
    READ_ONLY,
    ROOT,
    ROOT2,
    SUPERVISOR,
    TABLE_VA,
    TABLES2,
    as_text,
    guest,
)
from mmulab.errors import InputError, quoted
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import Regs
from mmulab.scenario.tables import PAGE, Tables
from mmulab.x86.mode import PT64_NX_SHIFT, PT_DIRTY_MASK, PT_PAGE_SIZE_MASK
from mmulab.x86.regs import EFER_NX, X86_CR0_WP, X86_CR4_PGE, X86_CR4_SMAP, X86_CR4_SMEP


def _each(gvas: tuple[int, ...], *kinds: str) -> list[str]:
    """Return accesses of these kinds (``rd s``, ``wr u``) to each address."""
    tail = {"rd": "", "wr": " 7700", "xc": ""}
    size = {"rd": "4 ", "wr": "4 ", "xc": ""}
    found = []
    for kind, who in (kind.split() for kind in kinds):
        at = 0x800 if kind == "xc" else 0
        found += [f"{kind} {who} {size[kind]}{gva + at:x}{tail[kind]}" for gva in gvas]
    return found


NX = 1 << PT64_NX_SHIFT
FAR = 0x10 * PAGE
BIG = 0x8000000000
"""Where a page of 1 GiB lies for the guest."""
LIMITED = 64
"""Tables of a guest that comes near the limit of shadow pages."""
_LEAVES = (PAGES | FULL, PAGES + PAGE | READ_ONLY, OUTSIDE | FULL, 0)
_ALL = ("rd s", "wr s", "rd u", "wr u")


def paths(mode: str, **host: Any) -> Scope:
    """Three directory entries of other rights lead to one table."""
    builder, tables, _ = guest(mode, **host)
    tables.put(GVA, PAGES | FULL)
    below, step = tables.entry(GVA) & -PAGE, tables.step(2)
    for at, flags in ((1, READ_ONLY), (2, SUPERVISOR)):
        tables.put(GVA + at * step, below | flags, 2)
    ops = _each(tuple(GVA + at * step for at in range(3)), *_ALL)
    return _scope("three entries of other rights lead to one table", builder, ops, 4)


def upper_paths(mode: str, **host: Any) -> Scope:
    """Two entries of level 3 lead to one directory, two of that to one table."""
    builder, tables, _ = guest(mode, **host)
    tables.put(GVA, PAGES | FULL)
    table, directory = (tables.entry(GVA, level) & -PAGE for level in (1, 2))
    low, high = tables.step(2), tables.step(3)
    tables.put(GVA + low, PAGES + PAGE | FULL)
    tables.put(GVA, table | READ_ONLY, 2)
    tables.put(GVA + high, directory | READ_ONLY, 3)
    ops = _each((GVA, GVA + low, GVA + high, GVA + high + low), "rd u", "wr u")
    return _scope("two ways to one directory, from which two lead on", builder, ops, 5)


def rights(mode: str, **host: Any) -> Scope:
    """CR0.WP, at first 0, SMEP and SMAP change between accesses to a user's read-only page."""
    builder, tables, regs = guest(mode, **host)
    tables.put(GVA, PAGES | READ_ONLY)
    builder.sregs(*regs._replace(cr0=regs.cr0 & ~X86_CR0_WP))
    ops = _each((GVA,), *_ALL, "xc s")
    ops += [f"cr0 {cr0:x}" for cr0 in (regs.cr0 & ~X86_CR0_WP, regs.cr0)]
    ops += [f"cr4 {cr4:x}" for cr4 in (regs.cr4, regs.cr4 | X86_CR4_SMEP, regs.cr4 | X86_CR4_SMAP)]
    return _scope("CR0.WP, SMEP and SMAP change between accesses to one page", builder, ops, 6)


def halves(**host: Any) -> Scope:
    """Both halves of a table of 4-byte entries, written by the guest."""
    builder, tables, _ = guest("32", **host)
    upper = GVA + (1 << 21)
    lower_at = tables.put(GVA, PAGES | FULL)
    upper_at = tables.put(upper, PAGES + PAGE | FULL)
    tables.put(TABLE_VA, (lower_at & -PAGE) | FULL)
    ops = _each((GVA, upper), "rd s", "wr u")
    for at in (lower_at, upper_at):
        ops += [as_text("wr s", 4, TABLE_VA | at & 0xFFF, page | FULL) for page in (PAGES + 2 * PAGE,)]
    ops += [f"invlpg {GVA:x}", f"invlpg {upper:x}", f"cr3 {ROOT:x}"]
    return _scope("both halves of a 32-bit guest's table", builder, ops, 6)


def large(mode: str, **host: Any) -> Scope:
    """Two large pages of other rights show one frame; the first has D clear."""
    builder, tables, regs = guest(mode, **host)
    step, leaf = tables.step(2), PT_PAGE_SIZE_MASK
    tables.put(GVA, leaf | FULL & ~PT_DIRTY_MASK, 2)
    tables.put(GVA + step, leaf | READ_ONLY & ~PT_DIRTY_MASK, 2)
    ops = _each((GVA + PAGES, GVA + step + PAGES), *_ALL)
    ops += [f"cr0 {cr0:x}" for cr0 in (regs.cr0 & ~X86_CR0_WP, regs.cr0)]
    return _scope("two large pages of other rights show one frame", builder, ops, 5)


def behind(mode: str, **host: Any) -> Scope:
    """A directory entry changes while KVM does not look: large page, another one, a table in the first."""
    builder, tables, _ = guest(mode, mem=0x600000, **host)
    builder.slot(0, 0, 0x200000, 0, 0)
    for slot in (1, 2):
        builder.slot(slot, slot << 21, 0x200000, 0, slot << 21)
    leaf, first, second, width = PT_PAGE_SIZE_MASK | FULL, 1 << 21, 2 << 21, tables.mode.entry_bytes
    builder.fill(first, PAGE, 0)  # where the large page begins lies a table too
    builder.value(width, first + width, PAGES | FULL)
    at = tables.put(GVA, first | leaf, 2)
    ops = [as_text("hw", width, at, value) for value in (first | leaf, second | leaf, first | FULL)]
    # So far apart that a fault at the one does not fill the entry of the other.
    ops += [*_each((GVA + PAGE, GVA + FAR), "rd s"), "slotdel 1", f"slot 1 {first:x} {1 << 21:x} 0 {first:x}"]
    return _scope("a directory entry changes behind KVM's back, and a memslot goes", builder, ops, 5)


def moved(mode: str, **host: Any) -> Scope:
    """The guest lets an entry of a table lead to memory, elsewhere, to no memslot."""
    builder, tables, _ = guest(mode, **host)
    at, width = tables.put(GVA, PAGES | FULL), tables.mode.entry_bytes
    tables.put(TABLE_VA, (at & -PAGE) | FULL)
    ops = [as_text("wr s", width, TABLE_VA | at & 0xFFF, value) for value in _LEAVES]
    ops += [*_each((GVA,), "rd s", "wr s", "rd u"), f"invlpg {GVA:x}", f"cr3 {ROOT:x}"]
    return _scope("the guest lets an entry lead elsewhere", builder, ops, 6)


def leaf_behind(mode: str, **host: Any) -> Scope:
    """An entry of a table changes while KVM does not look."""
    builder, tables, _ = guest(mode, **host)
    at, width = tables.put(GVA, PAGES | READ_ONLY), tables.mode.entry_bytes
    ops = [as_text("hw", width, at, value) for value in _LEAVES]
    ops += [*_each((GVA,), "rd s", "wr s"), f"invlpg {GVA:x}", "slotdel 1", f"slot 1 {OUTSIDE:x} 1000 0 0"]
    return _scope("a table's entry changes behind KVM's back", builder, ops, 6)


def linked(mode: str, vcpus: int = 1, **host: Any) -> Scope:
    """A directory above a table that went out of sync is linked a second time, where nothing was."""
    builder, tables, _ = guest(mode, vcpus=vcpus, **host)
    at, width = tables.put(GVA, PAGES | FULL), tables.mode.entry_bytes
    level = 3 if tables.mode.root_level > 3 else 2
    other = GVA + 4 * tables.step(level)
    link, below = tables.entry(other, level), tables.entry(GVA, level - 1) & -PAGE
    for offset, page in ((0, at), (PAGE, link)):
        tables.put(TABLE_VA + offset, page & -PAGE | FULL)
    entry = TABLE_VA | at & 0xFFF
    ops = [as_text("wr s", width, entry, page | FULL) for page in (PAGES, PAGES + PAGE)]
    ops += [as_text("wr s", width, TABLE_VA + PAGE | link & 0xFFF, value) for value in (below | FULL, 0)]
    ops += [*_each((GVA, other), "rd s"), f"cr3 {ROOT:x}"]
    if vcpus > 1:
        ops += [f"@1 {op}" for op in (*_each((GVA, other), "rd s"), f"cr3 {ROOT:x}")]
    return _scope("a directory above a table out of sync is linked where nothing was", builder, ops, 5)


def roots(mode: str, **host: Any) -> Scope:
    """Two roots share a directory; one leads elsewhere too."""
    builder, tables, _ = guest(mode, **host)
    at, width = tables.put(GVA, PAGES | FULL), tables.mode.entry_bytes
    tables.put(TABLE_VA, (at & -PAGE) | FULL)
    second = Tables(builder, tables.mode, ROOT2, count(TABLES2, PAGE))
    second.put(HELPER_S, HELPER_S | SUPERVISOR)
    second.identity(HELPER_U)
    second.put(GVA, (at & -PAGE) | FULL, 2)  # with it comes TABLE_VA
    ops = [as_text("wr s", width, TABLE_VA | at & 0xFFF, page | FULL) for page in (PAGES, PAGES + PAGE)]
    ops += [*_each((GVA,), "rd s", "wr u"), f"invlpg {GVA:x}", f"cr3 {ROOT:x}", f"cr3 {ROOT2:x}"]
    return _scope("two roots share a table", builder, ops, 6)


def hosts(mode: str, **host: Any) -> Scope:
    """The VMM and the host change what lies behind the guest's memory."""
    builder, tables, _ = guest(mode, **host)
    builder.slot(0, 0, PAGES, 0, 0)
    builder.slot(1, PAGES, 0x10000, 0, PAGES)
    tables.put(GVA, PAGES | FULL)
    tables.put(GVA + PAGE, PAGES + PAGE | FULL)
    ops = _each((GVA, GVA + PAGE), "rd s", "wr s")
    size = 0x10000
    ops += [f"slot 1 {PAGES:x} {size:x} {flags} {PAGES:x}" for flags in (0, 1, 2)]
    ops += ["slotdel 1", f"slot 1 {PAGES:x} {size:x} 0 {PAGES + size:x}", "getdirty 1"]
    ops += [f"hinval {PAGES:x} 2000", f"age {PAGES:x} 1000", f"swapout {PAGES:x} 1000"]
    return _scope("memslots, dirty logging, the host's own mapping", builder, ops, 5)


def limit(mode: str, **host: Any) -> Scope:
    """Nearly as many shadow pages as there may be."""
    builder, tables, _ = guest(mode, **host)
    tables.put(GVA, PAGES | FULL)
    step = tables.step(2)
    for at in range(1, LIMITED):
        table = TABLES2 + at * PAGE
        builder.fill(table, PAGE, 0).value(tables.mode.entry_bytes, table, PAGES | FULL)
        tables.put(GVA + at * step, table | FULL, 2)
    for at in range(LIMITED - 8):
        builder.op(f"rd s 4 {GVA + at * step:x}")
    last = tuple(GVA + at * step for at in range(LIMITED - 6, LIMITED))
    ops = [*_each((GVA, *last), "rd s"), "nrpages 40", "nrpages 60", f"cr3 {ROOT:x}"]
    return _scope("the limit of shadow pages is reached", builder, ops, 5)


def _with_smm(mode: str, **host: Any) -> tuple[ScenarioBuilder, Tables, Regs]:
    """Return a guest that has an address space of SMM, in SMM."""
    builder, tables, regs = guest(mode, **host)
    for space in (0, 0x10000):
        builder.slot(space, 0, MEMORY, 0, 0)
    builder.op("smm on")
    return builder, tables, regs


def _self_mapped(tables: Tables) -> tuple[int, int, int]:
    """Let a table of leaves serve as a directory too.

    Returns
    -------
    entry, written, deep : int
        The entry for GVA; where the guest writes it; the address that is reached through it as a
        directory, whose entry leads to a table that maps a page.
    """
    at = tables.put(GVA, PAGES | FULL)
    table, mode = at & -PAGE, tables.mode
    tables.put(TABLE_VA, table | FULL)
    other = GVA + 8 * tables.step(3)
    tables.put(other, table | FULL, 3)
    tables.builder.fill(PAGES, PAGE, 0).value(mode.entry_bytes, PAGES, PAGES + PAGE | FULL)
    return at, TABLE_VA | at & 0xFFF, other + mode.index(GVA, 1) * tables.step(2)


def smm(mode: str, **host: Any) -> Scope:
    """System management mode uses as a directory what is a table outside."""
    builder, tables, regs = _with_smm(mode, **host)
    _, written, deep = _self_mapped(tables)
    builder.op(f"sregs {regs.cr0:x} {ROOT:x} {regs.cr4:x} {regs.efer:x}")
    ops = ["smm off", *_each((GVA, deep), "rd s"), f"invlpg {GVA:x}"]
    ops += [as_text("wr s", tables.mode.entry_bytes, written + 8, page | FULL) for page in (PAGES, 0)]
    return _scope("SMM uses as a directory what is a table outside", builder, ops, 6)


def smm_device(mode: str, **host: Any) -> Scope:
    """SMM's address space gets memory where a device was."""
    builder, _, _ = _with_smm(mode, **host)
    ops = [*_each((OUTSIDE,), "rd s", "wr s"), "smm off", "slotdel 10001"]
    ops += [f"slot 10001 {OUTSIDE:x} 1000 0 {PAGES:x}", f"slot 1 {OUTSIDE:x} 1000 0 {PAGES:x}"]
    return _scope("memory comes in SMM where a device was", builder, ops, 5)


def levels(mode: str, **host: Any) -> Scope:
    """A table of leaves is a directory elsewhere, and EFER.NX changes."""
    builder, tables, regs = guest(mode, **host)
    _, written, deep = _self_mapped(tables)
    ops = [*_each((GVA, deep), "rd s"), f"cr3 {ROOT:x}"]
    ops += [as_text("wr s", 8, written, page | FULL) for page in (PAGES, PAGES | NX)]
    ops += [f"efer {efer:x}" for efer in (regs.efer, regs.efer & ~EFER_NX)]
    return _scope("a table is a directory elsewhere, and EFER.NX changes", builder, ops, 6)


def forms(mode: str, **host: Any) -> Scope:
    """One root has as a directory what is a table of the other, and EFER.NX goes with the root."""
    builder, tables, regs = guest(mode, **host)
    without = regs._replace(efer=regs.efer & ~EFER_NX)
    builder.sregs(*without)
    at, width = tables.put(GVA, PAGES | FULL), tables.mode.entry_bytes
    table = at & -PAGE
    tables.put(TABLE_VA, table | FULL)
    builder.fill(PAGES, PAGE, 0).value(width, PAGES, PAGES + PAGE | FULL)
    second = Tables(builder, tables.mode, ROOT2, count(TABLES2, PAGE))
    second.put(HELPER_S, HELPER_S | SUPERVISOR)
    second.put(GVA, table | FULL, 3)
    builder.op(f"rd s 4 {GVA:x}")
    ops = [f"rd s 4 {GVA:x}", as_text("wr s", width, TABLE_VA | at & 0xFFF, PAGES | NX | FULL)]
    ops.append(f"cr4 {regs.cr4 | X86_CR4_PGE:x}")  # forgets everything
    for r in (without, regs._replace(cr3=ROOT2)):
        ops.append(f"sregs {r.cr0:x} {r.cr3:x} {r.cr4:x} {r.efer:x}")
    return _scope("a table of one root is a directory of another, which has EFER.NX", builder, ops, 6)


def huge_nx(mode: str, **host: Any) -> Scope:
    """A large page of guest and host, which nobody may execute as a whole; EFER.NX, SMEP, CR0.WP."""
    builder, tables, regs = guest(mode, mem=0x600000, thp=True, nx_huge_pages=1, **host)
    base = 0x400000
    tables.put(GVA, base | PT_PAGE_SIZE_MASK | FULL, 2)
    ops = _each((GVA + PAGES,), "rd s", "wr u", "xc u")
    ops += [f"efer {efer:x}" for efer in (regs.efer & ~EFER_NX, regs.efer)]
    ops += [f"cr0 {cr0:x}" for cr0 in (regs.cr0 & ~X86_CR0_WP, regs.cr0)]
    ops += [f"cr4 {cr4:x}" for cr4 in (regs.cr4 | X86_CR4_SMEP, regs.cr4)]
    return _scope("a large page that nobody may execute as such, and EFER.NX, SMEP, CR0.WP", builder, ops, 4)


def cpuid(mode: str, **host: Any) -> Scope:
    """The VMM changes which bits of an entry are reserved: pages of 1 GiB, and MAXPHYADDR."""
    builder, tables, regs = guest(mode, **host)
    tables.put(BIG, PT_PAGE_SIZE_MASK | FULL, 3)
    tables.put(GVA, PAGES | FULL)
    tables.put(GVA + PAGE, 1 << 38 | FULL)
    ops = _each((BIG + PAGES, GVA, GVA + PAGE), "rd s")
    ops += ["cpuid gbpages 0", "cpuid gbpages 1", "cpuid maxphyaddr 24", "cpuid maxphyaddr 28"]
    ops += [f"cr3 {ROOT:x}", f"cr4 {regs.cr4 | X86_CR4_PGE:x}"]
    return _scope("the VMM changes which bits of an entry are reserved", builder, ops, 4)


def emulated(mode: str, **host: Any) -> Scope:
    """An access that KVM emulates and judges itself, for its first half is a device's."""
    builder, tables, regs = guest(mode, **host)
    tables.put(GVA, OUTSIDE | FULL)
    tables.put(GVA + PAGE, PAGES | READ_ONLY)
    across = GVA + PAGE - 2
    ops = [f"rd {who} 4 {across:x}" for who in "su"] + [f"wr {who} 4 {across:x} 7700" for who in "su"]
    ops += [*_each((GVA + PAGE,), "rd s"), *(f"cr0 {cr0:x}" for cr0 in (regs.cr0 & ~X86_CR0_WP, regs.cr0))]
    ops += [f"cr4 {cr4:x}" for cr4 in (regs.cr4 | X86_CR4_SMAP, regs.cr4)]
    return _scope("an access across a device and a read-only page, and CR0.WP and SMAP", builder, ops, 4)


def _scope(about: str, builder: ScenarioBuilder, ops: list[str], depth: int) -> Scope:
    return Scope("", about, builder.build(), steps(*dict.fromkeys(ops)), depth)


def _named(name: str, make: Callable[..., Scope], *args: object, **host: Any) -> None:
    MAKERS[name] = partial(make, *args, **host)


MAKERS: dict[str, Callable[[], Scope]] = {}
"""What makes each scope, by its name."""
for _mode in ("32", "pae", "64", "57"):
    _named(f"paths-{_mode}", paths, _mode)
    _named(f"rights-{_mode}", rights, _mode)
    _named(f"moved-{_mode}", moved, _mode)
    _named(f"linked-{_mode}", linked, _mode)
    _named(f"roots-{_mode}", roots, _mode)
    _named(f"large-{_mode}", large, _mode)
for _mode in ("64", "57"):
    _named(f"upper-paths-{_mode}", upper_paths, _mode)
for _mode in ("pae", "64"):
    _named(f"behind-{_mode}", behind, _mode)
    _named(f"leaf-behind-{_mode}", leaf_behind, _mode)
_named("halves-32", halves)
_named("linked-64-two", linked, "64", 2)
_named("hosts-64", hosts, "64")
_named("limit-64", limit, "64")
_named("smm-64", smm, "64")
_named("smm-device", smm_device, "64")
_named("levels-64", levels, "64")
_named("forms-64", forms, "64")
for _mode in ("pae", "64"):
    _named(f"huge-nx-{_mode}", huge_nx, _mode)
_named("cpuid-64", cpuid, "64")
_named("ept-emulated-64", emulated, "64", vendor="intel", ept=1)
_named("npt-emulated-64", emulated, "64", npt=1)
for _mode in ("32", "pae", "64"):
    _named(f"ept0-paths-{_mode}", paths, _mode, vendor="intel")
    _named(f"ept0-rights-{_mode}", rights, _mode, vendor="intel")
_named("npt-host32", rights, "32", x86_64=0, npt=1)
for _mode in ("32", "pae"):
    _named(f"host32-paths-{_mode}", paths, _mode, x86_64=0)
    _named(f"host32-rights-{_mode}", rights, _mode, x86_64=0)
_named("host32-halves", halves, x86_64=0)
for _tdp_mmu, _who in enumerate(("legacy", "tdp-mmu")):
    _named(f"npt-hosts-{_who}", hosts, "64", npt=1, tdp_mmu=_tdp_mmu)
    _named(f"ept-hosts-{_who}", hosts, "64", vendor="intel", ept=1, tdp_mmu=_tdp_mmu)


MAKERS |= nested_makers()
MAKERS |= edge_makers()


def kinds_first() -> list[str]:
    """Return the names of the scopes: one of each kind, then a second of each that has two, and so on."""
    met: Counter[Any] = Counter()
    ranks = {}
    for name, make in MAKERS.items():
        kind = getattr(make, "func", make)
        ranks[name] = met[kind]
        met[kind] += 1
    return sorted(MAKERS, key=lambda name: ranks[name])


def find_scope(name: str) -> Scope:
    """Return a scope by its name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    if name not in MAKERS:
        raise InputError(f"scope '{quoted(name)}': unknown; the scopes are {', '.join(MAKERS)}")
    return replace(MAKERS[name](), name=name)
