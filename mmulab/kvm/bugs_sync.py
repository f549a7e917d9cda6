"""Bugs B24 to B30: a shadow entry or a TLB is older than it may be."""

from __future__ import annotations

from mmulab.kvm.bug import Bug

SYNC_BUGS: tuple[Bug, ...] = ()
