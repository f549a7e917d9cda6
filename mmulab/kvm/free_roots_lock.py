"""How the MMU lock is held while roots are freed, in kernels where that is a choice.

Linux 6.1 holds it for writing. 6.9 lets go of the TDP MMU's roots while it is held
for reading (576a15de8d29), and asserts for each root that it is held as that kind
needs. Which kind to expect it takes from the context's root role, so a role whose
word was cleared names the wrong one (fixed in 6.10 by 4fa96da3e6fe).

There is one thread here, so nothing waits; what is observed is the choice, by
:attr:`mmulab.kvm.state.Kvm.watch`.
"""

from __future__ import annotations

from typing import NamedTuple

FREE_ROOTS_LOCK = {
    "write": "for writing, whatever the roots are: to Linux 6.8",
    "by_root_role": "for reading if the TDP MMU is on and root_role.direct is set: Linux 6.9, 576a15de8d29",
}
"""What ``kvm_mmu_free_roots`` may do."""


class MmuLockHeld(NamedTuple):
    """The MMU lock was held while roots of a context were freed.

    Attributes
    ----------
    rule : str
        A key of :data:`FREE_ROOTS_LOCK`.
    context : {"root_mmu", "guest_mmu", "nested_mmu"}
    root_role : int
    shared : bool
        Held for reading.
    tdp_mmu_roots, shadow_roots : int
        Roots freed, by kind.
    """

    rule: str
    context: str
    root_role: int
    shared: bool
    tdp_mmu_roots: int
    shadow_roots: int

    @property
    def asserts(self) -> bool:
        """Whether a lockdep assertion of ``mmu_free_root_page`` in Linux 6.9 fails."""
        if self.rule == "write":
            return False
        return bool(self.shadow_roots if self.shared else self.tdp_mmu_roots)
