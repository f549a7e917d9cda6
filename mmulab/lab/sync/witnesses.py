"""Guests that the design of 2008 gets wrong, each with the sentence of its review that foretold it.

The sentences are from the reply to the core patch (:mod:`mmulab.kvm.sync.oos_2008`). A flush goes before
each judged access: that the guest never used an address is not enough, for a processor may translate
ahead (SDM 3, 4.10.2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from mmulab.lab.cases.build import LOWER, MOVED, UPPER
from mmulab.lab.cases.table import Case
from mmulab.machine import op as ops
from mmulab.machine.op import Mode, Op
from mmulab.scenario.builder import ScenarioBuilder
from mmulab.scenario.helpers import HELPER_S, HELPER_U
from mmulab.scenario.scenario import MODES, Regs, Scenario
from mmulab.scenario.tables import TABLE_FLAGS, Tables, mode_of
from mmulab.x86.mode import PT_GLOBAL_MASK
from mmulab.x86.regs import X86_CR0_WP, X86_CR4_PGE

PREFIX = "sync/"
GVA, WINDOW, FAR = 0x40000000, 0x50000000, 0x60000000
"""An address; where the guest's own leaf tables are mapped; an address under another leaf table."""
_PAGE = 4096
_ROOT = 0x10000
_FREE = range(0x40000, 0x80000, _PAGE)


def _guest(mode: str) -> tuple[ScenarioBuilder, Tables, Regs]:
    """Return a guest on a host without two-dimensional paging, with marked pages and no mapping."""
    builder = ScenarioBuilder(mode, host={"npt": 0})
    for page in (LOWER, UPPER, MOVED):
        builder.value(4, page, 0xC0DE0000 | page >> 12)
    regs = MODES[mode]._replace(cr3=_ROOT)
    builder.sregs(*regs)
    tables = Tables(builder, mode_of(regs), _ROOT, iter(_FREE))
    tables.identity(HELPER_S, HELPER_U)
    return builder, tables, regs


def _window(tables: Tables, gva: int, at: int = 0) -> int:
    """Map the leaf table of `gva` at page `at` of the window; return where its entry for `gva` shows."""
    entry = tables.entry(gva)
    tables.map(WINDOW + at * _PAGE, entry & -_PAGE)
    return WINDOW + at * _PAGE + entry % _PAGE


def _read(gva: int) -> Op:
    return ops.Read(Mode.SUPERVISOR, 4, gva)


def _store(gva: int, entry: int) -> Op:
    return ops.Write(Mode.SUPERVISOR, 4, gva, entry)


def _done(builder: ScenarioBuilder, steps: list[Op]) -> Scenario:
    for op in steps:
        builder.op(op)
    return builder.build()


def second_parent(mode: str) -> Scenario:
    """Return a guest whose leaf table gets a second directory entry while it is out of sync, after INVLPG."""
    builder, tables, _ = _guest(mode)
    tables.map(GVA, LOWER)
    tables.map(GVA + _PAGE, UPPER)
    entry = _window(tables, GVA)
    twin = GVA + (1 << tables.mode.level_shift(2))
    table, link = tables.entry(GVA) & -_PAGE, tables.entry(twin, 2)
    tables.map(WINDOW + _PAGE, link & -_PAGE)
    steps = [_read(GVA), _read(GVA + _PAGE), _store(entry, MOVED | TABLE_FLAGS)]
    steps += [ops.Invlpg(twin), _store(WINDOW + _PAGE + link % _PAGE, table | TABLE_FLAGS)]
    return _done(builder, [*steps, _read(twin + _PAGE), _read(twin)])


def two_modes(mode: str) -> Scenario:
    """Return a guest that uses one root with CR0.WP=0 in between, then lets a new leaf go out of sync."""
    builder, tables, regs = _guest(mode)
    tables.map(GVA, LOWER)
    tables.map(FAR, UPPER)
    entry = _window(tables, FAR)
    steps: list[Op] = [_read(GVA), ops.WriteCr(0, regs.cr0 & ~X86_CR0_WP), _read(GVA)]
    steps += [ops.WriteCr(0, regs.cr0), _read(FAR), _store(entry, MOVED | TABLE_FLAGS)]
    return _done(builder, [*steps, ops.WriteCr(3, _ROOT), _read(FAR)])


def global_lost(mode: str) -> Scenario:
    """Return a guest that puts a translation that is not global into a global table out of sync."""
    builder, tables, regs = _guest(mode)
    tables.map(GVA, LOWER, flags=TABLE_FLAGS | PT_GLOBAL_MASK)
    second = GVA + _PAGE
    entry = _window(tables, second)
    steps: list[Op] = [ops.WriteCr(4, regs.cr4 | X86_CR4_PGE), _read(GVA), _store(entry, UPPER | TABLE_FLAGS)]
    steps += [_read(second), _store(entry, MOVED | TABLE_FLAGS), ops.WriteCr(3, _ROOT)]
    return _done(builder, [*steps, _read(second)])


_COMPLEXITY = "I'm worried about the complexity this (and the rest) introduces."
RECORDED = {
    "sh/fuzz-64-mix-16": 62,
    "intel-sh/fuzz-64-mix-16": 62,
    "sh/fuzz-32-mix-02": 175,
    "sh/fuzz-32-nopse-18": 89,
    "sh/fuzz-pae-mix-10": 182,
}
"""Recordings, of either kernel, that the design of 2008 gets wrong, and the op of the first wrong access.

All are the case of :func:`two_modes`: the guest has changed CR0.WP or CR4.SMEP, or was in SMM, so its
root has shadow pages in two roles. The lookup by gfn and level finds the other one, the leaf goes on
the list of a root that is not in use, and the next write to CR3 does not find it there. What the review
says of that lookup is :func:`foretold`.
"""


RECORDED_MORE = {"smm/smm-fuzz-32-mix-03": 58, "intel-smm/smm-fuzz-32-mix-03": 58}
"""The same of ``data/conformance-more``: after SMM, whose pages have a role of their own."""


def foretold(recording: str, op: int) -> str:
    """Return the sentence that foretold a wrong access of a recording, "" if it is none of these.

    >>> foretold("conformance/6.1.192/sh/fuzz-64-mix-16", 62)
    "I'm worried about the complexity this (and the rest) introduces."
    """
    known = RECORDED | RECORDED_MORE
    return _COMPLEXITY if known.get("/".join(recording.split("/")[2:])) == op else ""


_WITNESSES: dict[str, tuple[Callable[[str], Scenario], str]] = {
    "second-parent": (
        second_parent,
        "This means we no longer have to worry about multiple roots, when a page acquires another root while "
        "it is unsynced, etc.",
    ),
    "two-modes": (two_modes, _COMPLEXITY),
    "global-lost": (global_lost, "What happens when a sp->global changes its value while a page is oos?"),
}


def witnesses() -> Iterator[Case]:
    """Yield the witnesses as cases; the note is the sentence."""
    for name, (make, sentence) in _WITNESSES.items():
        for mode in ("pae", "64"):
            yield Case(f"{PREFIX}{name}-{mode}", "npt=0", mode, scenario=partial(make, mode), note=sentence)
