"""Role designs and child-role derivations: what users vary.

A design decides which shadow pages of one gfn are the same page. It packs what
the MMU knows of a page (:class:`~mmulab.kvm.role.RoleFacts`) and of the guest's
CPU (:class:`~mmulab.kvm.role.CpuRole`) into one word, the key beside the gfn,
and gives the facts back out of the word: what a design cannot say, the MMU
cannot know.

A derivation decides the quadrant of a child page: how the MMU splits one
4-byte guest table over several shadow tables.
"""

from __future__ import annotations

from collections.abc import Callable

from mmulab.errors import InputError
from mmulab.kvm.role import BitField, CpuRole, RoleFacts, RoleLayout

LAYOUT_6_1 = RoleLayout(
    (
        BitField("level", 4),
        BitField("has_4_byte_gpte", 1),
        BitField("quadrant", 2),
        BitField("direct", 1),
        BitField("access", 3),
        BitField("invalid", 1),
        BitField("efer_nx", 1),
        BitField("cr0_wp", 1),
        BitField("smep_andnot_wp", 1),
        BitField("smap_andnot_wp", 1),
        BitField("ad_disabled", 1),
        BitField("guest_mode", 1),
        BitField("passthrough", 1),
        BitField("", 5),
        BitField("smm", 8),
    )
)
LAYOUT_PRE_FIX = RoleLayout(
    (
        *(f for f in LAYOUT_6_1.fields if f.name not in ("passthrough", "", "smm")),
        BitField("", 6),
        BitField("smm", 8),
    )
)


class RoleDesign:
    """A role word: its layout and what goes into it.

    Subclasses set the class attributes, and override :meth:`pack`,
    :meth:`child` or :meth:`facts` where their fields are not those of the facts.

    Attributes
    ----------
    id, name : str
        ``D4`` and ``passthrough``; either is accepted where a design is named.
    summary, source : str
        One line of explanation; commit or Message-Id.
    layout : RoleLayout
    sync_ignored : tuple of str
        Fields that may differ between a page and the context that syncs it
        (``sync_role_ign`` in ``FNAME(sync_page)``).
    """

    id = ""
    name = ""
    summary = ""
    source = ""
    layout = LAYOUT_6_1
    sync_ignored: tuple[str, ...] = ("level", "access", "quadrant", "passthrough")

    def __init__(self) -> None:
        mask = self.layout.mask
        self.level_mask = mask["level"]
        self.sync_mask = ~sum(mask[name] for name in self.sync_ignored if name in mask)

    def pack(self, facts: RoleFacts, cpu: CpuRole) -> int:
        """Return the word of a page of these facts, made for this guest CPU."""
        known = facts._asdict()
        return self.layout.pack(**{name: known[name] for name in self.layout.shift})

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the word of a page one level below `parent` (``kvm_mmu_child_role``)."""
        layout = self.layout
        word = layout.set(parent, "level", layout.get(parent, "level") - 1)
        for name, value in (("access", access), ("direct", direct), ("quadrant", quadrant)):
            word = layout.set(word, name, value)
        word &= ~layout.mask["invalid"]
        return word & ~layout.mask.get("passthrough", 0)

    def facts(self, role: int) -> RoleFacts:
        """Return what the word says."""
        get = self.layout.get
        return RoleFacts(
            level=get(role, "level"),
            has_4_byte_gpte=bool(get(role, "has_4_byte_gpte")),
            quadrant=get(role, "quadrant"),
            direct=bool(get(role, "direct")),
            access=get(role, "access"),
            invalid=bool(get(role, "invalid")),
            efer_nx=bool(get(role, "efer_nx")),
            cr0_wp=bool(get(role, "cr0_wp")),
            smep_andnot_wp=bool(get(role, "smep_andnot_wp")),
            smap_andnot_wp=bool(get(role, "smap_andnot_wp")),
            ad_disabled=bool(get(role, "ad_disabled")),
            guest_mode=bool(get(role, "guest_mode")),
            passthrough=bool(get(role, "passthrough")),
            smm=get(role, "smm"),
        )

    def invalidated(self, role: int) -> int:
        """Return the word with ``invalid`` set."""
        return role | self.layout.mask["invalid"]

    def __repr__(self) -> str:
        return f"<{self.id} {self.name}: {self.layout.used_bits} bits>"


class Passthrough(RoleDesign):
    """One bit marks the level-5 page that only points at the real level-4 root.

    Merged in v5.19 as 84e5ffd045f3 ("KVM: X86/MMU: Fix shadowing 5-level NPT
    for 4-level NPT L1 guest"), from Message-Id 20220420131204.2850-1.
    """

    id = "D4"
    name = "passthrough"
    summary = "one bit marks a page that shadows no table of its own (merged in 5.19, the default)"
    source = "84e5ffd045f3; 20220420131204.2850-1"


class PreFix(RoleDesign):
    """The word before 84e5ffd045f3: nothing tells the level-5 portal from a real level-5 root."""

    id = "D0"
    name = "pre_fix"
    summary = "5.18's word: a level-5 page that is only a portal looks like a real one"
    source = "before 84e5ffd045f3"
    layout = LAYOUT_PRE_FIX


DESIGNS: dict[str, RoleDesign] = {d.name: d for d in (PreFix(), Passthrough())}


def find_design(name: str) -> RoleDesign:
    """Return a design by name or id.

    Raises
    ------
    InputError
        No design is called so.
    """
    for design in DESIGNS.values():
        if name in (design.name, design.id):
            return design
    known = ", ".join(f"{d.id} {d.name}" for d in DESIGNS.values())
    raise InputError(f"role design {name!r}: unknown; the designs are {known}")


Derivation = Callable[[RoleFacts, int], int]
"""``derivation(parent's facts, index of the parent's spte) -> quadrant of the child``."""


def parity(parent: RoleFacts, index: int) -> int:
    """Quadrant from the lowest bit of the spte's index, 0 for 8-byte entries.

    A shadow page directory entry maps 2 MiB, a 4-byte guest table 4 MiB, so the
    even entry shows the lower half of the table and the odd one the upper.
    Source: ``kvm_mmu_child_role``, Linux 6.1 ``arch/x86/kvm/mmu/mmu.c``;
    proposed in the reply to Message-Id 20220203010051.2813563-3.
    """
    return index & 1 if parent.has_4_byte_gpte else 0


def copied(parent: RoleFacts, index: int) -> int:
    """Quadrant taken over from the parent: the first version of the series, which is wrong.

    Both halves of a guest table get the same quadrant and so the same shadow page.
    Source: Message-Id 20220203010051.2813563-3 (patch 2 of v1).
    """
    return parent.quadrant


DERIVATIONS: dict[str, Derivation] = {"parity": parity, "copied": copied}


def find_derivation(name: str) -> Derivation:
    """Return a child-role derivation by name.

    Raises
    ------
    InputError
        No derivation is called so.
    """
    if name not in DERIVATIONS:
        raise InputError(f"derivation {name!r}: unknown; the derivations are {', '.join(DERIVATIONS)}")
    return DERIVATIONS[name]
