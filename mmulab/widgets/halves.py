"""One 4-byte guest table beside the shadow pages that show it, quadrant by quadrant."""

from __future__ import annotations

from collections.abc import Mapping

from mmulab.kvm.spte import spte_to_pfn
from mmulab.machine.machine import Machine
from mmulab.machine.view import gpa_of, shadow_steps
from mmulab.widgets.scene_svg import COLORS, INK, MONO, Canvas, Svg

_TOP, _HALF, _WIDTH, _SHADOW_WIDTH = 64, 96, 210, 260
_SHADOW_X = 480
_LINE = 18


def halves_picture(machine: Machine, gfn: int, pages: Mapping[int, int], *, title: str) -> Svg:
    """Draw the guest table `gfn`, its shadow pages, and the way that each address takes.

    A way that ends at another gfn than the guest's entry names is dashed and
    said to be wrong.

    Parameters
    ----------
    machine : Machine
    gfn : int
        A table of 4-byte entries.
    pages : mapping of int to int
        Guest-virtual address to the gfn that the guest's entry names.
    title : str
    """
    shadows = [machine.kvm.pages[frame] for frame in reversed(machine.kvm.page_hash.get(gfn, []))]
    canvas = Canvas(760, _TOP + _HALF * max(2, len(shadows)) + 8, title)
    canvas.text(16, _TOP - 12, f"guest table, gfn {gfn:#x}: 1024 entries of 4 bytes")
    canvas.text(_SHADOW_X, _TOP - 12, "shadow pages: 512 entries of 8 bytes each")
    for half in (0, 1):
        y = _TOP + half * _HALF
        canvas.rect(16, y, _WIDTH, _HALF, "#ffffff", INK)
        canvas.text(24, y + 18, f"entries {512 * half} to {512 * half + 511}")
    rows = {sp.frame: row for row, sp in enumerate(shadows)}
    for sp in shadows:
        y = _TOP + rows[sp.frame] * _HALF
        canvas.rect(_SHADOW_X, y, _SHADOW_WIDTH, _HALF - 8, "#ffffff", INK)
        heading = f"frame {sp.frame:#x}, quadrant {sp.quadrant}"
        canvas.text(_SHADOW_X + 8, y + 18, heading, weight="bold")
    lines: dict[int, list[int]] = {frame: [] for frame in rows}
    for gva, target in pages.items():
        _way(canvas, machine, gva, target, rows, lines)
    return canvas.svg()


def _way(
    canvas: Canvas,
    machine: Machine,
    gva: int,
    target: int,
    rows: dict[int, int],
    lines: dict[int, list[int]],
) -> None:
    """Write one entry at both sides and draw the line between them.

    `rows` is the place of each shadow page, `lines` the indices written in each so far.
    """
    index = gva >> 12 & 1023
    left = _TOP + index // 512 * _HALF + 44
    canvas.text(32, left + 4, f"[{index}] gfn {target:#x}", font=MONO)
    steps = shadow_steps(machine, gva)
    if not steps or steps[-1].frame not in rows or not steps[-1].last:
        return
    step = steps[-1]
    reached = gpa_of(machine, spte_to_pfn(step.spte) << 12)
    right = reached == target << 12
    written = lines[step.frame]
    if step.entry_index not in written:
        written.append(step.entry_index)
    y = _TOP + rows[step.frame] * _HALF + 44 + _LINE * written.index(step.entry_index)
    gfn = "none" if reached is None else f"{reached >> 12:#x}"
    canvas.text(_SHADOW_X + 16, y + 4, f"[{step.entry_index}] maps gfn {gfn}", font=MONO)
    ends = [(16 + _WIDTH, left), (_SHADOW_X, y)]
    canvas.line(ends, COLORS[2] if right else COLORS[5], 2, "" if right else "5 4")
    if not right:
        middle = (16 + _WIDTH + _SHADOW_X) / 2
        canvas.text(middle, (left + y) / 2 - 6, "✗ wrong", anchor="middle", weight="bold", fill=COLORS[5])
