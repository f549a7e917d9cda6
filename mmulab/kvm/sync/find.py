"""A sync policy by its name."""

from __future__ import annotations

from mmulab.errors import find_named
from mmulab.kvm.sync.oos_2008 import oos_2008
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.unsync_children import unsync_children
from mmulab.kvm.sync.write_protect import write_protect

_BUILT_IN: tuple[SyncPolicy, ...] = (unsync_children, write_protect, oos_2008)
SYNC_POLICIES = {policy.name: policy for policy in _BUILT_IN}


def find_sync(name: str) -> SyncPolicy:
    """Return a sync policy by name.

    Raises
    ------
    InputError
        No policy is called so.
    """
    return find_named(SYNC_POLICIES, name, "sync policy", "policies")
