"""Shadow pages of a run as a graph, and of two designs side by side: what one shares, the other makes twice.

A page is known by its gfn and role. The graph holds every page that a run ever
had and every link between two of them, so that what was zapped on the way, or
belongs to another context, is still there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmulab.events import Event, kvm_mmu_get_page
from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.word import RoleFacts
from mmulab.machine.machine import Machine
from mmulab.scenario.adapter import machine_config
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import Scenario
from mmulab.widgets.figures import children
from mmulab.widgets.scene_svg import COLORS, INK, MONO, Canvas, Svg, text_width

__all__ = ["PageGraph", "Split", "page_graph", "sharing_graph", "splits"]

Key = tuple[int, int]
"""gfn and role of a page."""
Place = tuple[int, int, int, int]
"""gfn, level, quadrant and access: what two designs' pages of one table have in common."""


@dataclass(frozen=True)
class PageGraph:
    """The shadow pages of a run.

    Attributes
    ----------
    design : RoleDesign
    pages : dict of (int, int) to int
        gfn and role of every page, in the order in which they were made, to how often it was made.
    found : dict of (int, int) to int
        How often each was found again instead of made.
    roots : frozenset of (int, int)
        Pages that were held as roots.
    links : dict of ((int, int), (int, int)) to None
        Parent and child.
    """

    design: RoleDesign
    pages: dict[Key, int]
    found: dict[Key, int]
    roots: frozenset[Key]
    links: dict[tuple[Key, Key], None]

    def facts(self, page: Key) -> RoleFacts:
        """Return what a page's role says."""
        return self.design.facts(page[1])

    def place(self, page: Key) -> Place:
        """Return what the page shadows, whatever the design."""
        facts = self.facts(page)
        return page[0], facts.level, facts.quadrant, facts.access

    def at(self, place: Place) -> list[Key]:
        """Return the pages of a place."""
        return [page for page in self.pages if self.place(page) == place]

    def told_apart_by(self, pages: Sequence[Key]) -> list[str]:
        """Return the fields of the word in which some pages differ."""
        words = [self.design.layout.unpack(role) for _, role in pages]
        return [name for name in self.design.layout.shift if len({word[name] for word in words}) > 1]


def page_graph(scenario: Scenario, design: RoleDesign) -> PageGraph:
    """Run a scenario under a design, and keep every shadow page and every link between two.

    Raises
    ------
    InputError
        The scenario has an op, or a host, that is not modelled.
    """
    runner = Runner(scenario, config=machine_config(scenario, design=design))
    made: Counter[Key] = Counter()
    found: Counter[Key] = Counter()
    roots: dict[Key, None] = {}
    links: dict[tuple[Key, Key], None] = {}

    for result in runner.results():
        for page, created in _asked_for(result.events):
            (made if created else found)[page] += 1
        roots.update(dict.fromkeys(_roots(runner.machine)))
        links.update(dict.fromkeys(_links(runner.machine)))
    return PageGraph(design, dict(made), dict(found), frozenset(roots), links)


def _asked_for(events: Iterable[Event]) -> list[tuple[Key, bool]]:
    return [((e.gfn, e.role), bool(e.created)) for e in events if isinstance(e, kvm_mmu_get_page)]


def _roots(machine: Machine) -> list[Key]:
    return [(page.gfn, page.role) for page in machine.kvm.pages.values() if page.root_count]


def _links(machine: Machine) -> list[tuple[Key, Key]]:
    """Return the links between pages as they are now."""
    kvm = machine.kvm
    return [
        ((page.gfn, page.role), (kvm.pages[child].gfn, kvm.pages[child].role))
        for frame, page in kvm.pages.items()
        for _, child in children(kvm, frame, page)
        if child in kvm.pages
    ]


# Two designs -----------------------------------------------------------------------


class Split(NamedTuple):
    """A table that one design shadows by another number of pages than the other design.

    Attributes
    ----------
    place : (gfn, level, quadrant, access)
    one, other : tuple of (gfn, role)
        The pages of it under each.
    told_apart_by : tuple of str
        Fields of the finer design in which its pages differ.
    """

    place: Place
    one: tuple[Key, ...]
    other: tuple[Key, ...]
    told_apart_by: tuple[str, ...]


