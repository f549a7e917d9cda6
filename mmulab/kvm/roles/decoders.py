"""What trace tools take the bits of a role word for.

``trace-cmd report`` and ``perf script`` cannot run the kernel's own print
function of these tracepoints; a plugin of libtraceevent, ``plugin_kvm.c``, prints
the role with a copy of the union from the kernel's headers. The copy was brought
up to date once, so a plugin reads some kernels rightly and others not.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.kvm.roles.word import BitField, RoleLayout
from mmulab.kvm.roles.wording import (
    ACCESS,
    DIRECT,
    INVALID,
    QUADRANT,
    WORDING_2_6_32,
    Part,
    Wording,
    meaning,
    negated,
    word_role,
)


class TraceDecoder(NamedTuple):
    """A tool's reading of the role word.

    Attributes
    ----------
    name : str
        The tool and the versions of it.
    layout : RoleLayout
        What it takes the bits for, in the tool's names.
    wording : Wording
    source : str
        Repository, file, commits.
    """

    name: str
    layout: RoleLayout
    wording: Wording
    source: str

    def said(self, word: int) -> str:
        """Return what the tool prints for a role."""
        return word_role(self.wording, self.layout, word)


class Misreading(NamedTuple):
    """A fact that a tool tells wrongly; `true` is None if the kernel's word has no such field."""

    field: str
    said: int | str
    true: int | str | None


PLUGIN_KVM_2010 = TraceDecoder(
    "plugin_kvm of trace-cmd before 2.9",
    RoleLayout(
        (
            BitField("glevels", 4),
            BitField("level", 4),
            BitField("quadrant", 2),
            BitField("", 6),
            BitField("direct", 1),
            BitField("access", 3),
            BitField("invalid", 1),
            BitField("cr4_pge", 1),
            BitField("nxe", 1),
            BitField("", 9),
        )
    ),
    WORDING_2_6_32,
    "trace-cmd plugin_kvm.c, eae46f152079 until 42852fc91c0b; Linux tools/lib/traceevent/plugin_kvm.c to 4.2",
)
PLUGIN_KVM = TraceDecoder(
    "plugin_kvm of trace-cmd since 2.9 and of libtraceevent",
    RoleLayout(
        (
            BitField("level", 4),
            BitField("cr4_pae", 1),
            BitField("quadrant", 2),
            BitField("direct", 1),
            BitField("access", 3),
            BitField("invalid", 1),
            BitField("nxe", 1),
            BitField("cr0_wp", 1),
            BitField("smep_and_not_wp", 1),
            BitField("smap_and_not_wp", 1),
            BitField("", 8),
            BitField("smm", 8),
        )
    ),
    (
        Part("level", "{}"),
        QUADRANT,
        DIRECT,
        ACCESS,
        INVALID,
        negated("cr4_pae", "pae"),
        negated("nxe", "nxe"),
        negated("cr0_wp", "wp"),
        Part("smep_and_not_wp", ("", " smep")),
        Part("smap_and_not_wp", ("", " smap")),
        Part("smm", ("", " smm")),
    ),
    "libtraceevent plugins/plugin_kvm.c, kvm_mmu_print_role(), to 1.9.0; trace-cmd 42852fc91c0b "
    '("trace-cmd traceevent: update KVM plugin", 1443695293-31127-1-git-send-email-pbonzini@redhat.com)',
)
DECODERS = (PLUGIN_KVM_2010, PLUGIN_KVM)
"""The plugins that were ever released, the newest last."""

_KERNELS_NAMES = {"smep_and_not_wp": "smep_andnot_wp", "smap_and_not_wp": "smap_andnot_wp"}


def misreadings(decoder: TraceDecoder, layout: RoleLayout, word: int) -> list[Misreading]:
    """Return what a tool tells wrongly of a kernel's role word.

    Parameters
    ----------
    decoder : TraceDecoder
    layout : RoleLayout
        The kernel's.
    word : int

    Notes
    -----
    What the tool does not tell (``ad_disabled``, ``guest_mode``, ``passthrough``) is
    not wrong. A bit that the kernel has no field for is told wrongly if it is set.
    """
    true = meaning(layout, word)
    found = []
    for name, said in meaning(decoder.layout, word).items():
        field = _KERNELS_NAMES.get(name, name)
        if true.get(field, 0) != said:
            found.append(Misreading(field, said, true.get(field)))
    return found


def reads_rightly(decoder: TraceDecoder, layout: RoleLayout) -> bool:
    """Whether a tool tells every word of a kernel's layout rightly.

    The facts of a word are told by single bits and runs of them, so words with one
    bit set, with none and with every bit set are enough.
    """
    words = [0, *(1 << bit for bit in range(layout.width)), (1 << layout.width) - 1]
    return not any(misreadings(decoder, layout, word) for word in words)
