"""Kinds of cases, for tables of many: a case's kind follows from its name."""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["KINDS", "kind_of"]

_NAMED = (
    ("la57-switch-*", "switch of CR4.LA57"),
    ("portal-*", "switch of L1's NPT from PAE to 4 levels"),
    ("mixed-*", "one table under several rules"),
    ("smm-*", "system management mode"),
    ("tdp-mmu-*", "direct map, TDP MMU"),
    ("tdp-*", "direct map, legacy MMU"),
    ("shadow-*", "shadow of a guest"),
    ("npt-fault-*", "L1's NPT, mapped upon #NPF"),
    ("npt-root-write-*", "L1's NPT, root written"),
    ("npt-*", "shadow of L1's NPT"),
    ("nonpt-tdp-*", "L1 without NPT, host with"),
    ("nonpt-shadow-*", "L1 without NPT, host without"),
    ("ept-*", "shadow of L1's EPT"),
    ("noept-*", "L1 without EPT"),
    ("host-32-*", "32-bit host"),
    ("conformance/*", "recordings of a real kernel"),
    ("stream/*", "recorded boots"),
)
"""Names of cases to what they have in common; the first that fits counts."""
KINDS = (*dict.fromkeys(words for _, words in _NAMED), "others")
"""All kinds, in the order in which tables have them."""


def kind_of(name: str) -> str:
    """Return the kind of the case called `name`.

    Examples
    --------
    >>> kind_of("smm-shadow-64-l0-4")
    'system management mode'
    """
    return next((words for pattern, words in _NAMED if fnmatchcase(name, pattern)), KINDS[-1])
