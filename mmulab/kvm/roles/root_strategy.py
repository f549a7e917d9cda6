"""Where the tables above the guest's highest one live.

KVM's tables may have more levels than the guest's: PAE tables at least for a
32-bit guest, four or five levels for L1's NPT of any format. What lies above
the guest's highest table in memory maps nothing of the guest's own.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.errors import find_named
from mmulab.kvm.roles.word import CpuRole


class RootStrategy(NamedTuple):
    """How roots that shadow no table of the guest's are kept.

    Attributes
    ----------
    name, summary, source : str
    shadow_pages : bool
        Every table has the header of a shadow page, and the page directories
        are linked when an access needs them, not when the root is loaded.
    one_off : bool
        Such a root belongs to one load of one vCPU and is in no hash.
    """

    name: str
    summary: str
    source: str
    shadow_pages: bool = False
    one_off: bool = False


special = RootStrategy(
    "special",
    "pae_root, pml4_root and pml5_root: tables outside the page cache, without a header (merged)",
    "mmu_alloc_shadow_roots, Linux 6.1 arch/x86/kvm/mmu/mmu.c",
)
shadow = RootStrategy(
    "shadow",
    "shadow pages for all roots, found by gfn and role like any other",
    "20220329153604.507475, 20220330132152.4568 (the pae_root patches of the glevel series)",
    shadow_pages=True,
)
one_off = RootStrategy(
    "one_off",
    "a shadow page of the vCPU's own for each load of such a root, in no hash",
    "20220503150735.32723-1",
    shadow_pages=True,
    one_off=True,
)
ROOT_STRATEGIES: dict[str, RootStrategy] = {found.name: found for found in (special, shadow, one_off)}


def find_root_strategy(name: str) -> RootStrategy:
    """Return a root strategy by name.

    Raises
    ------
    InputError
        No strategy has this name.
    """
    return find_named(ROOT_STRATEGIES, name, "root strategy", "strategies")


def top_table_level(cpu: CpuRole) -> int:
    """Return the level of the guest's highest table in memory: PAE's PDPTEs are registers (SDM 3, 4.4.1)."""
    return 2 if cpu.level == 3 else cpu.level