def splits(one: PageGraph, other: PageGraph) -> list[Split]:
    """Return the tables of which two designs made different numbers of pages, highest level first."""
    places = dict.fromkeys([*map(one.place, one.pages), *map(other.place, other.pages)])
    found = []
    for place in sorted(places, key=lambda place: (-place[1], place)):
        ours, theirs = one.at(place), other.at(place)
        if len(ours) != len(theirs):
            finer, pages = (other, theirs) if len(theirs) > len(ours) else (one, ours)
            found.append(Split(place, tuple(ours), tuple(theirs), tuple(finer.told_apart_by(pages))))
    return found


_SLOT, _BOX, _GAP, _LEFT = 136.0, 56.0, 36.0, 70.0
_SIZE = 11.0
_SHARED, _TWICE, _ALONE = "#cfe6f5", "#fbd9c6", "#fff3bf"
"""Fill of a page that the other design splits, of one that it shares, of one that it lacks."""
_KEY = (
    (_SHARED, "one page here, more under the other design", False),
    (_TWICE, "more pages here, told apart by the field named", False),
    (_ALONE, "only under this design", False),
    ("#ffffff", "held as a root", True),
)
_HALF = 480.0
"""Two graphs up to this width stand side by side."""


def sharing_graph(one: PageGraph, other: PageGraph, *, title: str) -> Svg:
    """Draw the pages that one design shares and the other makes twice, with what leads to them.

    A table has the same place in both halves, so a page that is shared is as wide
    as the pages that stand for it in the other half. Pages that neither are
    split, nor lead to a split one, nor lie right below one, are left out.
    """
    found = splits(one, other)
    halves = [_Half(graph, found, mine) for graph, mine in ((one, 0), (other, 1))]
    columns = _columns(halves)
    levels = sorted({place[1] for place in columns}, reverse=True)
    slots = max((at + slots for at, slots in columns.values()), default=0)
    width = max(_LEFT + slots * _SLOT + 8, *(16 + text_width(half.caption()) for half in halves))
    height = 34 + len(levels) * (_BOX + _GAP)
    beside = width <= _HALF
    down = 44 + (height if beside else 2 * height)
    across = 2 * width if beside else width
    canvas = Canvas(max(across, text_width(title, 14) + 24, _HALF), down + 18 * len(_KEY) + 24, title)
    for number, half in enumerate(halves):
        left, top = (number * width, 44) if beside else (0, 44 + number * height)
        rows = {level: top + 26 + n * (_BOX + _GAP) for n, level in enumerate(levels)}
        half.draw(canvas, columns, rows, left)
    _key(canvas, down)
    return canvas.svg()


def _columns(halves: Sequence[_Half]) -> dict[Place, tuple[int, int]]:
    """Return the first slot and the number of slots of every place, the same for both halves."""
    counts: Counter[Place] = Counter()
    for half in halves:
        counts |= Counter(map(half.graph.place, half.drawn))
    columns: dict[Place, tuple[int, int]] = {}
    used: Counter[int] = Counter()
    for place in sorted(counts):
        columns[place] = used[place[1]], counts[place]
        used[place[1]] += counts[place]
    return columns


