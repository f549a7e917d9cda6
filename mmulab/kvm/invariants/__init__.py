"""What must hold of the MMU's state whenever no op is under way.

Everything is recounted from the shadow tables themselves, from the slots and
from the vCPUs' roots; nothing is changed and no event is reported. Most checks
look at one entry or one page alone, and :class:`mmulab.check.mmu.Invariants` asks
those for what an op has changed; :func:`check` asks all for everything. They are
the flags of :class:`Invariant`, I1 to I16 of a shadow MMU but for three: that each
translation was once the guest's, that a TLB holds nothing that still has to be
flushed (:mod:`mmulab.check.tlb`), and that states which share a page translate
alike (:mod:`mmulab.check.oracle`) shows in no table, for it needs the history.

The minimum is what the kernel's own auditor checked until it was removed
(``arch/x86/kvm/mmu/mmu_audit.c``, Linux 5.16): entries agree with the reverse
map, and nothing may write a protected table.
"""

from __future__ import annotations

from mmulab.kvm.invariants.checks import Check, check, found
from mmulab.kvm.invariants.flags import Invariant, Violation
from mmulab.kvm.state import Kvm

__all__ = ["Check", "Invariant", "Violation", "check", "status", "violations"]


def status(kvm: Kvm) -> Invariant:
    """Return every invariant that is violated; ``Invariant.VALID``, which is false, if none is."""
    return check(kvm).status


def violations(kvm: Kvm) -> list[str]:
    """Return one line for each violation: the invariant's name, and what is wrong where."""
    return [str(violation) for violation in found(kvm)]
