"""The panels of a stepper: pure functions from a look to blocks.

The same panels show in JupyterLab, in an exported page and in a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmulab import events as ev
from mmulab.ftrace.wording import event_text
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.spte import SpteFormat
from mmulab.machine.view import GuestStep, GuestWalk, PageHeader, ShadowStep, hpa_str
from mmulab.trace.look import Look, PageLook, Parent, SpteChange
from mmulab.trace.sentence import event_sentence, op_sentence, outcome_sentence
from mmulab.widgets.blocks import Block, Line, Panel, Strip, Table
from mmulab.widgets.words import (
    EPTE_FLAGS,
    GPTE_FLAGS,
    entry_flags,
    gpte_cells,
    role_cells,
    spte_cells,
    spte_flags,
)
from mmulab.x86.pferr import ACC_STRINGS, PFERR_RSVD_MASK, pferr_str

MAX_CHANGES = 16
"""Changed sptes that are listed; the rest is counted."""
GUEST, HOST, STATE = 1, 2, 3
"""Columns: what the guest has, and what changed; KVM's tables for it, and a page; registers and counters."""
_WALK_COLUMNS = ("level", "table", "index", "entry", "bits", "rights")
STRIPS = 2
"""Changed sptes that are drawn bit by bit."""


def panels(look: Look, kernel: Kernel, fmt: SpteFormat, before: Look | None = None) -> list[Panel]:
    """Return all panels of a look.

    Parameters
    ----------
    look : Look
    kernel : Kernel
        Reads role words, names functions.
    fmt : SpteFormat
        Reads shadow entries.
    before : Look, optional
        The look at the moment before: what differs from it is marked.
    """
    design = kernel.design
    found = [
        moment_panel(look, kernel),
        guest_panel(look, before),
        nested_panel(look),
        path_panel(look, design, fmt),
        changes_panel(look, fmt),
        page_panel(look, design),
        rmap_panel(look, design, fmt),
        unsync_panel(look, design),
        registers_panel(look, before),
        statistics_panel(look, before),
    ]
    return [panel for panel in found if panel is not None]


def moment_panel(look: Look, kernel: Kernel) -> Panel:
    """The op and its outcome in a sentence, and the event."""
    ended = "It will end so" if look.event is not None else "It has ended"
    blocks: list[Block] = [
        Line(f"{op_sentence(look.op)}."),
        Line(f"{ended}: {outcome_sentence(look.outcome)}."),
    ]
    if look.verdict is not None:
        blocks.append(Line(f"Wrong, by the guest's own tables and registers: {look.verdict}.", marked=True))
    if look.event is not None:
        blocks.append(Line(event_sentence(look.event, kernel.design)))
        blocks.append(Line(event_text(look.event, kernel), code=True))
    if isinstance(look.event, ev.kvm_mmu_paging_element):
        width = look.guest.entry_bytes if look.guest is not None else 8
        title = f"the guest's entry {look.event.pte:#x}, level {look.event.level}"
        names = _element_flags(look, look.event)
        blocks.append(Strip(title, gpte_cells(look.event.pte, width, names=names)))
    where = "the end of the op" if look.moment.event is None else f"event {look.moment.event}"
    return Panel(f"{look.op_name}, {where}", blocks, wide=True)


def _element_flags(look: Look, event: ev.kvm_mmu_paging_element) -> dict[int, str]:
    """Name the bits of an entry that KVM read: L1's EPT, unless it is one of L2's own tables."""
    own = look.guest.steps if look.guest is not None else ()
    if look.registers.kind == "ept" and (event.level, event.pte) not in [(s.level, s.entry) for s in own]:
        return EPTE_FLAGS
    return GPTE_FLAGS


# The two walks -------------------------------------------------------------------


def flags_text(entry: int, names: dict[int, str]) -> str:
    """Name the bits of an entry that are set.

    >>> flags_text(0x67, GPTE_FLAGS)
    'P W U A D'
    """
    return " ".join(name for bit, name in sorted(names.items()) if entry >> bit & 1)


