"""Figures of a machine's shadow pages and of a recording, each interactive and as a picture.

The tree is drawn as rows with indentation: it stays readable at a notebook's
width however many pages there are, and marks of bqplot that update properly
(points, lines, labels) can show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import bqplot
import numpy as np

from mmulab import events as ev
from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.spte import is_last_spte, is_mmio_spte, is_shadow_present_pte, is_writable_pte
from mmulab.kvm.state import Kvm
from mmulab.machine.machine import Machine
from mmulab.trace.recording import Recording
from mmulab.trace.search import moments_of_events
from mmulab.widgets import figure, scene
from mmulab.widgets.figure import Twin, floats, heat_map, stacked_area, twin
from mmulab.widgets.scene_svg import COLORS, GRID, INK, MONO, Canvas, Svg
from mmulab.x86.mode import PT_BASE_ADDR_MASK, PT_PRESENT_MASK

__all__ = ["TreeRow", "children", "occupancy", "page_tree", "sharing", "timeline", "tree_rows"]

MOST = 200
"""Rows of a tree that are drawn."""
_ROW, _INDENT, _TOP, _MARGIN = 22, 26, 44, 16


class TreeRow(NamedTuple):
    """One page in the tree.

    Attributes
    ----------
    depth : int
    above : int
        Row of the page that leads here; -1 for a root.
    frame : int
    label : str
    state : str
        ``root``, ``sync``, ``unsync``, ``invalid`` or ``again`` (drawn in full further up).
    """

    depth: int
    above: int
    frame: int
    label: str
    state: str


def tree_rows(machine: Machine, *, vcpu: int = 0) -> list[TreeRow]:
    """Return the shadow pages as rows: what the root in use leads to, then kept roots, then the rest."""
    kvm = machine.kvm
    mmu = kvm.vcpus[vcpu].mmu
    rows: list[TreeRow] = []
    roots = [mmu.root_hpa, *(hpa for _, hpa in mmu.prev_roots)]
    for hpa in roots:
        if hpa != -1:
            _grow(kvm, rows, hpa >> 12, -1, 0, "")
    for frame in sorted(kvm.pages):
        if not kvm.pages[frame].parent_ptes and all(row.frame != frame for row in rows):
            _grow(kvm, rows, frame, -1, 0, "")
    return rows


def _grow(kvm: Kvm, rows: list[TreeRow], frame: int, above: int, depth: int, where: str) -> None:
    page = kvm.pages.get(frame)
    known = any(row.frame == frame for row in rows)
    label = f"{where}frame {frame:#x}, " + ("special root" if page is None else _label(kvm, page))
    rows.append(TreeRow(depth, above, frame, label, "again" if known else _state(page)))
    if known:
        return
    here = len(rows) - 1
    for index, child in children(kvm, frame, page):
        _grow(kvm, rows, child, here, depth + 1, f"[{index:#x}] ")


def _label(kvm: Kvm, page: ShadowPage) -> str:
    facts = kvm.config.kernel.design.facts(page.role)
    children = f", {page.unsync_children} unsync below" if page.unsync_children else ""
    return f"gfn {page.gfn:#x}, {facts.full_str()}{children}"


def _state(page: ShadowPage | None) -> str:
    if page is None:
        return "root"
    if page.invalid:
        return "invalid"
    return "unsync" if page.unsync else "root" if page.root_count else "sync"


def children(kvm: Kvm, frame: int, page: ShadowPage | None) -> Iterator[tuple[int, int]]:
    """Yield index and frame of each table that a table leads to."""
    words = kvm.memory.words[frame * 512 : frame * 512 + 512].tolist()
    for index, spte in enumerate(words):
        if page is None:
            present = bool(spte & PT_PRESENT_MASK)
        else:
            present = is_shadow_present_pte(spte) and not is_last_spte(spte, page.level)
        if present:
            yield index, (spte & PT_BASE_ADDR_MASK) >> 12


_STATES = {"root": 0, "sync": 2, "unsync": 1, "invalid": 5, "again": 7}
"""State to the colour and marker of a row."""


def page_tree(machine: Machine, *, vcpu: int = 0, title: str = "shadow pages") -> Twin:
    """Return the tree of shadow pages as a figure."""
    every = tree_rows(machine, vcpu=vcpu)
    rows = every[:MOST]
    more = f" ({len(every) - MOST} more are not drawn)" if len(every) > MOST else ""
    svg = _tree_svg(rows, title + more)

    def make() -> Any:
        # Labels need room at the right: a step of depth is as wide as in the picture.
        width = max(svg.width, 520.0)
        steps = (width - 2 * _MARGIN) / _INDENT
        scales = {
            "x": bqplot.LinearScale(min=-0.3, max=steps),
            "y": bqplot.LinearScale(min=-len(rows) + 0.4, max=0.6),
        }
        x = floats([row.depth for row in rows])
        y = floats([-number for number in range(len(rows))])
        edges = [(row.above, number) for number, row in enumerate(rows) if row.above >= 0]
        bends = [([rows[a].depth, rows[a].depth, rows[b].depth], [-a, -b, -b]) for a, b in edges]
        lines = bqplot.Lines(
            x=np.array([floats(xs) for xs, _ in bends] or [floats([0, 0])]),
            y=np.array([floats(ys) for _, ys in bends] or [floats([0, 0])]),
            scales=scales,
            colors=["#888888"],
        )
        points = bqplot.Scatter(
            x=x, y=y, scales=scales, colors=[COLORS[_STATES[row.state]] for row in rows], default_size=48
        )
        names = bqplot.Label(
            x=x + 0.35,
            y=y,
            text=[row.label for row in rows],
            scales=scales,
            colors=[INK],
            default_size=11,
            y_offset=4,
            font_weight="normal",
        )
        height = f"{_ROW * len(rows) + 40 + 2 * _MARGIN}px"
        shape = bqplot.Figure(
            marks=[lines, points, names],
            title=title,
            fig_margin={"top": 40, "bottom": _MARGIN, "left": _MARGIN, "right": _MARGIN},
            layout={"width": f"{width:.0f}px", "height": height, "min_width": "0", "min_height": "0"},
            min_aspect_ratio=0.01,
            max_aspect_ratio=100.0,
        )
        shape.interaction = bqplot.PanZoom(scales={"x": [scales["x"]], "y": [scales["y"]]})
        return shape

    return twin(svg, make)


def _tree_svg(rows: list[TreeRow], title: str) -> Svg:
    width = max([420.0, *(60 + row.depth * _INDENT + 7.4 * len(row.label) for row in rows)])
    canvas = Canvas(width, _TOP + _ROW * len(rows) + 34, title)
    for number, row in enumerate(rows):
        x, y = 20.0 + row.depth * _INDENT, float(_TOP + number * _ROW)
        if row.above >= 0:
            left = 20 + (row.depth - 1) * _INDENT
            canvas.line([(left, _TOP + row.above * _ROW + 6), (left, y), (x - 6, y)], GRID, 1.5)
        canvas.marker(x, y, _STATES[row.state])
        weight = "bold" if row.state == "unsync" else "normal"
        canvas.text(x + 12, y + 4, row.label, font=MONO, size=11, weight=weight)
    x, y = 20.0, float(_TOP + _ROW * len(rows) + 14)
    for name, index in _STATES.items():
        canvas.marker(x, y, index)
        canvas.text(x + 10, y + 4, name, size=11)
        x += 24 + 8 * len(name)
    return canvas.svg()


KINDS = ("writable page", "read-only page", "table", "MMIO")


def occupancy(machine: Machine, frame: int, *, title: str = "") -> Twin:
    """Return what the 512 entries of a shadow table hold, as 16 rows of 32.

    Parameters
    ----------
    machine : Machine
    frame : int
        Of the table.
    title : str
    """
    kvm = machine.kvm
    page = kvm.pages[frame]
    kinds = [_kind(kvm, page, spte) for spte in kvm.memory.words[frame * 512 : frame * 512 + 512].tolist()]
    rows = [kinds[at : at + 32] for at in range(0, 512, 32)]
    title = title or f"entries of frame {frame:#x}, level {page.level}, gfn {page.gfn:#x}"
    return heat_map(rows, title=title, names=KINDS)


def _kind(kvm: Kvm, page: ShadowPage, spte: int) -> int | None:
    if is_shadow_present_pte(spte):
        if not is_last_spte(spte, page.level):
            return 2
        return 0 if is_writable_pte(spte) else 1
    return 3 if is_mmio_spte(kvm.fmt, spte) else None


GROUPS: dict[str, tuple[type, ...]] = {
    "walks": (ev.kvm_mmu_pagetable_walk, ev.kvm_mmu_paging_element, ev.kvm_mmu_walker_error),
    "shadow pages": (ev.kvm_mmu_get_page, ev.kvm_mmu_prepare_zap_page),
    "sync and unsync": (ev.kvm_mmu_sync_page, ev.kvm_mmu_unsync_page, ev.kvm_mmu_sync_roots),
    "sptes": (ev.kvm_mmu_set_spte, ev.kvm_mmu_spte_requested, ev.drop_spte, ev.kvm_tdp_mmu_spte_changed),
    "exits and faults": (ev.kvm_exit, ev.kvm_page_fault, ev.kvm_inj_exception, ev.fast_page_fault),
    "writes to tables": (ev.kvm_mmu_pte_write, ev.kvm_emulate_insn, ev.kvm_mmu_unprotect_page),
    "flushes": (ev.kvm_flush_remote_tlbs, ev.kvm_flush_remote_tlbs_with_address, ev.kvm_mmu_invlpg),
}
"""Kinds of events in a timeline; all others are "other"."""


def timeline(recording: Recording, *, bins: int = 60, title: str = "events along the run") -> Twin:
    """Return the number of events of each kind along a recording."""
    bins = max(2, min(bins, len(recording) // 16))
    edges = np.linspace(0, len(recording), bins + 1)
    middle = (edges[:-1] + edges[1:]) / 2
    groups = dict(GROUPS)
    grouped = {kind for kinds in GROUPS.values() for kind in kinds}
    groups["other"] = tuple(table.kind for table in recording.events.tables if table.kind not in grouped)
    series = {}
    for name, kinds in groups.items():
        places = [moments_of_events(recording, recording.events.places(kind)) for kind in kinds]
        counts = np.histogram(np.concatenate([np.zeros(0), *places]), edges)[0]
        if counts.any():
            series[name] = counts.tolist()
    return stacked_area(middle.tolist(), series, title=title, x_label="moment", y_label="events")


def sharing(machine: Machine, *, title: str = "guest tables and the roles they are shadowed under") -> Twin:
    """Return which gfns are shadowed under which roles: a row a gfn, a column a role."""
    kvm = machine.kvm
    pages = [sp for sp in kvm.pages.values() if sp.has_gptes]
    gfns = sorted({sp.gfn for sp in pages})
    roles = sorted({sp.role for sp in pages})
    cells = {(sp.gfn, sp.role): _state(sp) for sp in pages}
    rows = [[f"{gfn:#x}", *(cells.get((gfn, role), "") for role in roles)] for gfn in gfns]
    shared = [number for number, row in enumerate(rows) if sum(map(bool, row[1:])) > 1]
    svg = scene.table(["gfn", *(f"{role:#x}" for role in roles)], rows, title=title, marked=shared)

    def make() -> Any:
        scales = {
            "row": bqplot.OrdinalScale(reverse=True),
            "column": bqplot.OrdinalScale(),
            "color": bqplot.ColorScale(colors=["#ffffff", COLORS[1], COLORS[0]]),
        }
        grid = bqplot.GridHeatMap(
            color=np.array([[_shade(cells.get((gfn, role), "")) for role in roles] for gfn in gfns]),
            row=[f"{gfn:#x}" for gfn in gfns],
            column=[f"{role:#x}" for role in roles],
            scales=scales,
        )
        axes = [
            bqplot.Axis(scale=scales["row"], side="left", label="gfn", label_offset="4.5em"),
            bqplot.Axis(scale=scales["column"], label="role"),
        ]
        return bqplot.Figure(
            marks=[grid],
            axes=axes,
            title=title,
            padding_y=0.0,
            fig_margin={"top": 48, "bottom": 56, "left": 90, "right": 32},
            layout={"width": "760px", "height": f"{max(280, 24 * len(gfns) + 120)}px"},
        )

    if not pages:
        return figure.bar_chart([], [], title=f"{title}: no guest table is shadowed")
    return twin(svg, make)


def _shade(state: str) -> float:
    return {"": 0.0, "unsync": 1.0}.get(state, 2.0)
