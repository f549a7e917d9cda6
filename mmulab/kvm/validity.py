"""How a context is marked as no longer valid, so that the next configuration is not skipped.

The configuration of a context depends on more than its roles: reserved bits of
the guest's entries come from CPUID. When CPUID changes, equal roles must not
pass for "nothing changed". A *marker* says what ``kvm_mmu_after_set_cpuid``
writes into the roles of the three contexts so that the comparison fails; the
comparison itself is that of Linux 6.1 (:func:`unchanged`).

Markers older than 5.19 were written for one role word a context. Here, as in
6.1, a context has two, so a write to the bits that both have goes to both.

Source: Linux 6.1 ``arch/x86/kvm/mmu/mmu.c`` (``kvm_mmu_after_set_cpuid``).
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.errors import InputError, find_named
from mmulab.kvm.mmu import Mmu
from mmulab.kvm.roles.design import RoleDesign, role_facts
from mmulab.kvm.roles.word import CpuRole
from mmulab.x86.paging import Paging
from mmulab.x86.regs import CpuModel

EXTENDED = (
    "valid",
    "cpuid_stale",
    "maxphyaddr",
    "execonly",
    "cr4_pse",
    "cr4_pke",
    "cr4_smap",
    "cr4_smep",
    "cr4_la57",
    "efer_lma",
)
"""Fields of a CPU role that are ``union kvm_mmu_extended_role``; the others are its base."""
_NO_BASE = dict.fromkeys((name for name in CpuRole._fields if name not in EXTENDED), 0)


class Validity(NamedTuple):
    """A marker.

    Attributes
    ----------
    name, summary : str
    source : str
        Releases and commits, or the Message-Id of the mail that proposed it.
    writes : tuple of (str, int)
        What is stored in each context when CPUID changes, the place as the kernel
        spells it: ``root_role.word``, ``root_role.FIELD``, ``cpu_role.base.word``,
        ``cpu_role.base.FIELD`` or ``cpu_role.ext.FIELD``.
    valid : int
        What the calculation of a CPU role puts into ``ext.valid``.
    maxphyaddr : bool
        It also puts the guest's MAXPHYADDR into the extended role.
    force_role_reset : bool
        Nothing is stored; instead the functions that configure the context in
        use are told not to compare.
    """

    name: str
    summary: str
    source: str
    writes: tuple[tuple[str, int], ...] = ()
    valid: int = 1
    maxphyaddr: bool = False
    force_role_reset: bool = False

    def cpu_role(self, role: CpuRole, cpu: CpuModel) -> CpuRole:
        """Return a freshly calculated role with the bits that the marker needs."""
        return role._replace(valid=self.valid, maxphyaddr=cpu.maxphyaddr if self.maxphyaddr else 0)

    def mark(self, mmu: Mmu, design: RoleDesign) -> None:
        """Mark a context as not valid.

        Raises
        ------
        InputError
            A place that neither role has.
        """
        for place, value in self.writes:
            role, _, field = place.partition(".")
            if role == "root_role":
                _write_root_role(mmu, design, field, value)
            else:
                mmu.cpu_role = _written(mmu.cpu_role, place, value)


def _write_root_role(mmu: Mmu, design: RoleDesign, field: str, value: int) -> None:
    """Write to the root role, from which 6.1 reads all the rest of a context's shape."""
    if field != "word" and field not in design.layout.shift:
        raise InputError(f"role design {design.name} has no field {field!r}, which root_role.{field} writes")
    mmu.root_role = value if field == "word" else design.layout.set(mmu.root_role, field, value)
    if mmu.root_facts is None:
        return
    facts = role_facts(design, mmu.root_role)
    mmu.root_facts, mmu.root_level, mmu.direct = facts, facts.level, facts.direct


