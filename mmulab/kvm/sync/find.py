"""A sync policy by its name."""

from __future__ import annotations

from mmulab.errors import find_named
from mmulab.kvm.sync.policy import SyncPolicy
from mmulab.kvm.sync.unsync_children import unsync_children
from mmulab.kvm.sync.write_protect import write_protect

SYNC_POLICIES: dict[str, SyncPolicy] = {policy.name: policy for policy in (unsync_children, write_protect)}


def find_sync(name: str) -> SyncPolicy:
    """Return a sync policy by name.

    Raises
    ------
    InputError
        No policy is called so.
    """
    return find_named(SYNC_POLICIES, name, "sync policy", "policies")
