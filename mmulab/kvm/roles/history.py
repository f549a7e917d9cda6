"""``union kvm_mmu_page_role`` of every Linux since 2.6.28.

Each record is a kernel version that changed the word, its layout, and the commits.
A role design that is a kernel's word has its layout from here
(:mod:`mmulab.kvm.roles.design`).
Positions are those of the unions in the sources of the versions named by
:data:`SOURCES_READ`: ``arch/x86/include/asm/kvm_host.h``. A stable release may
have a change that its ``x.y.0`` lacks: :data:`BACKPORTS`. Where a release lies between
two that were read, or after the last, :func:`find_role_version` says that it is
not settled.
"""

from __future__ import annotations

from typing import NamedTuple

from mmulab.errors import InputError
from mmulab.kvm.release import Release, read_release_name
from mmulab.kvm.roles.word import BitField, RoleLayout
from mmulab.kvm.roles.wording import (
    WORDING_2_6_32,
    WORDING_2_6_35,
    WORDING_4_13,
    WORDING_5_1,
    WORDING_5_14,
    WORDING_5_17,
    WORDING_7_2,
    Wording,
    word_role,
)

SOURCES_READ = (
    "2.6.28 2.6.29 2.6.30.2 2.6.30.4 2.6.31.3 2.6.32.9 2.6.32.28 2.6.32.67 2.6.32.69 2.6.32.70 2.6.33.3 "
    "2.6.33.7 2.6.34 2.6.34.14 2.6.35.3 3.0.1 3.1.10 3.2.71 3.14.65 3.16 3.18 3.18.20 3.19.8 4.0 4.0.5 4.1 "
    "4.1.3 4.2.8 4.10.17 4.12 4.13.4 4.14.67 4.15.18 4.17 4.18 4.19.13 4.19.222 4.20 5.0.4 5.2.1 5.10.262 "
    "5.14.2 5.15.16 5.17-rc5 5.18.12 5.19 6.1.192 6.12.107 6.12.117 6.13.7 6.14 7.1.3 7.1.5 7.2.13 7.3-rc7 "
    "7.3.4"
)
"""The versions whose union was read; the history up to 3.1 was also read commit by commit."""
MAINLINE = "mainline"
_FIRST, _LAST = (2, 6, 28), (7, 3)
_LAST_OF_MAJOR = {2: 39, 3: 19, 4: 20, 5: 19, 6: 19, 7: 3}


class Commit(NamedTuple):
    """A commit of mainline, or of a stable branch."""

    hash: str
    subject: str


class RoleVersion(NamedTuple):
    """The role word of a kernel.

    Attributes
    ----------
    since : str
        The first version that has it; of a backport, the first release known to.
    layout : RoleLayout
    wording : Wording or None
        How its trace prints it; None before the tracepoints.
    commits : tuple of Commit
    why : str
        What changed, and why.
    late : int or None
        If it was merged after the merge window: the last -rc that is known to lack it.
    settled : bool
        False if the source of the version asked for was not read and may differ.
    note : str
        What a reader of one version's word should know besides.
    """

    since: str
    layout: RoleLayout
    wording: Wording | None
    commits: tuple[Commit, ...]
    why: str
    late: int | None = None
    settled: bool = True
    note: str = ""

    def trace_str(self, word: int) -> str | None:
        """Print a word as this kernel's tracepoints do; None if it has none."""
        return None if self.wording is None else word_role(self.wording, self.layout, word)


class Backport(NamedTuple):
    """A stable series that took a change: `lacks` is the last release read that has it not."""

    lacks: int
    version: RoleVersion


def _bits(text: str) -> RoleLayout:
    """Read fields as C writes them: ``level:4 :6 smm:8``."""
    fields = (field.split(":") for field in text.split())
    return RoleLayout(tuple(BitField(name, int(width)) for name, width in fields))


_2_6_31 = _bits("glevels:4 level:4 quadrant:2 :6 direct:1 access:3 invalid:1 cr4_pge:1 nxe:1")
_2_6_32_16 = _bits("glevels:4 level:4 quadrant:2 :6 direct:1 access:3 invalid:1 cr4_pge:1 nxe:1 cr0_wp:1")
_4_1 = _bits(
    "level:4 cr4_pae:1 quadrant:2 :6 direct:1 access:3 invalid:1 nxe:1 cr0_wp:1 smep_andnot_wp:1 "
    "smap_andnot_wp:1"
)
_5_17 = _bits(
    "level:4 has_4_byte_gpte:1 quadrant:2 direct:1 access:3 invalid:1 efer_nx:1 cr0_wp:1 smep_andnot_wp:1 "
    "smap_andnot_wp:1 ad_disabled:1 guest_mode:1 :6 smm:8"
)
_CR0_WP = Commit("3dbe141595fa", "KVM: MMU: Segregate shadow pages with different cr0.wp")
_SMAP = Commit("0be0226f07d1", "KVM: MMU: fix SMAP virtualization")
_HAS_4_BYTE = "KVM: X86: Rename gpte_is_8_bytes to has_4_byte_gpte and invert the direction"

