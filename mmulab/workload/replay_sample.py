"""A replay looked at every so many records: columns to plot against the record's number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmulab.kvm.roles.design import RoleDesign
from mmulab.kvm.roles.word import RoleFacts
from mmulab.machine.machine import Machine

FAULT_CLASSES = tuple(
    f"{access}_{mode}"
    for access in ("read", "write", "fetch", "table_store")
    for mode in ("supervisor", "user")
)
"""Sorts of accesses that fault: what the guest does, and the CPL it does it at."""


class RoleCount(NamedTuple):
    """Shadow pages of one role over time.

    Attributes
    ----------
    role : int
    facts : RoleFacts
        What the role says.
    pages : numpy.ndarray, shape (n,), dtype int64
        How many there are at each sample.
    """

    role: int
    facts: RoleFacts
    pages: npt.NDArray[np.int64]


class Sampler:
    """Looks at a replay every `every` records, and at its end.

    A sample costs one pass over the shadow pages in use, of which there are at
    most a few thousand.

    Parameters
    ----------
    every : int
        Records between two samples.

    Attributes
    ----------
    records : list of int
        Records replayed at each sample.

    Raises
    ------
    ValueError
        `every` is below 1.
    """

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"every {every} records is no distance; it must be at least 1")
        self.every = every
        self.records: list[int] = []
        self._rows: list[list[int]] = []
        self._names: list[str] = []
        self._roles: list[dict[int, int]] = []
        self._design: RoleDesign | None = None

    def take(self, machine: Machine, faults: Sequence[int], guest_tables: int, records: int) -> None:
        """Note the state after the first `records` records.

        Parameters
        ----------
        machine : Machine
        faults : sequence of int
            Faults so far, as :data:`FAULT_CLASSES`.
        guest_tables : int
            Pages known to be tables of the guest.
        records : int
        """
        if self.records and self.records[-1] == records:
            return
        kvm, stats = machine.kvm, machine.stats
        if not self._names:
            self._design = kvm.config.kernel.design
            self._names = [*FAULT_CLASSES, *stats, "guest_tables", "shadow_pages", "unsync_pages"]
        roles: dict[int, int] = {}
        unsync = 0
        for sp in kvm.pages.values():
            roles[sp.role] = roles.get(sp.role, 0) + 1
            unsync += sp.unsync
        self.records.append(records)
        self._roles.append(roles)
        self._rows.append([*faults, *stats.values(), guest_tables, len(kvm.pages), unsync])

    def columns(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the samples as columns.

        Returns
        -------
        dict of str to numpy.ndarray, shape (n,), dtype int64
            ``record``; faults so far by class (:data:`FAULT_CLASSES`); KVM's
            statistics by name; ``guest_tables``, ``shadow_pages`` and
            ``unsync_pages``.
        """
        table = np.array(self._rows, np.int64).reshape(len(self._rows), len(self._names))
        columns = {"record": np.array(self.records, np.int64)}
        columns.update(zip(self._names, table.T, strict=True))
        return columns

    def roles(self) -> list[RoleCount]:
        """Return the shadow pages by role over time, roles in the order of level, then word."""
        if self._design is None:
            return []
        facts = {role: self._design.facts(role) for counts in self._roles for role in counts}
        order = sorted(facts, key=lambda role: (-facts[role].level, role))
        return [
            RoleCount(role, facts[role], np.array([counts.get(role, 0) for counts in self._roles], np.int64))
            for role in order
        ]