def guest_panel(look: Look, before: Look | None = None) -> Panel | None:
    """The guest's own walk, level by level, the rights of the path accumulating."""
    walk = look.guest
    if walk is None:
        return None
    known = before.guest.steps if before is not None and before.guest is not None else ()
    rows = [_guest_row(step, entry_flags(walk.mode)) for step in walk.steps]
    marked = [n for n, step in enumerate(walk.steps) if before is not None and step not in known]
    blocks: list[Block] = []
    if rows:
        blocks.append(Table(_WALK_COLUMNS, rows, marked))
    blocks.append(Line(_walk_end(walk)))
    whose = "L2's" if look.registers.guest_mode else "the guest's"
    title = f"{whose} tables for {walk.address:#x}: {walk.mode}, CR3 {walk.root:#x}"
    return Panel(title, blocks, column=GUEST)


def nested_panel(look: Look) -> Panel | None:
    """The walk of L1's nested tables behind L2's."""
    walk = look.nested
    if walk is None:
        return None
    rows = [_guest_row(step, entry_flags(walk.mode)) for step in walk.steps]
    title = f"L1's nested tables for L2's {walk.address:#x}: {walk.mode}, root {walk.root:#x}"
    return Panel(title, [Table(_WALK_COLUMNS, rows), Line(_walk_end(walk))], column=GUEST)


def _guest_row(step: GuestStep, names: dict[int, str]) -> list[str]:
    table = "register" if step.table == -1 else f"gfn {step.table >> 12:#x}"
    flags = flags_text(step.entry, names)
    return [
        str(step.level),
        table,
        f"{step.entry_index:#x}",
        f"{step.entry:x}",
        flags,
        ACC_STRINGS[step.access],
    ]


def _walk_end(walk: GuestWalk) -> str:
    if walk.error is not None:
        ept = entry_flags(walk.mode) is EPTE_FLAGS
        if ept and walk.error & PFERR_RSVD_MASK:
            return "→ EPT misconfiguration"
        fault = "EPT violation" if ept else "page fault"
        return f"→ {fault}, error code {walk.error:#x} {pferr_str(walk.error)}"
    assert walk.gpa is not None
    return f"→ gpa {walk.gpa:#x}" + ("" if walk.steps else " (no paging)")


def path_panel(look: Look, design: RoleDesign, fmt: SpteFormat) -> Panel | None:
    """The way of the processor down the tables in use."""
    if look.path_address is None:
        return None
    title = f"the host's tables for {look.path_address:#x}: root {hpa_str(look.registers.root_hpa, '#x')}"
    if not look.path:
        return Panel(title, [Line("→ there is no root yet")], column=HOST)
    changed = {change.sptep for change in look.changes}
    rows = [_path_row(step, design, fmt) for step in look.path]
    marked = [number for number, step in enumerate(look.path) if step.sptep in changed]
    columns = ("level", "frame", "page", "index", "spte", "bits")
    return Panel(title, [Table(columns, rows, marked), Line(_path_end(look.path[-1]))], column=HOST)


def _path_row(step: ShadowStep, design: RoleDesign, fmt: SpteFormat) -> list[str]:
    page = "special root" if step.page is None else page_text(step.page, design)
    flags = spte_flags(fmt, step.spte, step.level)
    return [str(step.level), f"{step.frame:#x}", page, f"{step.entry_index:#x}", f"{step.spte:x}", flags]


def page_text(page: PageHeader, design: RoleDesign) -> str:
    """Name a shadow page by what tells it from others.

    >>> from mmulab.kvm.roles.design import DESIGNS
    >>> page_text(PageHeader(7, 0x20, 0x3731, 1, 0, 0, True, 0, 0, False, 0), DESIGNS["passthrough"])
    'gfn 0x20 q1 unsync'
    """
    facts = design.facts(page.role)
    parts = [f"gfn {page.gfn:#x}"]
    if facts.has_4_byte_gpte and not facts.direct:
        parts.append(f"q{facts.quadrant}")
    flags = (
        ("direct", facts.direct),
        ("passthrough", facts.passthrough),
        ("unsync", page.unsync),
        ("invalid", page.invalid),
    )
    return " ".join(parts + [name for name, flag in flags if flag])


