"""How kernels and trace tools print a role word, as data.

A wording is a sequence of parts, each a field and what is printed for its
values; :func:`word_role` prints any of them. What the kernel prints is
``KVM_MMU_PAGE_PRINTK`` in ``arch/x86/kvm/mmutrace.h`` (``mmu/mmutrace.h`` since
5.6), from 2.6.32 on. :func:`meaning` puts a word of any layout into today's
names, so that two readings of it can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.kvm.roles.word import RoleLayout
from mmulab.x86.pferr import ACC_STRINGS

ACCESS_STRINGS_7_2 = tuple(
    "".join(letter if value >> bit & 1 else "-" for bit, letter in enumerate("rwux")) for value in range(16)
)
"""``access_str`` since 7.2: bit 0 is read, and execute moved from bit 0 to bit 3 (a8827c196146)."""


class Part(NamedTuple):
    """What is printed for one field.

    Attributes
    ----------
    field : str
    texts : str or tuple of str
        A pattern for the number, or one text a value; the last one stands for all
        values above.
    """

    field: str
    texts: str | tuple[str, ...]


Wording = tuple[Part, ...]


def word_role(wording: Wording, layout: RoleLayout, word: int) -> str:
    """Print a role word.

    Parameters
    ----------
    wording : Wording
        Its fields are fields of `layout`.
    layout : RoleLayout
    word : int
    """
    said = []
    for field, texts in wording:
        value = layout.get(word, field)
        said.append(texts.format(value) if isinstance(texts, str) else texts[min(value, len(texts) - 1)])
    return "".join(said)


def negated(field: str, name: str, *, set_means: bool = True) -> Part:
    """Return the part that prints `name`, with ``!`` before it unless `field` is `set_means`."""
    texts = (f" !{name}", f" {name}")
    return Part(field, texts if set_means else texts[::-1])


QUADRANT = Part("quadrant", " q{}")
DIRECT = Part("direct", ("", " direct"))
ACCESS = Part("access", tuple(f" {text}" for text in ACC_STRINGS))
INVALID = Part("invalid", ("", " invalid"))
_PAE = Part("cr4_pae", ("", " pae"))
_MIDDLE = (QUADRANT, DIRECT, ACCESS, INVALID)
_AD = negated("ad_disabled", "ad", set_means=False)

WORDING_2_6_32: Wording = (
    Part("level", "{}"),
    Part("glevels", "/{}"),
    *_MIDDLE,
    negated("cr4_pge", "pge"),
    negated("nxe", "nxe"),
)
WORDING_2_6_35: Wording = (Part("level", "{}"), _PAE, *_MIDDLE, negated("nxe", "nxe"))
WORDING_4_13: Wording = (Part("level", "l{}"), _PAE, *_MIDDLE, negated("nxe", "nxe"), _AD)
WORDING_5_1: Wording = (
    Part("level", "l{}"),
    Part("gpte_is_8_bytes", (" 4-byte", " 8-byte")),
    *_MIDDLE,
    negated("nxe", "nxe"),
    _AD,
)
WORDING_5_14: Wording = (*WORDING_5_1[:-2], negated("efer_nx", "nxe"), _AD)
WORDING_5_17: Wording = (
    WORDING_5_14[0],
    Part("has_4_byte_gpte", (" 8-byte", " 4-byte")),
    *WORDING_5_14[2:],
)
WORDING_7_2: Wording = tuple(
    Part("access", tuple(f" {text}" for text in ACCESS_STRINGS_7_2)) if part is ACCESS else part
    for part in WORDING_5_17
)

_TODAY = {"metaphysical": "direct", "nxe": "efer_nx"}
_SET_FOR_8_BYTES = ("cr4_pae", "gpte_is_8_bytes")


def meaning(layout: RoleLayout, word: int) -> dict[str, int | str]:
    """Return what a word says, in today's names, whatever its layout calls it.

    ``has_4_byte_gpte`` comes from ``glevels``, ``cr4_pae`` or ``gpte_is_8_bytes``
    where those are the layout's. Rights are letters of ``wux``: read, which a
    role tells since 7.2, is left out. ``cr4_smep`` is told as ``smep_andnot_wp``.

    >>> from mmulab.kvm.roles.history import find_role_version
    >>> meaning(find_role_version("6.1").layout, 0x20712)["has_4_byte_gpte"]
    1
    """
    said: dict[str, int | str] = {}
    for name, value in layout.unpack(word).items():
        if name == "glevels":
            said["has_4_byte_gpte"] = int(value == 2)
        elif name in _SET_FOR_8_BYTES:
            said["has_4_byte_gpte"] = 1 - value
        elif name == "access":
            said[name] = ACC_STRINGS[value] if layout.width_of(name) == 3 else ACCESS_STRINGS_7_2[value][1:]
        elif name == "cr4_smep":
            said["smep_andnot_wp"] = int(value and not layout.get(word, "cr0_wp"))
        else:
            said[_TODAY.get(name, name)] = value
    return said
