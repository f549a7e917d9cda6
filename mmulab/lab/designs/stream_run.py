"""A recorded boot under a role design: replayed up to the first access that goes elsewhere."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass

from mmulab.check.access import WrongAccess
from mmulab.check.failure import FAILURES
from mmulab.errors import DesignError, InputError
from mmulab.events import Event, kvm_mmu_get_page
from mmulab.kvm.kernel import Kernel
from mmulab.kvm.kernels import LINUX_6_1
from mmulab.kvm.roles.design import RoleDesign
from mmulab.lab.cases.run import failure_str
from mmulab.lab.designs.measures import Lookup, Observed
from mmulab.workload.replay import Replay
from mmulab.workload.stream import Kind, Stream

__all__ = ["StreamRun", "run_stream"]


@dataclass(frozen=True)
class StreamRun:
    """What came of a boot.

    Attributes
    ----------
    observed : Observed
        The op of a lookup is the number of the stream's record.
    wrong : WrongAccess or None
        The first record that went elsewhere.
    """

    observed: Observed
    wrong: WrongAccess | None


def run_stream(
    stream: Stream, design: RoleDesign, *, kernel: Kernel | None = None, records: int | None = None
) -> StreamRun:
    """Replay a boot.

    Parameters
    ----------
    stream : Stream
    design : RoleDesign
    kernel : Kernel, optional
    records : int, optional
        How many; all by default.

    Raises
    ------
    InputError
        The derivation is unknown.
    """
    lookups: list[Lookup] = []
    counts = Counter[type[Event]]()

    def keep(event: Event) -> None:
        counts[type(event)] += 1
        if isinstance(event, kvm_mmu_get_page):
            lookups.append(Lookup(at.record, event.gfn, event.role, event.created))

    base = kernel or LINUX_6_1
    replay = Replay(stream, limit=records, kernel=base.with_(design=design), emit=keep)
    at = weakref.proxy(replay)  # the replay holds its observer: held back, its memory would outlive it
    wrong = _replay(replay)
    return StreamRun(Observed.of(lookups, counts, replay.machine.stats), wrong)


def _replay(replay: Replay) -> WrongAccess | None:
    try:
        mismatch = replay.run().mismatch
    except FAILURES as error:
        if isinstance(error, InputError | NotImplementedError) and not isinstance(error, DesignError):
            raise
        return _wrong(replay.stream, replay.record, None, failure_str(error))
    if mismatch is None:
        return None
    return _wrong(replay.stream, mismatch.record, mismatch.reached, mismatch.what)


def _wrong(stream: Stream, record: int, reached: int | None, seen: str) -> WrongAccess:
    gva, gpa = int(stream.gva[record]), int(stream.gpa[record])
    kind = Kind(int(stream.kind[record])).letter
    return WrongAccess(record, f"{kind} {gva:x}", gpa, reached, seen, gva=gva)
