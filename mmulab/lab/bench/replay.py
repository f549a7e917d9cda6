"""How fast a stream is replayed, against the compiled walk alone in the same run.

The peer translates the same accesses through the shadow tables that the replay
left behind, with no faults handled, nothing compared and nothing stored: what a
replay would cost if KVM had no part in it. Rates depend on the machine; what is
compared is their ratio.
"""

from __future__ import annotations

import time
from pathlib import Path

from mmulab.lab.bench.walk import Rate
from mmulab.machine.processor import host_paging
from mmulab.workload.replay import Replay
from mmulab.workload.stream import load_stream


def bench_replay(path: Path, *, limit: int | None = None, repeat: int = 3) -> tuple[Rate, ...]:
    """Measure a replay with recording off, in records a second.

    Parameters
    ----------
    path : Path
        The stream.
    limit : int, optional
        Records to replay; all of them by default.
    repeat : int
        Measurements; the best counts.

    Returns
    -------
    tuple of Rate
        The batch walk first, in accesses a second, then the replay.

    Raises
    ------
    InputError
        A bad stream.
    RuntimeError
        An access went elsewhere than recorded; a bug.
    """
    stream = load_stream(path)
    walks, replays = [], []
    for _ in range(repeat):
        replay = Replay(stream, limit=limit)
        start = time.perf_counter()
        result = replay.run()
        replays.append(replay.records / (time.perf_counter() - start))
        if result.mismatch is not None:
            raise RuntimeError(f"{path}: record {result.mismatch.record}: {result.mismatch.what}")
        start = time.perf_counter()
        _translate_all(replay)
        walks.append(result.accesses / (time.perf_counter() - start))
    batch = max(walks)
    return (
        Rate("batch walk of a stream's accesses", batch, 1.0),
        Rate(f"replay of {stream.name}", max(replays), batch / max(replays)),
    )


def _translate_all(replay: Replay) -> None:
    """Walk all of a replay's accesses through the shadow tables as they are."""
    from mmulab.x86.batch import walk_each

    machine, plan = replay.machine, replay.plan
    vcpu = machine.kvm.vcpus[0]
    paging = host_paging(vcpu, machine.processor)
    frames, root = machine.memory.frames, vcpu.mmu.root_hpa
    walk_each(frames, paging, root, plan.va, plan.pfec, not_smap=plan.not_smap)
