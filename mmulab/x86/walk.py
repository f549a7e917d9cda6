"""The page walk: one algorithm for guest tables, shadow tables and nested ones.

SDM 3, 4.3 to 4.7. What differs between walkers and modes is in
:class:`~mmulab.x86.paging.Paging`; what differs between memories is in the
`load` function: it reads host frames for the processor on shadow tables, goes
through memslots for KVM, and through another walk for a nested guest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmulab.x86.markup import table_html
from mmulab.x86.mode import (
    PT64_NX_MASK,
    PT64_NX_SHIFT,
    PT_ACCESSED_MASK,
    PT_BASE_ADDR_MASK,
    PT_PRESENT_MASK,
    PT_USER_MASK,
    PT_WRITABLE_MASK,
    VMX_EPT_RWX_MASK,
)
from mmulab.x86.paging import Paging
from mmulab.x86.pferr import (
    ACC_ALL,
    ACC_EXEC_MASK,
    ACC_USER_MASK,
    PFERR_FETCH_MASK,
    PFERR_PK_MASK,
    PFERR_PRESENT_MASK,
    PFERR_RSVD_MASK,
    PFERR_USER_MASK,
    PFERR_WRITE_MASK,
    pferr_str,
)

Load = Callable[[int, int], int | None]
"""``load(address, level)`` reads one entry; None where nothing is there."""
Store = Callable[[int, int], None]
"""``store(address, entry)`` writes one entry back with its A or D bit."""

_ACCESS = PFERR_WRITE_MASK | PFERR_USER_MASK
_WRITE_USER = PT_WRITABLE_MASK | PT_USER_MASK
EPT_ACCESS = tuple(
    (entry & 1 and ACC_USER_MASK) | entry & PT_WRITABLE_MASK | (entry >> 2 and ACC_EXEC_MASK)
    for entry in range(8)
)
"""Rights in ``ACC_*`` form by the R, W and X bits of an EPT entry; R takes the place of U."""


ALL_RIGHTS = -1
"""A path that takes no right away; each entry is and-ed to it, NX the other way round."""


def rights_of(path: int, ept: bool) -> int:
    """Return the rights (``ACC_*``) that the entries of a path have in common."""
    if ept:
        return EPT_ACCESS[path & VMX_EPT_RWX_MASK]
    return path & _WRITE_USER | path >> PT64_NX_SHIFT & ACC_EXEC_MASK


class Walk:
    """What a walk met on its way and where it arrived.

    Lists are indexed by level (index 0 unused) and valid from `max_level` down
    to `level`.

    Attributes
    ----------
    va, pfec : int
        The address and the kind of access, as error-code bits.
    level, max_level : int
        Level of the last entry read, and of the first one in memory.
    entry_addr, ptes : list of int
        Address of each entry, and the entry.
    ept : bool
        Entries have EPT's R, W and X bits.
    pte_access : int
        Rights of the whole path so far.
    pdpte : int or None
        The PDPTE register used.
    pa : int
        The physical address; -1 after a fault.
    error : int or None
        The error code of the page fault, None if there was none.
    ad_done : bool
        Nothing is left to do: A was set in each entry (and D in the leaf, for
        a write), or this walker has set it.
    pkey : int
        Protection key of the leaf.
    """

    __slots__ = (
        "ad_done",
        "entry_addr",
        "ept",
        "error",
        "level",
        "max_level",
        "pa",
        "pdpte",
        "pfec",
        "pkey",
        "pte_access",
        "ptes",
        "va",
    )

    def __init__(self, va: int, pfec: int, *, ept: bool = False) -> None:
        self.va = va
        self.pfec = pfec
        self.ept = ept
        self.level = 0
        self.max_level = 0
        self.entry_addr = [0] * 6
        self.ptes = [0] * 6
        self.pte_access = ACC_ALL
        self.pdpte: int | None = None
        self.pa = -1
        self.error: int | None = None
        self.ad_done = True
        self.pkey = 0

    @property
    def table(self) -> list[int]:
        """Address of the table in which each entry lies, by level."""
        return [address & ~0xFFF for address in self.entry_addr]

    @property
    def pt_access(self) -> list[int]:
        """Rights of the path above each level (``ACC_*``)."""
        path, found = ALL_RIGHTS, [0] * 6
        for level in range(self.max_level, self.level - 1, -1):
            found[level] = rights_of(path, self.ept)
            path &= self.ptes[level] ^ (0 if self.ept else PT64_NX_MASK)
        return found

    def steps(self) -> list[tuple[int, int, int]]:
        """Return level, address (-1: a register) and entry of each entry read, root first."""
        found = [] if self.pdpte is None else [(3, -1, self.pdpte)]
        top = 0 if self.pdpte is not None and self.level == 3 else self.max_level
        found += [(at, self.entry_addr[at], self.ptes[at]) for at in range(top, self.level - 1, -1)]
        return found

    def _ending(self) -> str:
        if self.error is None:
            return f"pa {self.pa:#x}"
        return f"page fault {self.error:#x} {pferr_str(self.error)}".rstrip()

    def __repr__(self) -> str:
        way = ", ".join(f"l{level} {entry:x}" for level, _, entry in self.steps())
        kind = pferr_str(self.pfec) or "R"
        return f"<Walk of {self.va:#x} {kind}: {way or 'no paging'} -> {self._ending()}>"

    def _repr_html_(self) -> str:
        rows = [
            [level, "register" if address == -1 else f"{address:#x}", f"{entry:x}"]
            for level, address, entry in self.steps()
        ]
        caption = f"walk of {self.va:#x} {pferr_str(self.pfec) or 'R'} → {self._ending()}"
        return table_html(["level", "entry at", "entry"], rows, caption)


def walk(
    paging: Paging,
    root: int,
    va: int,
    pfec: int,
    load: Load,
    store: Store | None = None,
    *,
    pdptes: Sequence[int] | None = None,
    not_smap: bool = False,
    pkru: int = 0,
) -> Walk:
    """Translate `va` through the tables at `root`.

    Parameters
    ----------
    paging : Paging
    root : int
        CR3 (the bits of it that locate the root table are used).
    va : int
        A canonical linear address.
    pfec : int
        Kind of access: W, U and F bits of an error code.
    load, store : callable
        Memory. `store` is needed where ``paging.sets_ad``.
    pdptes : sequence of 4 int, optional
        PAE's PDPTE registers. None: they are read from memory, as under nested
        paging on AMD (APM 2, 15.25).
    not_smap : bool
        EFLAGS.AC=1 and the access is explicit, so SMAP does not apply.
    pkru : int
        PKRU.

    Returns
    -------
    Walk
        ``error`` is None and ``pa`` the translation, or ``error`` the code.
    """
    mode = paging.mode
    ept = paging.ept
    w = Walk(va, pfec, ept=ept)
    level = mode.root_level
    if not level:
        w.pa = va
        return w
    entry = root & mode.root_mask
    width = mode.entry_bytes
    index_mask = (1 << mode.index_bits) - 1
    if mode.has_pdptes:
        index = va >> mode.level_shift(level) & 3
        pdpte = load(entry + 8 * index, level) if pdptes is None else pdptes[index]
        w.pdpte = pdpte
        w.level = w.max_level = level
        if pdpte is None or not pdpte & PT_PRESENT_MASK:
            return _fault(w, paging, 0)
        if pdptes is None and pdpte & paging.pdpte_rsvd:
            return _fault(w, paging, paging.rsvd_error)
        if pdptes is None and paging.marks_pdptes and not pdpte & PT_ACCESSED_MASK:
            assert store is not None
            store(entry + 8 * index, pdpte | PT_ACCESSED_MASK)
        entry = pdpte
        level -= 1
    w.max_level = level
    sets_ad, accessed = paging.sets_ad, paging.accessed_mask
    entry_addr, ptes = w.entry_addr, w.ptes
    path, flip = ALL_RIGHTS, 0 if ept else PT64_NX_MASK
    for level, shift, mask, link in paging.steps:
        addr = entry_addr[level] = (entry & PT_BASE_ADDR_MASK) + (va >> shift & index_mask) * width
        loaded = load(addr, level)
        if loaded is None:
            code: int | None = 0
            break
        entry = ptes[level] = loaded
        path &= entry ^ flip
        if entry & mask == link:
            continue
        if not entry & paging.present_mask:
            code = 0
            break
        if entry & paging.rsvd[entry >> 7 & 1][level] or paging.bad_mt_xwr >> (entry & 63) & 1:
            code = paging.rsvd_error
            break
        if level == 1 or entry & paging.page_size_mask[level]:
            code = None
            break
        if entry & accessed != accessed:
            if sets_ad:
                assert store is not None
                entry = ptes[level] = entry | accessed
                store(addr, entry)
            else:
                w.ad_done = False
    w.level = level
    access = w.pte_access = rights_of(path, ept)
    if code is None:
        w.pkey = entry >> 59 & 15
        code = _permission(w, paging, access, not_smap, pkru)
    if code is not None:
        return _fault(w, paging, code)
    need = accessed | paging.dirty_mask if pfec & PFERR_WRITE_MASK else accessed
    if entry & need != need:
        if sets_ad:
            assert store is not None
            entry = ptes[level] = entry | need
            store(addr, entry)
        else:
            w.ad_done = False
    offset = (1 << shift) - 1
    w.pa = entry & PT_BASE_ADDR_MASK & ~offset | va & offset
    if level == 2:
        w.pa |= (entry & paging.pse36_mask) << 19
    return w


def _permission(w: Walk, paging: Paging, access: int, not_smap: bool, pkru: int) -> int | None:
    """Return P (and PK) if the rights forbid the access, None if they do not."""
    pfec = w.pfec & (PFERR_WRITE_MASK | PFERR_USER_MASK | PFERR_FETCH_MASK)
    index = (pfec | PFERR_RSVD_MASK if not_smap else pfec) >> 1
    code = PFERR_PRESENT_MASK if paging.permissions[index] >> access & 1 else None
    if paging.pke and access & ACC_USER_MASK and not pfec & PFERR_FETCH_MASK:
        key = pkru >> (2 * w.pkey) & 3
        writes = pfec & PFERR_WRITE_MASK and (pfec & PFERR_USER_MASK or paging.wp)
        if key & 1 or (key & 2 and writes):
            return PFERR_PK_MASK | PFERR_PRESENT_MASK
    return code


def _fault(w: Walk, paging: Paging, code: int) -> Walk:
    code |= w.pfec & _ACCESS
    if w.pfec & PFERR_FETCH_MASK and paging.fetch_bit:
        code |= PFERR_FETCH_MASK
    w.error = code
    w.pa = -1
    return w
