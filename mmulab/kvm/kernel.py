"""Which KVM this is: a kernel as one value.

A :class:`Kernel` holds everything in which one kernel's MMU differs from
another's. Versions are compared in this file only; the engine asks for
behaviours by name (:mod:`mmulab.kvm.behaviours`). A stable tree, a patch of a
mailing list or a user's fork is another set of them: ``6.12+unprotect_on_reinjection``
is a name, and ``LINUX_6_12.with_(...)`` a value.

Source: Linux 6.1.192 and 6.12.117, ``arch/x86/kvm``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Self

from mmulab.errors import InputError, quoted
from mmulab.kvm.behaviours import CHANGES, Behaviours, with_behaviours
from mmulab.kvm.event_words import EVENTS_6_1, EVENTS_6_12, EventWords
from mmulab.kvm.mmu_lock import FREE_ROOTS_LOCK
from mmulab.kvm.roles.derivation import Derivation, parity
from mmulab.kvm.roles.design import DESIGNS, RoleDesign
from mmulab.kvm.roles.design_check import is_built_in
from mmulab.kvm.roles.foreign import load_design, load_value
from mmulab.kvm.roles.root_strategy import RootStrategy, special
from mmulab.kvm.spte import SpteFormat, ept_format, shadow_format
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.unsync_children import unsync_children
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
_TOGGLE = re.compile(r"([+-])([a-z]\w*)")
_VERSION = re.compile(r"\b\d+\.\d+\.[1-9]\d*\b")


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
        (:data:`mmulab.kvm.mmu_lock.FREE_ROOTS_LOCK`).
    eager_split : {"nested", "shadow"}
        Whose huge pages ``eager_page_split`` splits (:data:`EAGER_SPLIT`).
    events : EventWords
        Its own names and numbers of events.
    behaviours : Behaviours
    """

    name: str
    source: str
    design: RoleDesign = DESIGNS["passthrough"]
    derivation: Derivation = parity
    root_strategy: RootStrategy = special
    sync: SyncPolicy = unsync_children
    validity: Validity = VALIDITIES["valid"]
    cpuid_after_run: str = "refuse"
    free_roots_lock: str = "write"
    eager_split: str = "nested"
    events: EventWords = EVENTS_6_1
    behaviours: Behaviours = field(default_factory=Behaviours)

    def __post_init__(self) -> None:
        for name, known in _RULES.items():
            value = getattr(self, name)
            if value not in known:
                shown = f"{name} is {quoted(repr(value), 40)}"
                raise InputError(f"kernel {quoted(self.name)}: {shown}, expected {' or '.join(known)}")

    @property
    def recorded(self) -> str:
        """The kernel whose recordings show best what this one does, by its name."""
        return next((name for name in KERNELS if self.name.startswith(name)), LINUX_6_1.name)

    def with_(self, **changes: Any) -> Self:
        """Return this kernel with other fields: ``with_(design=..)``; behaviours are turned on and off
        with :meth:`toggled`."""
        return replace(self, **changes)

    def toggled(self, **wanted: bool) -> Self:
        """Return this kernel with behaviours turned on (True) or off (False), and its name says so.

        Raises
        ------
        InputError
            A behaviour is unknown, or is as wanted already.
        """
        suffix = "".join(f"{'+' if on else '-'}{name}" for name, on in wanted.items())
        behaviours = with_behaviours(self.behaviours, wanted)
        return replace(self, name=f"{self.name}{suffix}", behaviours=behaviours)

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


LINUX_6_1 = Kernel("6.1.192", "Linux 6.1.192 (Debian 6.1.192-2)")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _at(release: str) -> dict[str, bool]:
    """Return what mainline changed from 6.1 up to a release."""
    return {
        change.name: not change.removed
        for change in CHANGES.values()
        if _release(change.release) <= _release(release)
    }


LINUX_6_12 = replace(
    LINUX_6_1,
    name="6.12.117",
    source="Linux 6.12.117 (Debian 6.12.117-1~deb12u1)",
    events=EVENTS_6_12,
    behaviours=with_behaviours(LINUX_6_1.behaviours, _at("6.12")),
)
KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in (LINUX_6_1, LINUX_6_12)}
"""The kernels that were recorded, by release; a series, ``6.12``, names the same."""


def find_kernel(name: str) -> Kernel:
    """Return a kernel by name: a release or series, with behaviours turned on (``+``) and off (``-``).

    ``file.py:KERNEL`` and ``module:KERNEL`` name a user's own value, and take
    behaviours behind them too.

    Raises
    ------
    InputError
        A kernel or behaviour is unknown, or a behaviour is named that is so already.
    """
    base, toggles = _split(name)
    kernel = _own(base) if ":" in base else known_kernel(base)
    if not toggles:
        return kernel
    wanted: dict[str, bool] = {}
    for sign, behaviour in toggles:
        if wanted.setdefault(behaviour, sign == "+") != (sign == "+"):
            raise InputError(f"kernel '{quoted(name)}': both +{behaviour} and -{behaviour}; leave one out")
    return kernel.toggled(**wanted)


def known_kernel(name: str) -> Kernel:
    """Return one of :data:`KERNELS` by its release or series; raises InputError."""
    for kernel in KERNELS.values():
        if name in (kernel.name, kernel.name.rpartition(".")[0]):
            return kernel
    raise InputError(
        f"kernel '{quoted(name)}': unknown; the kernels are {', '.join(KERNELS)}, "
        f"or file.py:KERNEL; behaviours follow as +NAME or -NAME ('mmulab kernels')"
    )


def recorded_kernel(text: str) -> Kernel:
    """Return the kernel that a recording's header names, as ``uname`` and its distribution spell it.

    Raises
    ------
    InputError
        It is none of :data:`KERNELS`.
    """
    for version in _VERSION.findall(text):
        if version in KERNELS:
            return KERNELS[version]
    raise InputError(f"kernel '{quoted(text)}': unknown; recordings of {', '.join(KERNELS)} are understood")


def _split(name: str) -> tuple[str, list[tuple[str, str]]]:
    """Take a name apart: the base, and each behaviour with its sign."""
    found = _TOGGLE.finditer(name, name.rfind(":") + 1)
    at = next((m.start() for m in found if m[2] in CHANGES or m[1] == "+"), len(name))
    base, rest = name[:at], name[at:]
    toggles = _TOGGLE.findall(rest)
    if "".join(sign + behaviour for sign, behaviour in toggles) != rest:
        raise InputError(f"kernel '{quoted(name)}': expected +NAME or -NAME behind {quoted(base)}")
    return base, toggles


def _own(reference: str) -> Kernel:
    """Return a user's kernel; a design of its file's is loaded as one that `--design` names."""
    kernel = load_value(reference, Kernel, "kernel")
    if kernel.design.reference or is_built_in(type(kernel.design)):
        return kernel
    where = reference.rpartition(":")[0]
    return kernel.with_(design=load_design(f"{where}:{type(kernel.design).__name__}"))
