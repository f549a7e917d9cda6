"""The header of a shadow page.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu_internal.h`` (``struct kvm_mmu_page``).
"""

from __future__ import annotations

from mmulab.kvm.memslot import PteList
from mmulab.kvm.mmu_internal import KVM_HPAGE_GFN_SHIFT
from mmulab.kvm.roles.word import RoleFacts
from mmulab.x86.markup import facts_html
from mmulab.x86.pferr import ACC_STRINGS


class ShadowPage:
    """A shadow page (``struct kvm_mmu_page``): header of the table in `frame`.

    The facts of `role` are kept beside it because the MMU asks for them at
    every step; `role` alone, with `gfn`, is the page's identity.

    Attributes
    ----------
    frame, gfn, role : int
    level, quadrant, access : int
    has_4_byte_gpte, direct, passthrough, invalid, guest_mode, ad_disabled : bool
    smm : int
        Address space.
    has_gptes : bool
        It shadows a guest table (``sp_has_gptes``).
    mmu_valid_gen, root_count : int
    unsync : bool
        The guest may write its table without KVM's knowledge.
    unsync_children : int
        Entries that lead to unsync pages; `unsync_child_bitmap` says which.
    parent_ptes : PteList
        sptes that point here.
    write_flooding_count : int
    shadowed_translation : dict of int to int
        Index to gfn << 12 | access of the guest entry shadowed there.
    lpage_disallowed : bool
        It stands where a fetch forbade a huge page (``nx_huge_page_disallowed``).
    ptep : int
        Of a page of the TDP MMU: host-physical address of the spte that points here; 0: it is a root.
    tdp_mmu_page, tdp_mmu_scheduled_root_to_zap : bool
        The TDP MMU made it; it is a root to be emptied.
    pae_table, pdptes, one_off : bool
        Of a root that is no special one (:mod:`mmulab.kvm.roles.root_strategy`): the
        processor reads it as four PDPTEs; its directories are those that the
        guest's PDPTEs named when it was loaded; it is in no hash.
    """

    __slots__ = (
        "access",
        "ad_disabled",
        "direct",
        "frame",
        "gfn",
        "guest_mode",
        "has_4_byte_gpte",
        "has_gptes",
        "invalid",
        "level",
        "lpage_disallowed",
        "mmu_valid_gen",
        "one_off",
        "pae_table",
        "parent_ptes",
        "passthrough",
        "pdptes",
        "ptep",
        "quadrant",
        "role",
        "root_count",
        "shadowed_translation",
        "smm",
        "tdp_mmu_page",
        "tdp_mmu_scheduled_root_to_zap",
        "unsync",
        "unsync_child_bitmap",
        "unsync_children",
        "write_flooding_count",
    )

    def __init__(self, frame: int, gfn: int, role: int, facts: RoleFacts, mmu_valid_gen: int) -> None:
        self.frame = frame
        self.gfn = gfn
        self.role = role
        self.level = facts.level
        self.quadrant = facts.quadrant
        self.access = facts.access
        self.has_4_byte_gpte = facts.has_4_byte_gpte
        self.direct = facts.direct
        self.passthrough = facts.passthrough
        self.invalid = facts.invalid
        self.guest_mode = facts.guest_mode
        self.ad_disabled = facts.ad_disabled
        self.smm = facts.smm
        self.has_gptes = not facts.direct and not facts.passthrough
        self.mmu_valid_gen = mmu_valid_gen
        self.root_count = 0
        self.unsync = False
        self.unsync_children = 0
        self.unsync_child_bitmap = 0
        self.parent_ptes: PteList = []
        self.write_flooding_count = 0
        self.shadowed_translation: dict[int, int] = {}
        self.lpage_disallowed = False
        self.ptep = 0
        self.tdp_mmu_page = False
        self.tdp_mmu_scheduled_root_to_zap = False
        self.pae_table = False
        self.pdptes = False
        self.one_off = False

    def role_str(self) -> str:
        """Return the role in words, as the ``kvm_mmu_page`` tracepoints name its fields.

        What decides an access without standing in the header (CR0.WP, SMEP, SMAP) is in the word alone.
        """
        flags = {
            "direct": self.direct,
            "passthrough": self.passthrough,
            "guest_mode": self.guest_mode,
            "invalid": self.invalid,
        }
        parts = [f"l{self.level}", f"{4 if self.has_4_byte_gpte else 8}-byte", f"q{self.quadrant}"]
        return " ".join([*parts, ACC_STRINGS[self.access], *(name for name, flag in flags.items() if flag)])

    def state_str(self) -> str:
        """Say whether its entries follow the guest's: ``sync`` or ``unsync``, and what lies below."""
        below = f", {self.unsync_children} unsync children" if self.unsync_children else ""
        return f"{'unsync' if self.unsync else 'sync'}{below}"

    def __repr__(self) -> str:
        said = f"{self.role_str()}, {self.state_str()}"
        root = f", held as root {self.root_count}x" if self.root_count else ""
        return f"<ShadowPage gfn {self.gfn:#x} role {self.role:#x}: {said}{root}>"

    def _repr_html_(self) -> str:
        facts = {
            "gfn": f"{self.gfn:#x}",
            "role": f"{self.role:#x}",
            "in words": self.role_str(),
            "shadows a guest table": self.has_gptes,
            "state": self.state_str(),
            "held as root": self.root_count,
            "parents": " ".join(f"{sptep:#x}" for block in self.parent_ptes for sptep in block),
        }
        return facts_html(facts, f"shadow page in frame {self.frame:#x}")


def kvm_mmu_page_get_gfn(sp: ShadowPage, index: int) -> int:
    """Return the gfn that the entry at `index` of `sp` maps."""
    if sp.passthrough:
        return sp.gfn
    if not sp.direct:
        return sp.shadowed_translation[index] >> 12
    return sp.gfn + (index << KVM_HPAGE_GFN_SHIFT[sp.level])
