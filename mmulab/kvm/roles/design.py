"""Role designs: what users vary.

A design decides which shadow pages of one gfn are the same page. It packs what
the MMU knows of a page (:class:`~mmulab.kvm.roles.word.RoleFacts`) and of the guest's
CPU (:class:`~mmulab.kvm.roles.word.CpuRole`) into one word, the key beside the gfn,
and gives the facts back out of the word: what a design cannot say, the MMU
cannot know. A design that is the word of a released kernel has that kernel's own
layout (:mod:`mmulab.kvm.roles.history`).
"""

from __future__ import annotations

from functools import lru_cache

from mmulab.kvm.roles.history import find_role_version
from mmulab.kvm.roles.root_strategy import top_table_level
from mmulab.kvm.roles.word import BitField, CpuRole, RoleFacts, RoleLayout

LAYOUT_6_1 = find_role_version("6.1").layout
"""The merged word, from which each rival differs in a few fields; it is that of 5.19 to 6.13."""


class RoleDesign:
    """A role word: its layout and what goes into it.

    Subclasses set the class attributes, and override :meth:`own_fields`,
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
    reference, digest : str
        Of a user's own design: ``file.py:Class`` or ``module:Class``, and the SHA-256
        of that file in hexadecimal; both are empty for those that are built in.
    """

    id = ""
    name = ""
    summary = ""
    source = ""
    layout = LAYOUT_6_1
    sync_ignored: tuple[str, ...] = ("level", "access", "quadrant", "passthrough")
    reference = ""
    digest = ""

    def __init__(self) -> None:
        mask = self.layout.mask
        self.sync_mask = ~sum(mask[name] for name in self.sync_ignored if name in mask)

    def pack(self, facts: RoleFacts, cpu: CpuRole) -> int:
        """Return the word of a page of these facts, made for this guest CPU."""
        known = facts._asdict() | self.own_fields(facts, cpu)
        try:
            values = {name: known[name] for name in self.layout.shift}
        except KeyError as error:
            raise ValueError(f"the field {error} is no fact of the MMU's; own_fields must say it") from None
        return self.layout.pack(**values)

    def own_fields(self, facts: RoleFacts, cpu: CpuRole) -> dict[str, int]:
        """Return the values of the layout's fields that are no facts themselves."""
        return {}

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the word of a page one level below `parent` (``kvm_mmu_child_role``)."""
        layout = self.layout
        word = layout.set(parent, "level", layout.get(parent, "level") - 1)
        for name, value in (("access", access), ("direct", direct), ("quadrant", quadrant)):
            if name in layout.mask:
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


@lru_cache(maxsize=1 << 14)
def role_facts(design: RoleDesign, role: int) -> RoleFacts:
    """Return :meth:`RoleDesign.facts`, which the MMU asks for again and again."""
    return design.facts(role)


@lru_cache(maxsize=1 << 14)
def role_word(design: RoleDesign, facts: RoleFacts, cpu: CpuRole) -> int:
    """Return :meth:`RoleDesign.pack`."""
    return design.pack(facts, cpu)


@lru_cache(maxsize=1 << 14)
def role_of_child(design: RoleDesign, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
    """Return :meth:`RoleDesign.child`."""
    return design.child(parent, direct=direct, access=access, quadrant=quadrant)


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
    layout = find_role_version("5.18").layout


def _layout(*mode: BitField, fixed: tuple[str, ...] = ()) -> RoleLayout:
    """Return 6.1's word with other fields for the paging mode, `fixed` ones of 6.1 dropped."""
    dropped = ("passthrough", "smm", "", *fixed)
    fields = [*(f for f in LAYOUT_6_1.fields if f.name not in dropped), *mode]
    gap = 24 - sum(f.width for f in fields)
    return RoleLayout((*fields, *([BitField("", gap)] if gap else []), BitField("smm", 8)))


class GuestLevel(RoleDesign):
    """The level of the guest's table in the role; a page above it shadows nothing of its own.

    RFC V3 of the series, Message-Id 20220330132152.4568-3: the root has the level of
    the guest's paging, and a page below, direct ones included, no more than its own
    level. So, unlike ``glevels`` of old, it does not tell modes apart where the
    tables have the same level. A direct root has 0.
    """

    id = "D1"
    name = "glevel"
    summary = "four bits for the level of the guest's table; less than the page's own: it passes through"
    source = "20220330132152.4568-3"
    layout = _layout(BitField("glevel", 4))
    sync_ignored = ("level", "access", "quadrant", "glevel")

    def own_fields(self, facts: RoleFacts, cpu: CpuRole) -> dict[str, int]:
        """Return ``glevel``."""
        return {"glevel": 0 if facts.direct else min(facts.level, top_table_level(cpu))}

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the word one level below."""
        word = super().child(parent, direct=direct, access=access, quadrant=quadrant)
        get = self.layout.get
        return self.layout.set(word, "glevel", min(get(word, "level"), get(parent, "glevel")))

    def facts(self, role: int) -> RoleFacts:
        """Return what the word says: a page of a higher level than the guest's table passes through."""
        facts = super().facts(role)
        return facts._replace(passthrough=not facts.direct and self.layout.get(role, "glevel") < facts.level)


