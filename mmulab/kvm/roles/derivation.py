"""How the role of a child page comes about, above all its quadrant.

The MMU splits one guest table of 4-byte entries over several shadow tables; the
quadrant says which part a shadow page shows. The series for eager page splitting
(January to June 2022) made the role of a child follow from its parent's, because
splitting has no faulting address to take the quadrant from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mmulab.errors import find_named
from mmulab.kvm.roles.word import RoleFacts


class Derivation(NamedTuple):
    """How the role of a child page comes about, and above all its quadrant.

    Attributes
    ----------
    name, summary, source : str
    quadrant : callable
        ``quadrant(parent, index, addr) -> int``: the parent's facts, the index of
        the spte in it, and the faulting address, None where nothing faulted.
    from_parent : bool
        The other fields come from the parent's role; else from the context that faulted.
    splits_4_byte : bool
        Eager splitting, where no address faulted, can make a child of a page
        that shadows a table of 4-byte entries.
    """

    name: str
    summary: str
    source: str
    quadrant: Callable[[RoleFacts, int, int | None], int]
    from_parent: bool = True
    splits_4_byte: bool = True


def _parity(parent: RoleFacts, index: int, addr: int | None) -> int:
    return index & 1 if parent.has_4_byte_gpte else 0


def _copied(parent: RoleFacts, index: int, addr: int | None) -> int:
    return parent.quadrant


def _by_address(parent: RoleFacts, index: int, addr: int | None) -> int:
    """Take the bits that the 4-byte tables above consumed and the 8-byte ones did not: one a level."""
    if not parent.has_4_byte_gpte or addr is None:
        return 0
    level = parent.level - 1
    return addr >> 12 + 9 * level & (1 << level) - 1


parity = Derivation(
    "parity",
    "the parent's role; the quadrant is the lowest bit of the spte's index, 0 for 8-byte entries",
    "kvm_mmu_child_role, Linux 6.1 arch/x86/kvm/mmu/mmu.c; reply to 20220203010051.2813563-3",
    _parity,
)
"""A shadow page directory entry maps 2 MiB, a 4-byte guest table 4 MiB: the even entry shows
the lower half of the table and the odd one the upper."""
copied = Derivation(
    "copied",
    "the parent's role with its quadrant: both halves of a table get the same page (wrong)",
    "20220203010051.2813563-3 (patch 2 of v1 of the eager-split series)",
    _copied,
)
scratch = Derivation(
    "scratch",
    "the role of the context that faulted; the quadrant from the faulting address",
    "kvm_mmu_get_page, Linux 5.19 arch/x86/kvm/mmu/mmu.c",
    _by_address,
    from_parent=False,
    splits_4_byte=False,
)
get_page = Derivation(
    "get_page",
    "the parent's role, but the quadrant from the faulting address; 0 where there is none",
    "reply to 20220203010051.2813563-3: splitting skips tables of 4-byte entries",
    _by_address,
    splits_4_byte=False,
)
DERIVATIONS: dict[str, Derivation] = {rule.name: rule for rule in (parity, copied, scratch, get_page)}


def find_derivation(name: str) -> Derivation:
    """Return a child-role derivation by name.

    Raises
    ------
    InputError
        No derivation has this name.
    """
    return find_named(DERIVATIONS, name, "derivation", "derivations")