class _Half:
    """What is drawn of one design's pages."""

    def __init__(self, graph: PageGraph, found: Sequence[Split], mine: int) -> None:
        self.graph = graph
        self.fills: dict[Key, str] = {}
        self.words: dict[Key, str] = {}
        for split in found:
            ours, theirs = (split.one, split.other) if mine == 0 else (split.other, split.one)
            fill = _SHARED if len(ours) < len(theirs) else _TWICE if theirs else _ALONE
            for page in ours:
                self.fills[page] = fill
                if fill == _TWICE:
                    word = graph.design.layout.unpack(page[1])
                    self.words[page] = " ".join(f"{name}={word[name]:x}" for name in split.told_apart_by)
        below = [child for parent, child in graph.links if parent in self.fills]
        wanted = dict.fromkeys([*self.fills, *below])
        for page in wanted.copy():
            wanted.update(dict.fromkeys(self._above(page)))
        self.drawn = [page for page in graph.pages if page in wanted]

    def _above(self, page: Key) -> list[Key]:
        """Return everything that leads to a page."""
        seen: dict[Key, None] = {}
        wanted = [page]
        while wanted:
            below = wanted.pop()
            parents = [parent for parent, child in self.graph.links if child == below]
            wanted += [parent for parent in parents if parent not in seen]
            seen.update(dict.fromkeys(parents))
        return list(seen)

    def caption(self) -> str:
        """Name the design, and count its pages."""
        graph, found = self.graph, sum(self.graph.found.values())
        return f"{graph.design.id} {graph.design.name}: {len(graph.pages)} pages, {found} times found again"

    def draw(
        self,
        canvas: Canvas,
        columns: dict[Place, tuple[int, int]],
        rows: dict[int, float],
        left: float,
    ) -> None:
        """Draw the pages with what links them, levels at the heights in `rows`."""
        top = min(rows.values(), default=70) - 16
        canvas.text(left + 8, top, self.caption(), weight="bold")
        boxes = self._boxes(columns, rows, left + _LEFT)
        for level, y in rows.items():
            canvas.text(left + 8, y + _BOX / 2 + 4, f"level {level}", size=_SIZE)
        for parent, child in self.graph.links:
            if parent in boxes and child in boxes:
                (px, py, pw), (cx, cy, cw) = boxes[parent], boxes[child]
                color, thick = (COLORS[5], 2) if child in self.fills else ("#777777", 1)
                canvas.line([(px + pw / 2, py + _BOX), (cx + cw / 2, cy)], color, thick)
        for page, (x, y, width) in boxes.items():
            self._box(canvas, page, x, y, width)

    def _boxes(
        self, columns: dict[Place, tuple[int, int]], rows: dict[int, float], left: float
    ) -> dict[Key, tuple[float, float, float]]:
        boxes = {}
        for place, (first, slots) in columns.items():
            pages = [page for page in self.drawn if self.graph.place(page) == place]
            for number, page in enumerate(pages):
                width = slots * _SLOT / len(pages)
                x = left + first * _SLOT + number * width
                boxes[page] = x, rows[place[1]], width - 10
        return boxes

    def _box(self, canvas: Canvas, page: Key, x: float, y: float, width: float) -> None:
        graph, facts = self.graph, self.graph.facts(page)
        canvas.rect(x, y, width, _BOX, self.fills.get(page, "#ffffff"), INK, facts.full_str())
        if page in graph.roots:
            canvas.rect(x + 2.5, y + 2.5, width - 5, _BOX - 5, "none", INK)
        middle = x + width / 2
        weight = "bold" if page in self.fills else "normal"
        canvas.text(middle, y + 16, f"gfn {page[0]:#x}", anchor="middle", font=MONO, weight=weight)
        kind = self.words.get(page) or _kind(facts)
        canvas.text(middle, y + 32, kind, anchor="middle", size=_SIZE, weight=weight)
        found = graph.found.get(page, 0)
        times = f"made {graph.pages[page]}, found {found}"
        canvas.text(middle, y + 47, times, anchor="middle", size=10, fill="#444444")


def _kind(facts: RoleFacts) -> str:
    flags = (
        ("direct", facts.direct),
        ("passthrough", facts.passthrough),
        (f"quadrant {facts.quadrant}", facts.has_4_byte_gpte and not facts.direct),
        ("L2's", facts.guest_mode),
    )
    return ", ".join(name for name, flag in flags if flag) or "a guest table"


def _key(canvas: Canvas, y: float) -> None:
    for number, (fill, text, root) in enumerate(_KEY):
        top = y + 18 * number
        canvas.rect(8, top, 26, 14, fill, INK)
        if root:
            canvas.rect(10.5, top + 2.5, 21, 9, "none", INK)
        canvas.text(42, top + 11, text, size=_SIZE)
    alike = "Not drawn: pages alike under both that neither lead to one of these nor lie right below one."
    canvas.text(8, y + 18 * len(_KEY) + 12, alike, size=10, fill="#444444")