HISTORY: tuple[RoleVersion, ...] = (
    RoleVersion(
        "2.6.28",
        _bits("glevels:4 level:4 quadrant:2 :6 metaphysical:1 access:3 invalid:1"),
        None,
        (Commit("2e53d63acba7", "KVM: MMU: ignore zapped root pagetables"),),
        "as it was since 2.6.26: the guest's levels, and invalid for a root zapped while in use",
    ),
    RoleVersion(
        "2.6.30",
        _bits("glevels:4 level:4 quadrant:2 :6 direct:1 access:3 invalid:1 cr4_pge:1"),
        None,
        (
            Commit("2f0b3d60b2c4", "KVM: MMU: Segregate mmu pages created with different cr4.pge settings"),
            Commit("f6e2c02b6d28", 'KVM: MMU: Rename "metaphysical" attribute to "direct"'),
        ),
        "the global bit means nothing without CR4.PGE, and a CR3 load did not sync global entries; "
        "metaphysical is called direct",
    ),
    RoleVersion(
        "2.6.31",
        _2_6_31,
        None,
        (Commit("9645bb56b31a", "KVM: MMU: Use different shadows when EFER.NXE changes"),),
        "bit 63 of a gpte is reserved without EFER.NXE",
    ),
    RoleVersion(
        "2.6.32",
        _2_6_31,
        WORDING_2_6_32,
        (Commit("f691fe1da7e2", "KVM: Trace shadow page lifecycle"),),
        "the word is the same; tracepoints print it from here on",
    ),
    RoleVersion(
        "2.6.35",
        _bits("level:4 cr4_pae:1 quadrant:2 :6 direct:1 access:3 invalid:1 nxe:1 cr0_wp:1"),
        WORDING_2_6_35,
        (
            Commit("5b7e0102ae74", "KVM: MMU: Replace role.glevels with role.cr4_pae"),
            Commit("87bc3bf972af", "KVM: MMU: Drop cr4.pge from shadow page role"),
            _CR0_WP,
        ),
        "only the size of a gpte matters, so tables of PAE and 64-bit paging are shared; with CR0.WP=0 "
        "a read-only user page is mapped writable for the kernel",
    ),
    RoleVersion(
        "3.1",
        _bits("level:4 cr4_pae:1 quadrant:2 :6 direct:1 access:3 invalid:1 nxe:1 cr0_wp:1 smep_andnot_wp:1"),
        WORDING_2_6_35,
        (Commit("411c588dfb86", "KVM: MMU: Adjust shadow paging to work when SMEP=1 and CR0.WP=0"),),
        "with CR0.WP=0 a user page made writable for the kernel must not be executable for it under SMEP",
    ),
    RoleVersion(
        "4.1",
        _4_1,
        WORDING_2_6_35,
        (_SMAP,),
        "nor must the kernel reach that user page at all under SMAP",
        late=0,
    ),
    RoleVersion(
        "4.2",
        _bits(
            "level:4 cr4_pae:1 quadrant:2 direct:1 access:3 invalid:1 nxe:1 cr0_wp:1 smep_andnot_wp:1 "
            "smap_andnot_wp:1 :8 smm:8"
        ),
        WORDING_2_6_35,
        (Commit("699023e23965", "KVM: x86: add SMM to the MMU role, support SMRAM address space"),),
        "pages belong to an address space; its number is the top byte, and the gap behind quadrant went",
    ),
    RoleVersion(
        "4.13",
        _bits(
            "level:4 cr4_pae:1 quadrant:2 direct:1 access:3 invalid:1 nxe:1 cr0_wp:1 smep_andnot_wp:1 "
            "smap_andnot_wp:1 ad_disabled:1 :7 smm:8"
        ),
        WORDING_4_13,
        (Commit("ac8d57e57343", "kvm: x86: mmu: allow A/D bits to be disabled in an mmu"),),
        "sptes of an EPT without A/D bits are encoded otherwise",
    ),
    RoleVersion(
        "4.18",
        _bits(
            "level:4 cr4_pae:1 quadrant:2 direct:1 access:3 invalid:1 nxe:1 cr0_wp:1 smep_andnot_wp:1 "
            "smap_andnot_wp:1 ad_disabled:1 guest_mode:1 :6 smm:8"
        ),
        WORDING_4_13,
        (Commit("1313cc2bd8f6", "kvm: mmu: Add guest_mode to kvm_mmu_page_role"),),
        "L2 must not have L1's APIC access page, so L1 and L2 do not share pages",
    ),
    RoleVersion(
        "5.1",
        _bits(
            "level:4 gpte_is_8_bytes:1 quadrant:2 direct:1 access:3 invalid:1 nxe:1 cr0_wp:1 "
            "smep_andnot_wp:1 smap_andnot_wp:1 ad_disabled:1 guest_mode:1 :6 smm:8"
        ),
        WORDING_5_1,
        (Commit("47c42e6b4192", "KVM: x86: fix handling of role.cr4_pae and rename it to 'gpte_size'"),),
        "entries of a nested EPT have 8 bytes whatever CR4.PAE says; direct pages have the bit set too",
        late=2,
    ),
    RoleVersion(
        "5.14",
        _bits(
            "level:4 gpte_is_8_bytes:1 quadrant:2 direct:1 access:3 invalid:1 efer_nx:1 cr0_wp:1 "
            "smep_andnot_wp:1 smap_andnot_wp:1 ad_disabled:1 guest_mode:1 :6 smm:8"
        ),
        WORDING_5_14,
        (Commit("167f8a5cae99", 'KVM: x86/mmu: Rename "nxe" role bit to "efer_nx" for macro shenanigans'),),
        "a name only",
    ),
    RoleVersion(
        "5.17",
        _5_17,
        WORDING_5_17,
        (Commit("bb3b394d35e8", _HAS_4_BYTE),),
        "the bit is inverted, so that a direct page needs nothing set",
    ),
    RoleVersion(
        "5.19",
        _bits(
            "level:4 has_4_byte_gpte:1 quadrant:2 direct:1 access:3 invalid:1 efer_nx:1 cr0_wp:1 "
            "smep_andnot_wp:1 smap_andnot_wp:1 ad_disabled:1 guest_mode:1 passthrough:1 :5 smm:8"
        ),
        WORDING_5_17,
        (Commit("84e5ffd045f3", "KVM: X86/MMU: Fix shadowing 5-level NPT for 4-level NPT L1 guest"),),
        "a level-5 page that only points at the level-4 root was found as a real level-5 root",
    ),
    RoleVersion(
        "6.14",
        _bits(
            "level:4 has_4_byte_gpte:1 quadrant:2 direct:1 access:3 invalid:1 efer_nx:1 cr0_wp:1 "
            "smep_andnot_wp:1 smap_andnot_wp:1 ad_disabled:1 guest_mode:1 passthrough:1 is_mirror:1 :4 smm:8"
        ),
        WORDING_5_17,
        (Commit("6961ab0bae52", "KVM: x86/mmu: Add an is_mirror member for union kvm_mmu_page_role"),),
        "the mirror of a TDX guest's private EPT has roots and pages of its own",
    ),
    RoleVersion(
        "7.2",
        _bits(
            "level:4 has_4_byte_gpte:1 quadrant:2 direct:1 access:4 invalid:1 efer_nx:1 cr0_wp:1 "
            "smap_andnot_wp:1 ad_disabled:1 guest_mode:1 passthrough:1 is_mirror:1 cr4_smep:1 :3 smm:8"
        ),
        WORDING_7_2,
        (
            Commit("a8827c196146", "KVM: x86/mmu: introduce ACC_READ_MASK"),
            Commit("f603854a1b42", "KVM: x86/mmu: move cr4_smep to base role"),
        ),
        "access has read as bit 0 and execute as bit 3, which moves all above it; MBEC and GMET decide "
        "what is present or executable, so cr4_smep replaces smep_andnot_wp",
    ),
)
"""Every version that changed the word, oldest first."""


