"""A sweep on a scheduler's workers, one of which is killed, finds the same to the byte as in processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from mmulab import pool
from mmulab.cluster import Cluster
from mmulab.pool import Lost
from mmulab.report.experiment import Experiment, read_experiment
from mmulab.report.sweep import Ended, Work, sweep
from tests.dask_cluster import loopback

RUNS = 20


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Give runs of a function that reads a file which the workers do not have."""
    (tmp_path / "words.txt").write_text("one two three")
    file = tmp_path / "small.yaml"
    file.write_text(
        "name: small\nfunction: tests.far_works:counted\n"
        f"parameters: {{name: {tmp_path / 'words.txt'}}}\n"
        f"grid: {{times: {list(range(1, RUNS + 1))}}}\n"
        f"inputs: [{{path: {tmp_path / 'words.txt'}, sha256: '{sha256(b'one two three').hexdigest()}'}}]\n"
    )
    return read_experiment(file)


def tables(out: Path) -> dict[str, bytes]:
    """Return what must be the same to the byte, by run."""
    names = ("results.parquet", "tables/counted.csv")
    return {str(path.relative_to(out)): path.read_bytes() for name in names for path in out.glob(f"*/{name}")}


def manifest(folder: Path) -> dict[str, object]:
    """Return a run's manifest, but for what its process had imported: a worker has dask."""
    written: dict[str, object] = json.loads((folder / "manifest.json").read_text())
    del written["packages"]
    return written


def test_a_killed_worker_changes_no_byte(tmp_path: Path, experiment: Experiment) -> None:
    near, far = tmp_path / "near", tmp_path / "far"
    sweep(experiment, near, each=partial(pool.each, jobs=2))
    with loopback(tmp_path / "workers", 2) as found:
        by = Cluster(found.address, in_order=False)

        def each(
            function: Callable[[Work], Ended], works: Sequence[Work], *, lost: Lost[Work, Ended]
        ) -> Generator[Ended, None, None]:
            for count, one in enumerate(by.each(function, works, lost=lost), 1):
                if count == 2:
                    found.workers[0].kill()
                    found.workers[0].wait()
                yield one

        sweep(experiment, far, each=each, elsewhere=True)
        assert found.forgets()
    assert len(tables(near)) == 2 * RUNS
    assert tables(far) == tables(near)
    assert all(manifest(far / run.id) == manifest(near / run.id) for run in experiment.runs)


def test_a_run_that_kills_its_workers_is_named_and_those_beside_it_finish(tmp_path: Path) -> None:
    """The scheduler blames all that the dead worker had, also runs that waited there."""
    file = tmp_path / "t.yaml"
    file.write_text("name: t\nfunction: tests.far_works:mortal\ngrid: {number: [1, 2, 3, 4]}\n")
    ended: list[Ended] = []
    with loopback(tmp_path / "workers", 1, failures=0, nanny=True) as found:
        each = Cluster(found.address, in_order=False).each
        sweep(read_experiment(file), tmp_path / "out", each=each, ended=ended.append, elsewhere=True)
        assert found.forgets()
    states = {one.id: one.status.state for one in ended}
    assert states == {"number=2": "failed"} | {f"number={number}": "done" for number in (1, 3, 4)}
    error = json.loads((tmp_path / "out/number=2/status.json").read_text())["error"]
    assert error["type"] == "WorkerError"
    assert "workers that died of it: 1, the last tcp://" in error["message"]
