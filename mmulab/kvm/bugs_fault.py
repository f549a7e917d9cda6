"""Bugs B31 to B34: faults, emulated accesses, logs and roots."""

from __future__ import annotations

from mmulab.kvm.bug import Bug

FAULT_BUGS: tuple[Bug, ...] = ()