def _path_end(step: ShadowStep) -> str:
    if step.mmio:
        return "→ an MMIO entry: no memory there"
    if not step.present:
        return f"→ not present at level {step.level}"
    return "→ no memory of the guest's" if step.gfn is None else f"→ gfn {step.gfn:#x}"


# The page ---------------------------------------------------------------------------


def page_panel(look: Look, design: RoleDesign) -> Panel | None:
    """The shadow page that the moment is about, its role bit by bit, and how it differs from others."""
    found = look.page
    if found is None:
        return None
    page = found.page
    parent = next((parent.page for parent in found.parents if parent.page is not None), None)
    other = None if parent is None else parent.role
    title = f"role {page.role:#x}" + ("" if other is None else f", ≠ marks what its parent {other:#x} has")
    blocks: list[Block] = [
        Strip(title, role_cells(design.layout, page.role, other)),
        Line(_page_state(found)),
    ]
    if found.parents:
        rows = [_parent_row(parent, design) for parent in found.parents[:8]]
        blocks.append(Table(("parent", "level", "at index", "sptep"), rows))
    if found.siblings:
        rows = [_sibling_row(page, sibling, design) for sibling in found.siblings[:8]]
        blocks.append(Table(("same gfn", "level", "role", "differs in"), rows))
    why = "found wrongly: " if look.found_wrongly else ""
    title = f"{why}shadow page in frame {page.frame:#x}: {page_text(page, design)}, level {page.level}"
    return Panel(title, blocks, column=HOST)


def _page_state(found: PageLook) -> str:
    page = found.page
    parts = [
        f"entries in use: {found.present}",
        f"held {page.root_count} times as root" if page.root_count else "no root",
        "out of sync" if page.unsync else "in sync",
        f"generation {page.mmu_valid_gen}",
    ]
    if page.write_flooding_count:
        parts.append(f"{page.write_flooding_count} writes counted as flooding")
    return ", ".join(parts)


def _parent_row(parent: Parent, design: RoleDesign) -> list[str]:
    page = parent.page
    name = "special root" if page is None else page_text(page, design)
    level = "" if page is None else str(page.level)
    return [
        f"frame {parent.sptep >> 12:#x}, {name}",
        level,
        f"{parent.sptep >> 3 & 511:#x}",
        f"{parent.sptep:#x}",
    ]


def _sibling_row(page: PageHeader, sibling: PageHeader, design: RoleDesign) -> list[str]:
    ours, theirs = design.layout.unpack(page.role), design.layout.unpack(sibling.role)
    differing = [f"{name} {theirs[name]:x}" for name in ours if ours[name] != theirs[name]]
    name = f"frame {sibling.frame:#x}, {page_text(sibling, design)}"
    return [name, str(sibling.level), f"{sibling.role:#x}", " ".join(differing) or "nothing"]


# What changed --------------------------------------------------------------------------


def changes_panel(look: Look, fmt: SpteFormat) -> Panel | None:
    """The shadow entries that changed in this step, old to new."""
    changes = look.changes
    if not changes:
        return None
    rows = [_change_row(change) for change in changes[:MAX_CHANGES]]
    blocks: list[Block] = [
        Table(("at", "page", "index", "old", "new"), rows, range(len(rows))),
    ]
    if len(changes) > MAX_CHANGES:
        blocks.append(Line(f"… and {len(changes) - MAX_CHANGES} more"))
    for change in changes[:STRIPS]:
        title = f"{change.old:x} → {change.new:x}"
        level = None if change.page is None else change.page.level
        blocks.append(Strip(title, spte_cells(fmt, change.new, change.old, level)))
    return Panel(f"shadow entries changed in this step: {len(changes)}", blocks, column=GUEST)


def _change_row(change: SpteChange) -> list[str]:
    page = "special root" if change.page is None else f"l{change.page.level} gfn {change.page.gfn:#x}"
    return [f"{change.sptep:#x}", page, f"{change.sptep >> 3 & 511:#x}", f"{change.old:x}", f"{change.new:x}"]