def _cr0_wp(since: str, commit: Commit) -> RoleVersion:
    why = "2.6.35's cr0_wp, behind nxe"
    return RoleVersion(since, _2_6_32_16, WORDING_2_6_32, (commit,), why)


def _smap(since: str) -> RoleVersion:
    return RoleVersion(since, _4_1, WORDING_2_6_35, (_SMAP,), "4.1's smap_andnot_wp")


BACKPORTS: dict[str, Backport] = {
    "2.6.32": Backport(15, _cr0_wp("2.6.32.16", Commit("3b2711485ef5", _CR0_WP.subject))),
    "2.6.33": Backport(3, _cr0_wp("2.6.33.7", _CR0_WP)),
    "2.6.34": Backport(0, _cr0_wp("2.6.34.14", _CR0_WP)),
    "3.18": Backport(0, _smap("3.18.20")),
    "4.0": Backport(0, _smap("4.0.5")),
    "5.15": Backport(
        221,
        RoleVersion(
            "5.15.222",
            _5_17,
            WORDING_5_17,
            (Commit("5d45b1dea187", _HAS_4_BYTE),),
            "5.17's inverted bit, taken with the fix of a use-after-free in shadow paging (CVE-2026-53359)",
        ),
    ),
}
"""Stable series whose later releases have another word than their first. A commit is the branch's own
where that was read, else mainline's."""

