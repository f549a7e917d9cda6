"""What the 2008 design remembers of a VM.

In the patch these are fields of ``struct kvm_mmu_page`` (``unsync_pages``,
``oos_link``, ``root_gfn``) and of ``struct kvm_arch`` (``oos_global_pages``,
``oos_global_idx``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

SEVERAL_ROOTS = -1
"""Instead of a root: the page is reached from more than one (``root_gfn`` -1, "multimapped")."""
SEVERAL_ROLES = -2
"""Instead of a root: its gfn is shadowed in more than one role."""
IN_ARRAY = -1
FREE = -1


@dataclass(slots=True)
class OosState:
    """Out-of-sync pages, by where they are found again.

    Attributes
    ----------
    root_of : dict of int to int
        Frame of a page to the gfn of the root it was made for, or why it has no single one.
    roots : dict of int to int
        Frames of pages that were made as roots.
    place : dict of int to int
        Frame of an unsync page to the frame of the root whose list it is on, or ``IN_ARRAY``.
    lists : dict of int to list of int
        Frame of a root to the unsync pages linked off it, oldest first.
    global_pages : list of int
        The array, or list, of global unsync pages; ``FREE`` is a place without one.
    index : int
        ``oos_global_idx``.
    not_global : dict of int to int
        Frames of pages whose flag was lost to a translation that is not global.
    global_leaves : dict of int to dict of int to int
        Frame to the indexes of its global leaves, where they are counted.
    """

    root_of: dict[int, int] = field(default_factory=dict)
    roots: dict[int, int] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)
    lists: dict[int, list[int]] = field(default_factory=dict)
    global_pages: list[int] = field(default_factory=list)
    index: int = 0
    not_global: dict[int, int] = field(default_factory=dict)
    global_leaves: dict[int, dict[int, int]] = field(default_factory=dict)

    def take_off(self, frame: int) -> None:
        """Take a page off the list or array that it is on."""
        place = self.place.pop(frame, None)
        if place is None:
            return
        if place != IN_ARRAY:
            self.lists[place].remove(frame)
            if not self.lists[place]:
                del self.lists[place]
            return
        self.global_pages[self.global_pages.index(frame)] = FREE

    def link(self, frame: int, root: int) -> None:
        """Put a page on a root's list."""
        self.lists.setdefault(root, []).append(frame)
        self.place[frame] = root

    def in_array(self) -> list[int]:
        """Return the frames of the global unsync pages, in the order of their places."""
        return [frame for frame in self.global_pages if frame != FREE]

    def use(self, frame: int) -> None:
        """Make a page the one of the array that was used last."""
        self.global_pages.remove(frame)
        self.global_pages.append(frame)

    def forget(self, frame: int) -> None:
        """Forget a page that is out of use."""
        self.take_off(frame)
        for table in (self.root_of, self.roots, self.not_global, self.global_leaves):
            table.pop(frame, None)
