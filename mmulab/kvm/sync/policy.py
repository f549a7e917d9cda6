"""What the engine asks about tables that the guest writes.

A shadow page is *in sync* while the guest's table is write-protected: each write
is emulated, and KVM changes the sptes with it. *Out of sync* the guest writes
freely, and KVM compares the whole page with the table when the processor would
have had to forget it. A policy says which pages may go out of sync, who knows of
them, and when they are compared.

A policy of one's own extends one of these classes and overrides what it does
otherwise; the base class remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from mmulab.kvm.sync.stat import count_refused

if TYPE_CHECKING:  # the kernel holds a policy, and all of these know the kernel
    from mmulab.kvm.memslot import KvmMemslot
    from mmulab.kvm.mmu_page import ShadowPage
    from mmulab.kvm.state import Kvm, Vcpu
    from mmulab.kvm.sync.oos_state import OosState

InvalidList = list[int]


class SyncPolicy:
    """When a shadowed table may be written, and when it is compared with its shadow.

    A policy is a value and holds no state: what it remembers of a VM hangs from
    that VM. Its text, :func:`str`, names it on the command line and in a recording.

    Attributes
    ----------
    name, summary, source : str
    page_bytes, vm_bytes : int
        Memory that it takes in the header of each shadow page, and in the VM.
    follows_leaves : bool
        It wants to know of each guest entry that a leaf is made of (:meth:`leaf_set`).
    marks_parents : bool
        Each parent of an unsync page knows of it by ``unsync_children``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    page_bytes: ClassVar[int] = 0
    vm_bytes: ClassVar[int] = 0
    follows_leaves: ClassVar[bool] = False
    marks_parents: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.name

    def new_state(self) -> OosState | None:
        """Return what the policy will remember of a new VM (``kvm.sync_state``)."""
        return None

    # Writes -----------------------------------------------------------------------

    def try_to_unsync(
        self, kvm: Kvm, slot: KvmMemslot, gfn: int, *, can_unsync: bool, prefetch: bool
    ) -> bool:
        """Prepare for a writable mapping of `gfn`.

        Returns
        -------
        bool
            True if every page that shadows `gfn` is (now) out of sync or there is
            none; False if the mapping must stay read-only.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which pages go out of sync")

    def refuse(self, kvm: Kvm, reason: str) -> bool:
        """Count a page that must stay in sync although it was to be mapped writable; return False."""
        count_refused(kvm.sync_stat, reason)
        return False

    def tracks(self, kvm: Kvm, sp: ShadowPage) -> bool:
        """Whether the table is write-tracked, so that no write to it ever gets through.

        The answer must stay the same as long as the page is in use.
        """
        return sp.level > 1

    def tracked_because(self, kvm: Kvm, gfn: int) -> str:
        """Return why the table at `gfn` is tracked, in a word for the counts."""
        return "upper_level"

    def counts_floods(self, kvm: Kvm, sp: ShadowPage) -> bool:
        """Whether many emulated writes in a row mean that it is no table any more.

        Not if such a page would have gone out of sync instead.
        """
        return sp.level > 1

    # Pages ------------------------------------------------------------------------

    def created(self, kvm: Kvm, vcpu: Vcpu | None, sp: ShadowPage, addr: int | None) -> None:
        """Note a new page, wanted for `addr` (None: it is a root), before its table is protected."""

    def meets(self, vcpu: Vcpu, sp: ShadowPage, addr: int | None, invalid: InvalidList) -> bool:
        """Prepare a page that a lookup for `addr` found; False: it was zapped."""
        return True

    def meets_other(
        self,
        kvm: Kvm,
        vcpu: Vcpu | None,
        sp: ShadowPage,
        addr: int | None,
        invalid: InvalidList,
        *,
        upper: bool,
    ) -> None:
        """Take note that a lookup passed `sp`, which shadows the same gfn in another role.

        `upper`: the page that is wanted is of an upper level.
        """

    def linking(self, vcpu: Vcpu, sp: ShadowPage) -> None:
        """Prepare what is below a page that is about to be linked."""

    def linked(self, kvm: Kvm, sptep: int, sp: ShadowPage) -> None:
        """Note that the entry at `sptep` now points to `sp`."""

    def zap_below(self, kvm: Kvm, sp: ShadowPage, invalid: InvalidList) -> int:
        """Zap what must not outlive `sp`, which is being zapped; return the number of pages."""
        return 0

    def zapped(self, kvm: Kvm, sp: ShadowPage) -> None:
        """Forget a page that is out of use now."""

    def leaf_set(self, vcpu: Vcpu, sp: ShadowPage, index: int, gpte: int) -> None:
        """Note that the leaf at `index` of a level-1 page now says what `gpte` does."""

    def may_zap(self, kvm: Kvm, sp: ShadowPage) -> bool:
        """Whether a page may be zapped because it is flooded, old or to be unprotected."""
        return True

    # Flushes ----------------------------------------------------------------------

    def sync_roots(self, vcpu: Vcpu, roots: Sequence[ShadowPage], *, everything: bool) -> None:
        """Compare what the guest's flush obliges to: below `roots`, the vCPU's current ones.

        `everything`: the flush does not spare global translations.
        """

    def control_written(self, vcpu: Vcpu, roots: Sequence[ShadowPage]) -> None:
        """Compare what a write to CR0 or CR4 obliges to, before the context is configured again."""

    def invalidating(self, vcpu: Vcpu, gva: int, root_hpa: int) -> None:
        """Compare what is above the leaf, before an INVLPG looks at the leaf of `gva` below a root."""

    def is_unsync_root(self, kvm: Kvm, sp: ShadowPage) -> bool:
        """Whether something below a root is out of sync."""
        return False

    def may_hide_below(self, sp: ShadowPage) -> bool:
        """Whether an INVLPG that passes `sp` must look further down."""
        return False

    # Checks -----------------------------------------------------------------------

    def violations(self, kvm: Kvm) -> Iterator[str]:
        """Say what of the VM's state contradicts the policy's own."""
        return iter(())