_LAST_READ = {
    "2.6.28": (0, "cr4_pge"),
    "2.6.29": (0, "cr4_pge"),
    "2.6.30": (4, "nxe"),
    "2.6.31": (3, "cr0_wp"),
    "3.16": (0, "smap_andnot_wp"),
    "5.0": (4, "gpte_is_8_bytes"),
    "5.10": (262, "has_4_byte_gpte"),
}
"""Series that might have taken a later field after the last release that was read."""


def find_role_version(name: str) -> RoleVersion:
    """Return the role word of a kernel.

    Parameters
    ----------
    name : str
        ``6.1``, ``v6.1.192``, ``5.17-rc1``, ``2.6.35`` or ``mainline``. ``x.y`` is ``x.y.0``. A
        distribution's, as ``6.1.0-31-amd64``, is taken as :mod:`mmulab.kvm.release` says.

    Raises
    ------
    InputError
        The name is no version, or one before 2.6.28 or after the last that was read.

    Examples
    --------
    >>> find_role_version("6.1.192").since
    '5.19'
    >>> find_role_version("5.15.222").since, find_role_version("5.15.221").since
    ('5.15.222', '5.14')
    """
    if name == MAINLINE:
        return HISTORY[-1]
    release = read_release_name(name)
    if release is None:
        raise InputError(
            f"kernel {name[:80]!r}: give a version as 6.1, v6.1.192, 5.17-rc1, 2.6.35, "
            f"6.1.0-31-amd64 or {MAINLINE}"
        )
    series = ".".join(map(str, release.series))
    _check(name, series)
    index = max(i for i, version in enumerate(HISTORY) if _key(version.since) <= release.series)
    if release.candidate is not None:
        return _of_candidate(index, series, release.candidate)
    return _named(release, series, _of_release(HISTORY[index], series, release.patch))


def _named(release: Release, series: str, version: RoleVersion) -> RoleVersion:
    """Return the version with a note of what the release's name leaves open."""
    if release.is_plain:
        return version
    may_differ = release.backports or series in BACKPORTS or series in _LAST_READ
    note = release.said() + (f"; {version.note}" if version.note else "")
    return version._replace(note=note, settled=version.settled and not may_differ)


def version_of(layout: RoleLayout) -> RoleVersion | None:
    """Return the newest kernel version that has this layout, the object itself; None if none has.

    >>> version_of(find_role_version("5.0").layout).since
    '4.18'
    """
    return next((version for version in reversed(HISTORY) if version.layout is layout), None)


def _of_candidate(index: int, series: str, candidate: int) -> RoleVersion:
    version = HISTORY[index]
    if version.since != series or version.late is None:
        return version
    if candidate <= version.late:
        return HISTORY[index - 1]
    note = f"merged after the merge window of {series}: the first -rc with this word was not settled"
    return version._replace(settled=False, note=note)


def _of_release(version: RoleVersion, series: str, release: int | None) -> RoleVersion:
    if series in BACKPORTS:
        lacks, later = BACKPORTS[series]
        if release is None:
            return version._replace(note=f"{later.since} and later have another word")
        if release >= int(later.since.rpartition(".")[2]):
            return later
        note = f"not read: after {series}.{lacks} and before {later.since} the word may be the latter's"
        return version if release <= lacks else version._replace(settled=False, note=note)
    last, field = _LAST_READ.get(series, (release, ""))
    if release is None or last is None or release <= last:
        return version
    note = f"not read: {series}.y after {series}.{last} may have taken {field} from mainline"
    return version._replace(settled=False, note=note)


def _key(series: str) -> tuple[int, ...]:
    return tuple(map(int, series.split(".")))


def _check(name: str, series: str) -> None:
    key = _key(series)
    if key < _FIRST:
        raise InputError(f"kernel {name!r}: the history of the role word starts with 2.6.28")
    if key[:2] > _LAST:
        raise InputError(f"kernel {name!r}: newer than 7.3, the last that was read; ask for {MAINLINE}")
    if key[-1] > _LAST_OF_MAJOR[key[0]] or (key[0] == 2 and len(key) == 2):
        raise InputError(f"kernel {name!r}: there is no Linux {series}")