def rmap_panel(look: Look, design: RoleDesign, fmt: SpteFormat) -> Panel | None:
    """The reverse map: every spte that maps the gfn in question."""
    rmap = look.rmap
    if rmap is None:
        return None
    changed = {change.sptep for change in look.changes}
    rows = [
        [
            f"{sptep:#x}",
            "special root" if page is None else page_text(page, design),
            f"{spte:x}",
            spte_flags(fmt, spte, rmap.level),
        ]
        for sptep, spte, page in rmap.sptes[:MAX_CHANGES]
    ]
    marked = [number for number, (sptep, *_) in enumerate(rmap.sptes[:MAX_CHANGES]) if sptep in changed]
    blocks: list[Block] = (
        [Table(("at", "in page", "spte", "bits"), rows, marked)] if rows else [Line("nothing maps it")]
    )
    if rmap.tracked:
        blocks.append(Line(f"writes to it are tracked: {rmap.tracked} upper-level shadow pages of it"))
    return Panel(f"reverse map of gfn {rmap.gfn:#x}, level {rmap.level}", blocks, column=GUEST)


def unsync_panel(look: Look, design: RoleDesign) -> Panel | None:
    """Which entries of the pages on the path lead to pages out of sync."""
    parents = [step.page for step in look.path if step.page is not None and step.page.unsync_children]
    if not parents:
        return None
    rows = [
        [
            f"frame {p.frame:#x}, {page_text(p, design)}",
            str(p.level),
            str(p.unsync_children),
            _bits(p.unsync_child_bitmap),
        ]
        for p in parents
    ]
    table = Table(("page", "level", "children", "at index"), rows)
    return Panel("out-of-sync children", [table], column=HOST)


def _bits(bitmap: int, most: int = 12) -> str:
    """List the bits of a bitmap that are set.

    >>> _bits(0b1001)
    '0x0 0x3'
    """
    found = [f"{bit:#x}" for bit in range(bitmap.bit_length()) if bitmap >> bit & 1]
    return " ".join(found[:most]) + (f" … {len(found)}" if len(found) > most else "")


# Numbers --------------------------------------------------------------------------------


def registers_panel(look: Look, before: Look | None = None) -> Panel:
    """Registers and lists; what changed in this step is marked."""
    rows = _register_rows(look)
    known = rows if before is None else _register_rows(before)
    marked = [number for number, row in enumerate(rows) if row not in known]
    return Panel("registers and lists", [Table(("", ""), rows, marked)], column=STATE)


def statistics_panel(look: Look, before: Look | None = None) -> Panel | None:
    """KVM's statistics that are not zero, and by how much this step changed them."""
    known = look.stats if before is None else before.stats
    shown = [name for name, value in look.stats.items() if value or known.get(name, 0)]
    deltas = {name: look.stats[name] - known.get(name, 0) for name in shown}
    if not shown:
        return None
    rows = [[name, str(look.stats[name]), f"{deltas[name]:+}" if deltas[name] else ""] for name in shown]
    marked = [number for number, name in enumerate(shown) if deltas[name]]
    return Panel("statistics", [Table(("", "value", "this step"), rows, marked)], column=STATE)


def _register_rows(look: Look) -> list[list[str]]:
    r = look.registers
    return [
        ["CR0, CR4, EFER", f"{r.cr0:#x} {r.cr4:#x} {r.efer:#x}"],
        ["CR3", f"{r.cr3:#x}"],
        ["CPL", f"{r.cpl}" + (", in L2" if r.guest_mode else "")],
        ["MMU context", r.kind],
        ["root", f"{hpa_str(r.root_hpa, '#x')} for {hpa_str(r.root_pgd, '#x')}"],
        ["previous roots", _roots(r.prev_roots)],
        *([name, str(value)] for name, value in look.counts.items()),
    ]


def _roots(roots: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{hpa:#x} for {pgd:#x}" for pgd, hpa in roots) or "none"
