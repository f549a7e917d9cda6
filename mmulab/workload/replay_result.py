"""What comes of a replay: how many accesses agree, or which one did not."""

from __future__ import annotations

from typing import NamedTuple

from mmulab.kvm.sync.counts import SyncCounts


class Mismatch(NamedTuple):
    """The access at which a replay stopped.

    Attributes
    ----------
    record : int
        Its index in the stream.
    kind : str
        The record's letter.
    gva, gpa : int
        Address, and the physical address recorded for it.
    reached : int or None
        Physical address that it reached here; None if it reached none.
    what : str
        What happened instead, in words.
    state : tuple of str
        The guest's walk and the shadow path, line by line.
    """

    record: int
    kind: str
    gva: int
    gpa: int
    reached: int | None
    what: str
    state: tuple[str, ...]


class ReplayResult(NamedTuple):
    """What came of a replay.

    Attributes
    ----------
    records : int
        Records asked for.
    accesses : int
        Accesses and table stores among them.
    agree : int
        Those that reached the recorded address; all, unless there is a mismatch.
    faults : dict of str to int
        Page faults that KVM handled, by class (:data:`mmulab.workload.replay_sample.FAULT_CLASSES`).
    guest_faults : int
        Page faults of the guest's own on the way; the stream has them, and they are not executed.
    shadow_pages : int
        Shadow pages created.
    shadow_pages_in_use : int
    stats : dict of str to int
        KVM's statistics.
    sync : SyncCounts
        What the sync policy did and cost.
    mismatch : Mismatch or None
    interrupted : bool
        It was stopped; `records` and `accesses` count what was replayed until then.
    """

    records: int
    accesses: int
    agree: int
    faults: dict[str, int]
    guest_faults: int
    shadow_pages: int
    shadow_pages_in_use: int
    stats: dict[str, int]
    sync: SyncCounts
    mismatch: Mismatch | None
    interrupted: bool = False
