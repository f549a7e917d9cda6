"""The questions that the thread of 2008 asked, each a variation of the design as data."""

from __future__ import annotations

from typing import NamedTuple


class Variation(NamedTuple):
    """A choice that the design leaves, or that its reviewer asked about.

    Attributes
    ----------
    name : str
        Field of :class:`~mmulab.kvm.sync.oos_2008.Oos2008`.
    asked : str
        The sentence of the reply to the patch.
    values : dict of str to str
        Each value with what it means; the first is the design's own.
    """

    name: str
    asked: str
    values: dict[str, str]


_ALL = (
    Variation(
        "globals",
        "Why not a list?",
        {"array": "seven places in the VM", "list": "as many global pages as there are"},
    ),
    Variation(
        "index",
        "What does the index mean? An lru pointer?",
        {
            "round_robin": "the place after the last one taken is next",
            "lru": "the page that KVM mapped something in least recently gives way",
        },
    ),
    Variation(
        "global_by",
        "Maybe instead of a flag, add a counter for active ptes and global ptes, and a page is global if the "
        "counters match.",
        {"flag": "lost with the first leaf that is not global", "counters": "all present leaves are global"},
    ),
    Variation(
        "on_change",
        "What happens when a sp->global changes its value while a page is oos?",
        {
            "stay": "it stays where it is, and the next CR3 write passes a page in the array by",
            "move": "it goes from the array to its root's list, and back if it is known to be global again",
        },
    ),
    Variation(
        "roots",
        "That's okay, we may allow OOS roots one day.",
        {"in_sync": "only leaves go out of sync", "unsync": "roots do too"},
    ),
    Variation(
        "parent_zap",
        "disallowing a parent to be zapped while any of its children are alive",
        {
            "zap": "the pages on a root's list go with it",
            "orphan": "they stay, and nobody finds them again",
            "refuse": "no table with a child is flooded, recycled or unprotected",
        },
    ),
    Variation(
        "inuse",
        "What does inuse mean exactly?",
        {
            "held": "a page zapped by its own resync is freed when the lookup that caused it is over",
            "freed": "it is freed at once, under the lookup's hands",
        },
    ),
)
VARIATIONS = {variation.name: variation for variation in _ALL}