def _written(role: CpuRole, place: str, value: int) -> CpuRole:
    if (place, value) == ("cpu_role.base.word", 0):
        return role._replace(**_NO_BASE)
    part, _, field = place.removeprefix("cpu_role.").partition(".")
    if (part, field in EXTENDED) not in (("ext", True), ("base", False)) or field not in CpuRole._fields:
        raise InputError(f"a marker cannot write {value} to {place!r}; roles have base.FIELD and ext.FIELD")
    return role._replace(**{field: value})


def unchanged(mmu: Mmu, cpu_role: CpuRole, root_role: int | None) -> bool:
    """Whether a context that has these roles already need not be configured again.

    `root_role` is None for ``guest_mmu`` with EPT and for ``nested_mmu``, where
    only the CPU role is compared (``kvm_init_shadow_ept_mmu``, ``init_kvm_nested_mmu``).
    """
    return cpu_role == mmu.cpu_role and (root_role is None or root_role == mmu.root_role)


class RoleDecision(NamedTuple):
    """A context was compared with what it should be: what no tracepoint shows.

    Attributes
    ----------
    context : {"root_mmu", "guest_mmu", "nested_mmu"}
    old_cpu_role, cpu_role : CpuRole
        What it had, and what was calculated.
    old_root_role : int
    root_role : int or None
        None: not compared.
    old_paging : Paging or None
        What its walks of guest tables went by; None if it was never configured.
    paging : Paging
        What they would go by, were it configured now.
    unchanged : bool
        It was left as it was.
    """

    context: str
    old_cpu_role: CpuRole
    cpu_role: CpuRole
    old_root_role: int
    root_role: int | None
    old_paging: Paging | None
    paging: Paging
    unchanged: bool


VALIDITIES: dict[str, Validity] = {
    marker.name: marker
    for marker in (
        Validity(
            "valid",
            "the extended role's valid bit is cleared, and the root role's whole word",
            "Linux 5.19 to 6.9: 49c6f8756cdf (5.14), with 7a458f0e1ba1 (5.19)",
            (("root_role.word", 0), ("cpu_role.ext.valid", 0)),
        ),
        Validity(
            "level_zero",
            "no valid bit; level 0 says that a role is not valid",
            "20220204115718.14934-4-pbonzini@redhat.com; not merged",
            (("root_role.level", 0), ("cpu_role.base.level", 0)),
            valid=0,
        ),
        Validity(
            "cpuid_stale",
            "a bit of the inverted sense, set when CPUID changes; no role word is destroyed",
            "Yf1xU+EVukcX4Exb@google.com, a reply to level_zero; not merged",
            (("cpu_role.ext.cpuid_stale", 1),),
            valid=0,
        ),
        Validity(
            "zero_word",
            "the whole base word is cleared, the extended role left alone",
            "a7cc6ead-c30b-4d21-c92c-faf37d9023b7@redhat.com; for the root role alone 7a458f0e1ba1 (5.19)",
            (("root_role.word", 0), ("cpu_role.base.word", 0)),
            valid=0,
        ),
        Validity(
            "invalid_bit",
            "the root role's invalid bit is set and the valid bit cleared; all other bits stay",
            "Linux 6.10: 4fa96da3e6fe, 20240408231115.1387279-1-seanjc@google.com",
            (("root_role.invalid", 1), ("cpu_role.ext.valid", 0)),
        ),
        Validity(
            "force_role_reset",
            "nothing is written; a flag goes down to the function that configures the context in use",
            "Yf1xU+EVukcX4Exb@google.com: tried and given up",
            valid=0,
            force_role_reset=True,
        ),
        Validity(
            "maxphyaddr",
            "no marker: MAXPHYADDR is part of the extended role, other features are not",
            "Linux 5.0 to 5.13: de3ccd26fafc, taken back by 6c032f12dd1e",
            maxphyaddr=True,
        ),
    )
}
"""The markers by name; the first is the default."""


def find_validity(name: str) -> Validity:
    """Return a marker by name.

    Raises
    ------
    InputError
        No marker has this name.
    """
    return find_named(VALIDITIES, name, "role validity", "markers")
