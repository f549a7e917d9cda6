"""Releases of Linux as distributions write them: ``6.1.0-31-amd64``, ``5.14.0-427.el9.x86_64``.

A name tells a release of kernel.org, or only a series, or one from which a vendor went on
by itself. :func:`read_release_name` says which it is taken for, and what the name leaves open.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mmulab.errors import InputError, quoted

_NUMBER = "(?:0|[1-9][0-9]{0,3})"
_NAME = re.compile(
    r"v?(?P<series>2\.6\.N|N\.N)(?:\.(?P<release>N)(?:\.[0-9]+)?)?"
    r"(?P<suffix>(?:(?:[-~]|-0\.)rc(?P<candidate>N)(?:\.[\w.]+)?(?![0-9]))?"
    r"(?:[-~+_](?!rc)[\w.~+-]*)?)".replace("N", _NUMBER)
)
_LONGEST = 80


class _Kind(NamedTuple):
    """Names of one make: the suffix that tells them, and what they leave open.

    With `backports` the vendor took what it wanted from later releases; with `base_only` only
    names of ``x.y.0`` are of this make.
    """

    suffix: re.Pattern[str]
    open: str
    backports: bool
    base_only: bool


_KINDS = (
    _Kind(re.compile(r"\.el[0-9]|\.amzn|\.uelc?[0-9]|el[0-9]uek"), "backports unknown", True, False),
    _Kind(re.compile(r"-[0-9]{5,}(\.[0-9]+)*-\w"), "backports unknown", True, False),
    _Kind(
        re.compile(r"-[0-9][\w.]*-(\w+-)*(amd64|686|686-pae)(-unsigned)?$"),
        "Debian's ABI name, which does not tell the stable release",
        False,
        True,
    ),
    _Kind(
        re.compile(r"-[0-9]+-[a-z]"),
        "an ABI name as Ubuntu's, which does not tell the stable release",
        False,
        True,
    ),
)
"""What a name can leave open, the first that fits."""


class Release(NamedTuple):
    """A release of Linux.

    Attributes
    ----------
    text : str
        As it was written.
    series : tuple of int
        ``(6, 1)``, or ``(2, 6, 32)``.
    patch : int or None
        The stable release; None if the name does not tell it.
    candidate : int or None
        Of a release candidate its number.
    suffix : str
        What a distribution or a builder put behind it.
    open : str
        What the name does not tell; empty if it is a release's own.
    backports : bool
        A vendor may have taken anything from later releases.
    """

    text: str
    series: tuple[int, ...]
    patch: int | None
    candidate: int | None
    suffix: str
    open: str
    backports: bool

    @property
    def numbers(self) -> tuple[int, ...]:
        """The release's numbers, as far as the name tells them."""
        return self.series if self.patch is None else (*self.series, self.patch)

    @property
    def taken_as(self) -> str:
        """The release of kernel.org that this is taken for."""
        release = ".".join(map(str, self.numbers))
        return release if self.candidate is None else f"{release}-rc{self.candidate}"

    @property
    def is_plain(self) -> bool:
        """Whether it was written as kernel.org does."""
        return self.text.removeprefix("v") == self.taken_as

    def said(self) -> str:
        """Return for what it is taken, and what is not known: ``backports unknown, taken as 5.14``.

        >>> read_release_name("5.14.0-427.el9").said()
        'backports unknown, taken as 5.14'
        """
        return f"{self.open}, taken as {self.taken_as}" if self.open else f"taken as {self.taken_as}"


def read_release_name(text: str) -> Release | None:
    """Read a release's name; None if it is none.

    Examples
    --------
    >>> read_release_name("6.17.5-200.fc42.x86_64").taken_as
    '6.17.5'
    >>> read_release_name("6.1.0-31-amd64").taken_as
    '6.1'
    >>> read_release_name("6.1.0-rc3").taken_as
    '6.1-rc3'
    """
    match = _NAME.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        return None
    series = tuple(map(int, match["series"].split(".")))
    patch = None if match["release"] is None else int(match["release"])
    suffix = match["suffix"]
    candidate = None if match["candidate"] is None else int(match["candidate"])
    if candidate is not None:
        return Release(text, series, None, candidate, suffix, "", False)
    kind = next((k for k in _KINDS if k.suffix.search(suffix) and not (k.base_only and patch)), None)
    if kind is None:
        return Release(text, series, patch, None, suffix, "", False)
    return Release(text, series, patch or None, None, suffix, kind.open, kind.backports)


def find_release(text: str) -> Release:
    """Read a release's name.

    Raises
    ------
    InputError
        It is none.
    """
    release = read_release_name(text)
    if release is None:
        raise InputError(f"release '{quoted(text)}': expected numbers, as 5.15.200 or 6.1.0-31-amd64")
    return release