class PassthroughLevels(RoleDesign):
    """How many levels from here down shadow nothing; all of them make a direct page.

    Proposed as ``passthrough_delta`` in the reply to V3, Message-Id YlXvtMqWpyM9Bjox@google.com,
    and so named, with ``direct`` dropped, in the next (13 April 2022).
    """

    id = "D2"
    name = "passthrough_levels"
    summary = "a count of levels without a guest table; as many as the level: direct"
    source = "YlXvtMqWpyM9Bjox@google.com, caffa434-5644-ee73-1636-45a87517bae2@redhat.com"
    layout = _layout(BitField("passthrough_levels", 3), fixed=("direct",))
    sync_ignored = ("level", "access", "quadrant", "passthrough_levels")

    def own_fields(self, facts: RoleFacts, cpu: CpuRole) -> dict[str, int]:
        """Return ``passthrough_levels``."""
        above = max(0, facts.level - top_table_level(cpu))
        return {"passthrough_levels": facts.level if facts.direct else above}

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the word one level below: one level less to pass through."""
        word = super().child(parent, direct=direct, access=access, quadrant=quadrant)
        get = self.layout.get
        levels = get(word, "level") if direct else max(0, get(parent, "passthrough_levels") - 1)
        return self.layout.set(word, "passthrough_levels", levels)

    def facts(self, role: int) -> RoleFacts:
        """Return what the word says."""
        facts = super().facts(role)
        levels = self.layout.get(role, "passthrough_levels")
        direct = levels == facts.level
        return facts._replace(direct=direct, passthrough=levels > 0 and not direct)


class TargetLevel(RoleDesign):
    """The level of the guest table that is shadowed, 0 for a direct page, which drops ``direct``.

    Named in Message-Id caffa434-5644-ee73-1636-45a87517bae2@redhat.com; that 0 stands
    for ``direct`` is in YlbtEorfabzkRucF@google.com (13 April 2022).
    """

    id = "D3"
    name = "target_level"
    summary = "the level of the guest table shadowed, 0 if none: direct"
    source = "caffa434-5644-ee73-1636-45a87517bae2@redhat.com, YlbtEorfabzkRucF@google.com"
    layout = _layout(BitField("target_level", 3), fixed=("direct",))
    sync_ignored = ("level", "access", "quadrant", "target_level")

    def own_fields(self, facts: RoleFacts, cpu: CpuRole) -> dict[str, int]:
        """Return ``target_level``."""
        return {"target_level": 0 if facts.direct else min(facts.level, top_table_level(cpu))}

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the word one level below: the same table under a portal, else the next."""
        word = super().child(parent, direct=direct, access=access, quadrant=quadrant)
        get = self.layout.get
        target = 0 if direct else min(get(word, "level"), get(parent, "target_level"))
        return self.layout.set(word, "target_level", target)

    def facts(self, role: int) -> RoleFacts:
        """Return what the word says."""
        facts = super().facts(role)
        target = self.layout.get(role, "target_level")
        return facts._replace(direct=target == 0, passthrough=0 < target < facts.level)


class CpuModeWithPassthrough(RoleDesign):
    """CR4.PAE and EFER.LMA in the key, CR4.LA57 left outside, and the passthrough bit.

    The optimization at the end of the mail that proposes ``cpu_mode``: a portal
    exists only while CR4.LA57 is 0.
    """

    id = "D6"
    name = "cpu_mode_passthrough"
    summary = "cr4_pae and efer_lma in the key, cr4_la57 not, and a passthrough bit"
    source = "YlhC86CFDRghdd5v@google.com"
    layout = _layout(
        BitField("cr4_pae", 1),
        BitField("efer_lma", 1),
        BitField("passthrough", 1),
        fixed=("has_4_byte_gpte",),
    )

    def own_fields(self, facts: RoleFacts, cpu: CpuRole) -> dict[str, int]:
        """Return the mode of the tables shadowed, which for EPT is long mode's."""
        long_mode = not facts.direct and cpu.level >= 4
        la57 = long_mode and cpu.level == 5
        return {"cr4_pae": not facts.has_4_byte_gpte, "efer_lma": long_mode, "cr4_la57": la57}

    def facts(self, role: int) -> RoleFacts:
        """Return what the word says."""
        return super().facts(role)._replace(has_4_byte_gpte=not self.layout.get(role, "cr4_pae"))


