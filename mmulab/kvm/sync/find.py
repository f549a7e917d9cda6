"""A sync policy by its name."""

from __future__ import annotations

from dataclasses import replace

from mmulab.errors import InputError, find_named, quoted
from mmulab.kvm.sync.foreign import load_policy
from mmulab.kvm.sync.oos_2008 import Oos2008, oos_2008
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.unsync_children import unsync_children
from mmulab.kvm.sync.variations import VARIATIONS
from mmulab.kvm.sync.write_protect import write_protect

_BUILT_IN: tuple[SyncPolicy, ...] = (unsync_children, write_protect, oos_2008)
SYNC_POLICIES = {policy.name: policy for policy in _BUILT_IN}


def find_sync(name: str) -> SyncPolicy:
    """Return a sync policy by its text: a name, with variations behind it (``oos_2008+index=lru``).

    ``file.py:Class`` and ``module:Class`` name one of the user's own.

    Raises
    ------
    InputError
        There is no such policy, or it has no such variation.
    """
    if ":" in name:
        return load_policy(name)
    base, *varied = name.split("+")
    policy = find_named(SYNC_POLICIES, base, "sync policy", "policies")
    if not varied:
        return policy
    if not isinstance(policy, Oos2008):
        raise InputError(f"sync policy '{quoted(name)}': {base} has no variations")
    values = dict(part.partition("=")[::2] for part in varied)
    for field in values:
        if field not in VARIATIONS:
            known = ", ".join(VARIATIONS)
            raise InputError(f"sync policy '{quoted(name)}': no variation {quoted(field)}; there are {known}")
    return replace(policy, **values)
