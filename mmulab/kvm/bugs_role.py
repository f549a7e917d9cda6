"""Bugs B10 to B23: a page or a context is found again by a key that says too little."""

from __future__ import annotations

from mmulab.kvm.bug import Bug

ROLE_BUGS: tuple[Bug, ...] = ()
