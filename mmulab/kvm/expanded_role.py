"""Roles of shadow pages above a guest's own tables, where roots are no special ones.

Lai Jiangshan calls it *level expansion* (20220330132152.4568-3): KVM's tables
have more levels than the guest's.
"""

from __future__ import annotations

from mmulab.kvm.mmu import PT32E_ROOT_LEVEL, Mmu
from mmulab.kvm.roles.design import role_word
from mmulab.kvm.roles.root_strategy import top_table_level
from mmulab.kvm.state import Vcpu


def is_expanded_level(mmu: Mmu, level: int) -> bool:
    """Whether a shadow page of this level lies above tables of a 32-bit guest, PAE's included.

    There is none with special roots.
    """
    return not mmu.direct and mmu.cpu_role.level <= PT32E_ROOT_LEVEL <= level


def expanded_role(vcpu: Vcpu, level: int, index: int, access: int) -> int:
    """Return the role of a page in or just below the levels that a 32-bit guest's tables do not have.

    The context says it, not the parent: whatever index of four a page directory
    has in the level above, is its quadrant.
    """
    mmu = vcpu.mmu
    assert mmu.root_facts is not None
    top = top_table_level(mmu.cpu_role)
    facts = mmu.root_facts._replace(
        level=level,
        quadrant=index if level == top and mmu.root_facts.has_4_byte_gpte else 0,
        access=access,
        passthrough=level > top,
    )
    return role_word(vcpu.kvm.config.kernel.design, facts, mmu.cpu_role)