class CpuMode(CpuModeWithPassthrough):
    """CR4.PAE, EFER.LMA and CR4.LA57 in the key; what passes through follows from them.

    Proposed in Message-Id YlhC86CFDRghdd5v@google.com (14 April 2022):
    pages are no longer shared between 64-bit paging and PAE paging.
    """

    id = "D5"
    name = "cpu_mode"
    summary = "cr4_pae, efer_lma and cr4_la57 in the key instead of anything synthetic"
    layout = _layout(
        BitField("cr4_pae", 1),
        BitField("efer_lma", 1),
        BitField("cr4_la57", 1),
        fixed=("has_4_byte_gpte",),
    )

    def facts(self, role: int) -> RoleFacts:
        """Return what the word says: `passthrough` is a level above the mode's highest table in memory."""
        facts, get = super().facts(role), self.layout.get
        long_mode = 5 if get(role, "cr4_la57") else 4
        top = long_mode if get(role, "efer_lma") else 2
        return facts._replace(passthrough=not facts.direct and facts.level > top)


class GuestLevels(RoleDesign):
    """The word of 2.6.34: ``glevels``, and neither CR0.WP nor SMEP nor anything nested.

    It was right for the modes of its time: shadow paging of a guest with
    CR0.WP=1 on hosts with four levels.
    """

    id = "D7"
    name = "glevels"
    summary = "2.6.34's word: the guest's levels, no CR0.WP, no SMEP, no nesting"
    source = "before 5b7e0102ae74 (2.6.35)"
    layout = find_role_version("2.6.34").layout

    def own_fields(self, facts: RoleFacts, cpu: CpuRole) -> dict[str, int]:
        """Return ``glevels`` and ``nxe``; KVM sets CR4.PGE for every guest, so that bit stays clear here."""
        return {"glevels": 0 if facts.direct else cpu.level, "cr4_pge": 0, "nxe": facts.efer_nx}

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the word one level below; a direct page has no guest levels."""
        word = super().child(parent, direct=direct, access=access, quadrant=quadrant)
        return self.layout.set(word, "glevels", 0) if direct else word

    def facts(self, role: int) -> RoleFacts:
        """Return what the word says."""
        get = self.layout.get
        said = {"has_4_byte_gpte": get(role, "glevels") == 2, "efer_nx": bool(get(role, "nxe"))}
        return super().facts(role)._replace(**said)


class Cr4Pae(RoleDesign):
    """The word of 5.0: ``cr4_pae``, cleared for direct pages, and no portal.

    5.1 replaced it (47c42e6b4192), because the entries of a nested EPT have 8
    bytes whatever CR4.PAE says. That fault is not in this design: what the
    context says of its tables decides.
    """

    id = "D8"
    name = "cr4_pae"
    summary = "5.0's word: 8-byte entries by CR4.PAE, direct pages of all modes shared, no portal"
    source = "before 47c42e6b4192 (5.1)"
    layout = find_role_version("5.0").layout

    def own_fields(self, facts: RoleFacts, cpu: CpuRole) -> dict[str, int]:
        """Return ``cr4_pae`` and ``nxe``."""
        return {"cr4_pae": not facts.direct and not facts.has_4_byte_gpte, "nxe": facts.efer_nx}

    def child(self, parent: int, *, direct: bool, access: int, quadrant: int) -> int:
        """Return the word one level below; a direct page has no CR4.PAE."""
        word = super().child(parent, direct=direct, access=access, quadrant=quadrant)
        return self.layout.set(word, "cr4_pae", 0) if direct else word

    def facts(self, role: int) -> RoleFacts:
        """Return what the word says."""
        facts, get = super().facts(role), self.layout.get
        has_4_byte_gpte = not facts.direct and not get(role, "cr4_pae")
        return facts._replace(has_4_byte_gpte=has_4_byte_gpte, efer_nx=bool(get(role, "nxe")))


_ALL: tuple[RoleDesign, ...] = (
    PreFix(),
    GuestLevel(),
    PassthroughLevels(),
    TargetLevel(),
    Passthrough(),
    CpuMode(),
    CpuModeWithPassthrough(),
    GuestLevels(),
    Cr4Pae(),
)
DESIGNS: dict[str, RoleDesign] = {design.name: design for design in _ALL}
