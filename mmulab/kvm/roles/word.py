"""The role word: which shadow pages of one gfn may be told apart.

``union kvm_mmu_page_role`` and ``union kvm_cpu_role`` of Linux 6.1
(``arch/x86/include/asm/kvm_host.h``). A layout is an ordered list of named bit
fields, so that another kernel's word (:mod:`mmulab.kvm.roles.history`), or a design
that was only proposed (:mod:`mmulab.kvm.roles.design`), is another list.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.x86.markup import facts_html, table_html
from mmulab.x86.pferr import ACC_ALL, ACC_STRINGS


class BitField(NamedTuple):
    """A named run of bits. An empty name is a gap."""

    name: str
    width: int


class RoleLayout:
    """An ordered list of bit fields, lowest bit first.

    Parameters
    ----------
    fields : sequence of BitField

    Raises
    ------
    ValueError
        A field without a bit, or two of one name.

    Attributes
    ----------
    fields : tuple of BitField
    shift, mask : dict of str to int
        Position of each field, and its mask in place.

    Examples
    --------
    >>> layout = RoleLayout((BitField("level", 4), BitField("direct", 1)))
    >>> hex(layout.pack(level=3, direct=1))
    '0x13'
    """

    __slots__ = ("fields", "mask", "shift", "width")

    def __init__(self, fields: tuple[BitField, ...]) -> None:
        self.fields = fields
        self.shift: dict[str, int] = {}
        self.mask: dict[str, int] = {}
        at = 0
        for name, width in fields:
            if width < 1:
                raise ValueError(f"field {name!r} has a width of {width} bits; 1 is the least")
            if name in self.shift:
                raise ValueError(f"field {name!r} is there twice")
            if name:
                self.shift[name] = at
                self.mask[name] = ((1 << width) - 1) << at
            at += width
        self.width = at

    def pack(self, /, **values: int) -> int:
        """Build a word; fields not named are 0.

        Raises
        ------
        ValueError
            A field that the layout lacks, or a value too wide for it.
        """
        word = 0
        for name, value in values.items():
            if name not in self.shift:
                raise ValueError(f"no field {name!r} in this layout; it has {', '.join(self.shift)}")
            put = int(value) << self.shift[name]
            if put & ~self.mask[name] or value < 0:
                raise ValueError(f"{name}={value} does not fit into {self.width_of(name)} bits")
            word |= put
        return word

    def width_of(self, name: str) -> int:
        """Return the width of a field in bits."""
        return next(f.width for f in self.fields if f.name == name)

    def get(self, word: int, name: str) -> int:
        """Return a field's value, 0 if the layout has none of that name."""
        mask = self.mask.get(name)
        return 0 if mask is None else (word & mask) >> self.shift[name]

    def set(self, word: int, name: str, value: int) -> int:
        """Return `word` with one field changed."""
        return word & ~self.mask[name] | int(value) << self.shift[name]

    def unpack(self, word: int) -> dict[str, int]:
        """Return every field's value, in the layout's order."""
        return {name: (word & self.mask[name]) >> self.shift[name] for name in self.shift}

    @property
    def used_bits(self) -> int:
        """Bits that carry a field."""
        return sum(f.width for f in self.fields if f.name)

    def spans(self) -> list[tuple[str, str]]:
        """Return the fields and where they lie (``7`` or ``10-8``), the highest first; gaps have no name.

        >>> RoleLayout((BitField("level", 4), BitField("", 3), BitField("direct", 1))).spans()
        [('direct', '7'), ('', '6-4'), ('level', '3-0')]
        """
        found, at = [], 0
        for name, width in self.fields:
            found.append((name, str(at) if width == 1 else f"{at + width - 1}-{at}"))
            at += width
        return found[::-1]

    def _repr_html_(self) -> str:
        spans = self.spans()
        caption = f"role word: {self.used_bits} bits used of {self.width}"
        return table_html([bits for _, bits in spans], [[name for name, _ in spans]], caption)

    def __repr__(self) -> str:
        return "RoleLayout(" + ", ".join(f"{n or 'gap'}:{w}" for n, w in self.fields) + ")"


class CpuRole(NamedTuple):
    """What the guest's CPU is doing: ``union kvm_cpu_role``, base and extended.

    Two equal values mean that an MMU context need not be configured again.
    ``valid``, ``cpuid_stale`` and ``maxphyaddr`` are there for that comparison alone;
    Linux 6.1 has the first (:mod:`mmulab.kvm.validity`).
    """

    level: int = 0
    has_4_byte_gpte: int = 0
    direct: int = 0
    access: int = ACC_ALL
    efer_nx: int = 0
    cr0_wp: int = 0
    smep_andnot_wp: int = 0
    smap_andnot_wp: int = 0
    ad_disabled: int = 0
    guest_mode: int = 0
    smm: int = 0
    valid: int = 0
    cpuid_stale: int = 0
    maxphyaddr: int = 0
    execonly: int = 0
    cr4_pse: int = 0
    cr4_pke: int = 0
    cr4_smap: int = 0
    cr4_smep: int = 0
    cr4_la57: int = 0
    efer_lma: int = 0


class RoleFacts(NamedTuple):
    """What the MMU asks of a role, whichever bits hold it."""

    level: int
    has_4_byte_gpte: bool
    quadrant: int
    direct: bool
    access: int
    invalid: bool
    efer_nx: bool
    cr0_wp: bool
    smep_andnot_wp: bool
    smap_andnot_wp: bool
    ad_disabled: bool
    guest_mode: bool
    passthrough: bool
    smm: int

    def trace_str(self) -> str:
        """Print as the ``kvm_mmu_page`` tracepoints do (``KVM_MMU_PAGE_PRINTK``)."""
        return (
            f"l{self.level} {4 if self.has_4_byte_gpte else 8}-byte q{self.quadrant}"
            f"{' direct' if self.direct else ''} {ACC_STRINGS[self.access]}"
            f"{' invalid' if self.invalid else ''} {'' if self.efer_nx else '!'}nxe"
            f" {'!' if self.ad_disabled else ''}ad"
        )

    def _repr_html_(self) -> str:
        return facts_html({name: int(value) for name, value in self._asdict().items()}, self.full_str())

    def full_str(self) -> str:
        """Print every fact: the trace leaves wp, smep, smap, guest_mode, passthrough and smm out."""
        parts = [f"l{self.level}", f"g{4 if self.has_4_byte_gpte else 8}", f"q{self.quadrant}"]
        acc = self.access
        parts.append(f"{'u' if acc & 4 else '-'}{'w' if acc & 2 else '-'}{'x' if acc & 1 else '-'}")
        for name, flag in (
            ("direct", self.direct),
            ("invalid", self.invalid),
            ("nx", self.efer_nx),
            ("wp", self.cr0_wp),
            ("smep_nwp", self.smep_andnot_wp),
            ("smap_nwp", self.smap_andnot_wp),
            ("ad_disabled", self.ad_disabled),
            ("guest_mode", self.guest_mode),
            ("passthrough", self.passthrough),
        ):
            if flag:
                parts.append(name)
        if self.smm:
            parts.append(f"smm{self.smm}")
        return " ".join(parts)
