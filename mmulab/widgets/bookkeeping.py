"""How a sync policy remembers pages that are out of sync, drawn from a machine's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mmulab.kvm.mmu_page import ShadowPage
from mmulab.kvm.state import Kvm
from mmulab.kvm.sync.oos_state import FREE, OosState
from mmulab.machine.machine import Machine
from mmulab.widgets.figures import children
from mmulab.widgets.scene_svg import COLORS, INK, MONO, Canvas, Svg, text_width

__all__ = ["bookkeeping_picture"]

_SLOT, _BOX, _GAP, _LEFT, _TOP = 128.0, 52.0, 40.0, 70.0, 44.0
_PLACE = 74.0
_PROTECTED, _UNSYNC = "#e8e8e8", "#fbd9c6"
_WAY = COLORS[5]
_FILLS = (
    (_PROTECTED, "in sync: its table is write-protected"),
    (_UNSYNC, "out of sync: the guest writes its table freely"),
)
_BITMAP, _LIST = ("", "a bit of the parent's bitmap"), ("6 4", "on the list of its root")


class _Spot(NamedTuple):
    x: float
    y: float


def bookkeeping_picture(machine: Machine, *, title: str) -> Svg:
    """Draw the shadow pages in use, which of them are out of sync, and what remembers those.

    A thick line is a bit of a parent's bitmap, a dashed one leads from a root to a page on its list; the
    array of a VM stands below.
    """
    kvm = machine.kvm
    levels = _levels(kvm)
    state = kvm.sync_state if isinstance(kvm.sync_state, OosState) else None
    places = [] if state is None else list(state.global_pages)
    most = max((len(pages) for pages in levels.values()), default=0)
    bottom = _TOP + len(levels) * (_BOX + _GAP)
    below = 34 if places else 0
    width = max(_LEFT + most * _SLOT, _LEFT + len(places) * _PLACE + 8, text_width(title, 14) + 24, 480)
    ways = [way for way, drawn in ((_BITMAP, kvm.sync.marks_parents), (_LIST, state is not None)) if drawn]
    canvas = Canvas(width, bottom + below + 20 + 20 * (len(_FILLS) + len(ways)), title)
    spots = {
        page.frame: _Spot(_LEFT + number * _SLOT, _TOP + row * (_BOX + _GAP))
        for row, pages in enumerate(levels.values())
        for number, page in enumerate(pages)
    }
    _links(canvas, kvm, levels, spots)
    if state is not None:
        _lists(canvas, state, spots)
        _array(canvas, kvm, places, bottom)
    for level, pages in levels.items():
        canvas.text(8, spots[pages[0].frame].y + _BOX / 2 + 4, f"level {level}", size=11)
        for page in pages:
            _page(canvas, kvm, page, state, spots[page.frame])
    _key(canvas, bottom + below + 20, ways)
    return canvas.svg()


def _key(canvas: Canvas, top: float, ways: Sequence[tuple[str, str]]) -> None:
    for number, (fill, text) in enumerate(_FILLS):
        canvas.rect(8, top + 20 * number - 11, 28, 14, fill, INK)
        canvas.text(44, top + 20 * number, text)
    for number, (dash, text) in enumerate(ways, len(_FILLS)):
        canvas.line([(8, top + 20 * number - 4), (36, top + 20 * number - 4)], _WAY, 3, dash)
        canvas.text(44, top + 20 * number, text)


def _levels(kvm: Kvm) -> dict[int, list[ShadowPage]]:
    """Return the pages that shadow guest tables below the root in use, by level."""
    current = kvm.pages.get(kvm.vcpus[0].mmu.root_hpa >> 12)
    held = [page for page in kvm.pages.values() if page.root_count and page.has_gptes]
    roots = held if current is None else [current]
    found: dict[int, list[ShadowPage]] = {}
    row = roots
    while row:
        found[row[0].level] = row
        row = list({child.frame: child for page in row for _, child in _below(kvm, page)}.values())
    return found


def _below(kvm: Kvm, page: ShadowPage) -> Iterator[tuple[int, ShadowPage]]:
    for index, frame in children(kvm, page.frame, page):
        if frame in kvm.pages and kvm.pages[frame].has_gptes:
            yield index, kvm.pages[frame]


def _links(canvas: Canvas, kvm: Kvm, levels: dict[int, list[ShadowPage]], spots: dict[int, _Spot]) -> None:
    for pages in levels.values():
        for page in pages:
            for index, child in _below(kvm, page):
                marked = page.unsync_child_bitmap >> index & 1
                start, end = spots[page.frame], spots[child.frame]
                middle = (_SLOT - 12) / 2
                points = [(start.x + middle, start.y + _BOX), (end.x + middle, end.y)]
                canvas.line(points, _WAY if marked else "#777777", 3 if marked else 1)


def _lists(canvas: Canvas, state: OosState, spots: dict[int, _Spot]) -> None:
    for root, frames in state.lists.items():
        for number, frame in enumerate(frames):
            if root in spots and frame in spots:
                start, end = spots[root], spots[frame]
                points = [(start.x + 8 + 10 * number, start.y + _BOX), (end.x + 12, end.y)]
                canvas.line(points, _WAY, 3, "6 4")


def _array(canvas: Canvas, kvm: Kvm, places: list[int], y: float) -> None:
    canvas.text(8, y + 20, "array", size=11)
    for number, frame in enumerate(places):
        x = _LEFT + number * _PLACE
        canvas.rect(x, y, _PLACE - 4, 30, "#ffffff" if frame == FREE else _UNSYNC, INK)
        text = "free" if frame == FREE else f"{kvm.pages[frame].gfn:#x}"
        canvas.text(x + _PLACE / 2 - 2, y + 20, text, anchor="middle", font=MONO, size=11)


def _page(canvas: Canvas, kvm: Kvm, page: ShadowPage, state: OosState | None, at: _Spot) -> None:
    width = _SLOT - 12
    canvas.rect(at.x, at.y, width, _BOX, _UNSYNC if page.unsync else _PROTECTED, INK)
    middle = at.x + width / 2
    canvas.text(middle, at.y + 20, f"gfn {page.gfn:#x}", anchor="middle", font=MONO)
    canvas.text(middle, at.y + 39, _words(page, state), anchor="middle", size=10)


def _words(page: ShadowPage, state: OosState | None) -> str:
    if page.unsync:
        return "out of sync"
    if page.unsync_children:
        return f"unsync_children {page.unsync_children}"
    if state is not None and page.frame in state.lists:
        return f"{len(state.lists[page.frame])} on its list"
    return ""
