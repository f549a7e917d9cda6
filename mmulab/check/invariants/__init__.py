"""What must hold of the MMU's state whenever no op is under way.

Everything is recounted from the shadow tables themselves, from the slots and
from the vCPUs' roots; nothing is changed and no event is reported. Most checks
look at one entry or one page alone, and :class:`mmulab.check.mmu.Invariants` asks
those for what an op has changed; :func:`violations` asks all for everything.

The minimum is what the kernel's own auditor checked until it was removed
(``arch/x86/kvm/mmu/mmu_audit.c``, Linux 5.16): entries agree with the reverse
map, and nothing may write a protected table.
"""

from __future__ import annotations

from mmulab.check.invariants.checks import found, status
from mmulab.check.invariants.flags import Invariant, Violation
from mmulab.kvm.state import Kvm

__all__ = ["Invariant", "Violation", "status", "violations"]


def violations(kvm: Kvm) -> list[str]:
    """Return one line for each violation: the invariant's name, and what is wrong where."""
    return [str(violation) for violation in found(kvm)]
