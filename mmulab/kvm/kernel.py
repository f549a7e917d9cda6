"""Which KVM this is: a kernel as one value.

A :class:`Kernel` holds everything in which one kernel's MMU differs from
another's; the engine asks for behaviours by name (:mod:`mmulab.kvm.behaviours`).
The known ones stand in :mod:`mmulab.kvm.kernels`.

Source: Linux 6.1.192 and 6.12.117, ``arch/x86/kvm``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from mmulab.errors import InputError, quoted
from mmulab.kvm.behaviours import CHANGES, Behaviours, with_behaviours
from mmulab.kvm.bug import SWITCHES, Bugs, with_bugs
from mmulab.kvm.event_words import EVENTS_6_1, EventWords
from mmulab.kvm.free_roots_lock import FREE_ROOTS_LOCK
from mmulab.kvm.roles.derivation import Derivation, parity
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.root_strategy import RootStrategy, special
from mmulab.kvm.spte import SpteFormat, ept_format, shadow_format
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.validity import VALIDITIES, Validity

CPUID_AFTER_RUN = {
    "refuse": "-EINVAL unless nothing differs: Linux 5.16 on (feb627e8d6f6, c6617c61e8fc)",
    "allow": "done, with a warning that the guest may misbehave: Linux 5.14 and 5.15 (63f5a1909f9e)",
    "bug": "done, and the VM is ended (KVM_BUG_ON): Linux 6.1 without the check in kvm_set_cpuid",
}
"""What becomes of a changed CPUID once the vCPU has run.

The pages and entries that KVM made for the old CPUID are found again by their
roles, in which CPUID is not. Linux 6.1 therefore refuses the change, and behind
that ``kvm_mmu_after_set_cpuid`` has an assertion that no VM survives.
"""
EAGER_SPLIT = {
    "nested": "the TDP MMU's, and with it on those of nested guests: Linux 6.1 (20220516232138.1783324-1)",
    "shadow": "all, the TDP MMU on or off: the series' first version (20220203010051.2813563-1)",
}
"""Whose huge pages are split eagerly.

The first version split every huge spte of a reverse map, those of hosts without the TDP
MMU too; from the fourth on ``is_tdp_mmu_enabled`` comes first.
"""
_RULES = {
    "cpuid_after_run": CPUID_AFTER_RUN,
    "free_roots_lock": FREE_ROOTS_LOCK,
    "eager_split": EAGER_SPLIT,
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel's MMU.

    Attributes
    ----------
    name : str
        A release, and what was turned on or off in it.
    source : str
        Whose sources and recordings it follows.
    design : RoleDesign
        The role word.
    derivation : Derivation
        How the roles of child pages come about.
    root_strategy : RootStrategy
        How the tables above the guest's own are kept.
    sync : SyncPolicy
        Which shadow pages may go out of sync, and when they are compared.
    validity : Validity
        How contexts are marked as not valid when CPUID changes.
    cpuid_after_run : {"refuse", "allow", "bug"}
        What becomes of a changed CPUID once the vCPU has run (:data:`CPUID_AFTER_RUN`).
    free_roots_lock : {"write", "by_root_role"}
        How the MMU lock is held while roots are freed
        (:data:`mmulab.kvm.free_roots_lock.FREE_ROOTS_LOCK`).
    eager_split : {"nested", "shadow"}
        Whose huge pages ``eager_page_split`` splits (:data:`EAGER_SPLIT`).
    events : EventWords
        Its own names and numbers of events.
    behaviours : Behaviours
    bugs : Bugs
        Fixes that it lacks (:mod:`mmulab.kvm.bugs`).
    """

    name: str
    source: str
    sync: SyncPolicy
    design: RoleDesign = DESIGNS["passthrough"]
    derivation: Derivation = parity
    root_strategy: RootStrategy = special
    validity: Validity = VALIDITIES["valid"]
    cpuid_after_run: str = "refuse"
    free_roots_lock: str = "write"
    eager_split: str = "nested"
    events: EventWords = EVENTS_6_1
    behaviours: Behaviours = field(default_factory=Behaviours)
    bugs: Bugs = field(default_factory=Bugs)

    def __post_init__(self) -> None:
        for name, known in _RULES.items():
            value = getattr(self, name)
            if value not in known:
                shown = f"{name} is {quoted(repr(value), 40)}"
                raise InputError(f"kernel {quoted(self.name)}: {shown}, expected {' or '.join(known)}")

    def with_(self, **changes: Any) -> Self:
        """Return this kernel with other fields: ``with_(design=..)``; behaviours and bugs are turned on
        and off with :meth:`toggled`."""
        return replace(self, **changes)

    def toggled(self, **wanted: bool) -> Self:
        """Return this kernel with behaviours and bugs turned on (True) or off (False); its name says so.

        Raises
        ------
        InputError
            A behaviour or bug is unknown, or is as wanted already.
        """
        suffix = "".join(f"{'+' if on else '-'}{name}" for name, on in wanted.items())
        bugs = {name: on for name, on in wanted.items() if name in SWITCHES}
        behaviours = {name: on for name, on in wanted.items() if name not in SWITCHES}
        return replace(
            self,
            name=f"{self.name}{suffix}",
            behaviours=with_behaviours(self.behaviours, behaviours),
            bugs=with_bugs(self.bugs, bugs),
        )

    def spte_format(
        self, *, ept: bool, phys_bits: int, has_ad: bool = True, cache_bits: int = 0, x86_64: bool = True
    ) -> SpteFormat:
        """Return the format of a host's tables: of EPT, or of shadow paging and NPT.

        Parameters
        ----------
        phys_bits, cache_bits : int
            Of the host's processor; `cache_bits` 0: it has no L1 terminal fault.
        has_ad : bool
            EPT's A and D bits are used.
        x86_64 : bool
            The host's kernel is a 64-bit one; a 32-bit one's empty entries are 0.
        """
        nonpresent = self.behaviours.nonpresent_is_bit_63 and x86_64
        if not ept:
            return shadow_format(phys_bits, cache_bits=cache_bits, nonpresent=nonpresent)
        return ept_format(
            phys_bits,
            has_ad=has_ad,
            cache_bits=cache_bits,
            nonpresent=nonpresent,
            suppress_ve=self.behaviours.ept_suppresses_ve,
        )

    def changes_from(self, other: Kernel) -> dict[str, bool]:
        """Return the behaviours in which this kernel differs from another, and whether they are on here."""
        return {
            name: getattr(self.behaviours, name)
            for name in CHANGES
            if getattr(self.behaviours, name) != getattr(other.behaviours, name)
        }

    def __str__(self) -> str:
        return self.name
