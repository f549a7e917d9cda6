"""A historical bug of KVM's MMU: what is known of it, and the switch that brings it back.

A :class:`Bugs` is the set of bugs that a kernel has, next to its behaviours: the engine
asks for one by its id at the place that the fix changed, ``kvm.bugs.B13``, and is the
recorded kernel where all are off. :mod:`mmulab.kvm.bugs` is the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

from mmulab.errors import InputError, quoted
from mmulab.kvm.release import Release, find_release

INVARIANTS = tuple(f"I{number}" for number in range(1, 17))
"""What must hold of the MMU, by number (:mod:`mmulab.check`)."""


class Affects(NamedTuple):
    """Whether a release has a bug.

    Attributes
    ----------
    has : bool or None
        None: not known.
    why : str
    """

    has: bool | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """A bug of the catalogue.

    Attributes
    ----------
    id : str
        ``B13``; the name of its switch in :class:`Bugs`, if it has one.
    title : str
    commit : str
        Mainline's fix, 12 digits; empty: not known.
    introduced : str
        The first mainline release with the bug; empty: not known.
    fixed : str
        The first mainline release without it; empty: not known.
    mechanism : str
        How the wrong state comes about, and what it does.
    breaks : tuple of str
        The invariants that it breaks; none where only an outcome is wrong.
    cve : str
    introduced_by : str
        The commit that brought it; empty: not known.
    backports : dict of str to str
        By series of stable kernels the first release with the fix. A series that is not in it
        and is older than `fixed` may have the fix or not.
    seen_in : tuple of str
        Stable releases in whose sources the fix stands; which release of the series brought it, no
        source says.
    needs : tuple of str
        What must be in a tree before the fix can be, each with its commit or id.
    missing : str
        What the model lacks for a switch; empty if it has one.
    source : str
        Functions, and where the facts were read.
    """

    id: str
    title: str
    commit: str
    introduced: str
    fixed: str
    mechanism: str
    breaks: tuple[str, ...]
    source: str
    cve: str = ""
    introduced_by: str = ""
    backports: dict[str, str] = field(default_factory=dict)
    seen_in: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    missing: str = ""

    @property
    def has_switch(self) -> bool:
        """Whether a kernel can be given the bug."""
        return not self.missing

    def affects(self, release: str) -> Affects:
        """Return whether a release of Linux has the bug, as far as the catalogue knows.

        A distribution's name is taken as :mod:`mmulab.kvm.release` says; what the name leaves open
        makes an answer "not known".

        Raises
        ------
        InputError
            `release` is no version.
        """
        asked = find_release(release)
        said = self._affects(asked.taken_as if asked.candidate is None else ".".join(map(str, asked.series)))
        if asked.candidate is not None and asked.series in self._turns():
            return Affects(None, f"{said.why}; whether {asked.taken_as} had that, no source says")
        if asked.open and not self._is_settled(asked, said):
            return Affects(None, f"{said.why}; {asked.said()}")
        return said

    def _turns(self) -> list[tuple[int, ...]]:
        """Return the mainline series that brought the bug and the fix."""
        return [read_release(release) for release in (self.introduced, self.fixed) if release]

    def _is_settled(self, asked: Release, said: Affects) -> bool:
        """Whether an answer for the release that a name is taken as holds for all that the name may be."""
        if said.has is not False:
            return said.has is None
        has_fix = not self.introduced or asked.numbers >= read_release(self.introduced)
        return has_fix or not asked.backports

    def _affects(self, release: str) -> Affects:
        version = read_release(release)
        series = version[: 3 if version[0] == 2 else 2]
        if self.introduced and version < read_release(self.introduced):
            return Affects(False, f"it came with {self.introduced}")
        if self.fixed and version >= read_release(self.fixed):
            return Affects(False, f"{self.fixed} has the fix")
        backport = self.backports.get(".".join(map(str, series)))
        if backport is not None:
            if version < read_release(backport):
                return Affects(True, f"the fix came with {backport}")
            return Affects(False, f"{backport} has the fix")
        for known in map(read_release, self.seen_in):
            if known[: len(series)] == series and version >= known:
                return Affects(False, f"{release} has the fix")
        if not self.introduced:
            return Affects(None, "no source says since when")
        if not self.fixed:
            return Affects(None, "no source says in which release it was fixed")
        if len(version) == len(series) or version[len(series)] == 0:
            return Affects(True, f"the fix came with {self.fixed}")
        return Affects(None, f"the fix came with {self.fixed}; when to this series, no source says")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bugs:
    """The bugs that a kernel has, of those with a switch; the recorded kernels have none."""

    B1: bool = False
    B2: bool = False
    B3: bool = False
    B4: bool = False
    B5: bool = False
    B7: bool = False
    B8: bool = False
    B10: bool = False
    B11: bool = False
    B12: bool = False
    B13: bool = False
    B14: bool = False
    B15: bool = False
    B16: bool = False
    B17: bool = False
    B19: bool = False
    B20: bool = False
    B21: bool = False
    B22: bool = False
    B23: bool = False
    B24: bool = False
    B25: bool = False
    B26: bool = False
    B27: bool = False
    B28: bool = False
    B29: bool = False
    B32: bool = False
    B33: bool = False
    B34a: bool = False
    B34b: bool = False
    B34c: bool = False

    def names(self) -> tuple[str, ...]:
        """Return the ids of those that are on, in the catalogue's order."""
        return tuple(name for name in SWITCHES if getattr(self, name))


SWITCHES: tuple[str, ...] = tuple(f.name for f in fields(Bugs))
"""The ids of the bugs that can be switched on."""


def with_bugs(base: Bugs, wanted: dict[str, bool]) -> Bugs:
    """Return the bugs with some turned on or off.

    Raises
    ------
    InputError
        The name is unknown, or it is already as wanted, which is a mistake of the caller's.
    """
    for name, on in wanted.items():
        if name not in SWITCHES:
            raise InputError(f"bug '{quoted(name)}': no switch; the switches are {', '.join(SWITCHES)}")
        if getattr(base, name) == on:
            raise InputError(f"bug {quoted(name)} is {'on' if on else 'off'} already; leave it out")
    return replace(base, **wanted)


def read_release(text: str) -> tuple[int, ...]:
    """Read a release of kernel.org as numbers: ``5.15.200`` is (5, 15, 200).

    Raises
    ------
    InputError
        It is none.
    """
    release = find_release(text)
    if not release.is_plain or release.candidate is not None:
        raise InputError(f"release '{quoted(text)}': expected numbers, as 5.15.200")
    return release.numbers
