"""Sweeps: what a second one runs, what an interrupt leaves, who may write a folder."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from mmulab import pool
from mmulab.errors import InputError
from mmulab.pool import Lost
from mmulab.report import folder, provenance
from mmulab.report.experiment import Experiment, of_notebooks, read_experiment
from mmulab.report.sweep import Ended, Work, pending, sweep

HERE = partial(pool.each, jobs=1)
TWO = partial(pool.each, jobs=2)
"""Ways to spread works: one at a time, and over two."""
POWERS = "name: t\nfunction: tests.report.functions:powers\n"
Make = Callable[..., Experiment]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make an experiment of powers of `bases`, which notes each call in the file ``log``."""

    def experiment(*bases: int, more: str = "") -> Experiment:
        path = tmp_path / "t.yaml"
        log = tmp_path / "log"
        path.write_text(f"{POWERS}parameters: {{log: {log}}}\ngrid: {{base: {list(bases)}}}\n{more}")
        return read_experiment(path)

    return experiment


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[int]]:
    """Return the bases of the calls since the last time."""

    def taken() -> list[int]:
        path = tmp_path / "log"
        found = [int(line) for line in path.read_text().split()] if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    return taken


def results(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(out.glob("*/results.parquet"))}


def stopped_after(count: int) -> Callable[..., Generator[Ended, None, None]]:
    """Spread works in this process, and be interrupted before the one after `count`."""

    def each(
        function: Callable[[Work], Ended], works: Sequence[Work], *, lost: Lost[Work, Ended]
    ) -> Generator[Ended, None, None]:
        for work in works[:count]:
            yield function(work)
        with folder.whole(Path(str(works[count].out)) / works[count].run.id):
            raise KeyboardInterrupt

    return each


def backwards(
    function: Callable[[Work], Ended], works: Sequence[Work], *, lost: Lost[Work, Ended]
) -> Generator[Ended, None, None]:
    for work in reversed(works):
        yield function(work)


def test_layout(make: Make, tmp_path: Path) -> None:
    page = sweep(make(1, 2), tmp_path / "out", each=TWO)
    assert page == tmp_path / "out" / "index.html"
    assert sorted(os.listdir(tmp_path / "out")) == [".mmulab", "base=1", "base=2", "index.html", "sweep.json"]
    written = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [run["id"] for run in written["runs"]] == ["base=1", "base=2"]
    assert written["file"]["sha256"] == provenance.digest(tmp_path / "t.yaml")


def test_a_second_one_runs_nothing(make: Make, calls: Callable[[], list[int]], tmp_path: Path) -> None:
    sweep(make(1, 2), tmp_path / "out", each=HERE)
    assert calls() == [1, 2]
    before = results(tmp_path / "out")
    sweep(make(1, 2), tmp_path / "out", each=HERE)
    assert calls() == []
    sweep(make(1, 2), tmp_path / "out", each=HERE, resume=False)
    assert calls() == [1, 2]
    assert results(tmp_path / "out") == before


def test_interrupted_and_gone_on_with_it_is_the_same(
    make: Make, calls: Callable[[], list[int]], tmp_path: Path
) -> None:
    sweep(make(1, 2, 3, 4), tmp_path / "whole", each=TWO)
    calls()
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        sweep(make(1, 2, 3, 4), tmp_path / "out", each=stopped_after(2), say=lines.append)
    assert lines == ["interrupted: 2 of 4 runs ended; the same command goes on"]
    assert calls() == [1, 2]
    assert sorted(os.listdir(tmp_path / "out")) == [".mmulab", "base=1", "base=2", "index.html", "sweep.json"]
    sweep(make(1, 2, 3, 4), tmp_path / "out", each=backwards)
    assert calls() == [4, 3]
    assert len(results(tmp_path / "out")) == 4
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    for name in ("sweep.json", "base=3/manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_was_made_from_something_else_is_run_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.write_text("a")
    inputs = f"inputs: [{{path: in, sha256: {provenance.digest(source)}}}]\n"
    experiment = make(1, more=inputs)
    out = tmp_path / "out"

    def why() -> str:
        ((_, found),) = pending(experiment, out)
        return found

    assert why() == "missing"
    sweep(experiment, out, each=HERE)
    assert why() == ""
    source.write_text("bc")
    assert why() == f"another input {source}"
    source.write_text("a")
    assert why() == ""
    manifest = out / "base=1" / "manifest.json"
    kept = manifest.read_text()
    manifest.write_text(kept.replace('"exponent": 2', '"exponent": 3'))
    assert why() == "another parameters"
    manifest.write_text("{")
    assert why() == "damaged"
    manifest.write_text(kept)
    monkeypatch.setattr(provenance, "digest_of_package", lambda: "0")
    assert why() == "another package"


def test_a_changed_notebook_is_run_again(make_notebook: Callable[..., Path], tmp_path: Path) -> None:
    path = make_notebook("n: int = 1", "n")
    sweep(of_notebooks([path], {}), tmp_path / "out", each=HERE)
    assert [why for _, why in pending(of_notebooks([path], {}), tmp_path / "out")] == [""]
    make_notebook("n: int = 1", "n + 1")
    assert [why for _, why in pending(of_notebooks([path], {}), tmp_path / "out")] == ["another notebook"]


def test_failed_runs_stop_no_other_and_are_run_again(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    function = "tests.report.functions:troubled"
    path.write_text(f"name: t\nfunction: {function}\ngrid: {{how: [raises, exits, well]}}\n")
    for _ in range(2):
        ended: list[Ended] = []
        sweep(read_experiment(path), tmp_path / "out", each=TWO, ended=ended.append)
        states = {one.id: one.status.state for one in ended}
        assert states.pop("how=well", "done") == "done"
        assert states == {"how=raises": "failed", "how=exits": "failed"}
    assert len(ended) == 2
    assert list(results(tmp_path / "out")) == ["how=well"]


def test_a_run_that_ends_its_process_is_named_and_stops_no_other(tmp_path: Path) -> None:
    path, out = tmp_path / "t.yaml", tmp_path / "out"
    function = "tests.report.functions:troubled"
    hows = ["process", "killed", "raises", "well", "fine"]
    path.write_text(f"name: t\nfunction: {function}\ngrid: {{how: {hows}}}\n")
    said = {
        "process": ("WorkerError", "a worker died: it left with exit code 9"),
        "killed": (
            "WorkerError",
            "a worker died: killed by signal 9 (SIGKILL); if memory ran out, run it again with fewer --jobs",
        ),
        "raises": ("ZeroDivisionError", "one by nothing"),
    }
    for each in (HERE, TWO):
        ended: list[Ended] = []
        sweep(read_experiment(path), out, each=each, ended=ended.append)
        assert {one.id: one.status.state == "done" for one in ended} == {
            f"how={how}": how not in said for how in (hows if each is HERE else said)
        }
        for how, (kind, message) in said.items():
            status = json.loads((out / f"how={how}" / "status.json").read_text())
            assert (status["state"], status["error"]["type"]) == ("failed", kind)
            assert status["error"]["message"] == message
            manifest = json.loads((out / f"how={how}" / "manifest.json").read_text())
            assert (manifest["parameters"], manifest["tables"]) == ({"how": how}, [])
        runs = [f"how={how}" for how in sorted(hows)]
        assert sorted(os.listdir(out)) == [".mmulab", *runs, "index.html", "sweep.json"]
        assert list(results(out)) == ["how=fine", "how=well"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 400 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path) -> None:
    """Leave no room, not even for a small file."""
    with suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_full_disk_fails_the_run_that_needs_it_and_a_larger_one_goes_on(disk: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "t.yaml", disk / "out"
    path.write_text("name: t\nfunction: tests.report.functions:large\ngrid: {rows: [10, 100000, 20]}\n")
    ended: list[Ended] = []
    sweep(read_experiment(path), out, each=TWO, ended=ended.append)
    failed = [one for one in ended if one.status.error is not None]
    assert [one.id for one in failed] == ["rows=100000"]
    said = json.loads((out / "rows=100000/status.json").read_text())["error"]["message"]
    assert "No space left on device" in said
    assert list(results(out)) == ["rows=10", "rows=20"]
    whole = [".mmulab", "index.html", "rows=10", "rows=100000", "rows=20", "sweep.json"]
    assert sorted(os.listdir(out)) == whole
    subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
    ended.clear()
    sweep(read_experiment(path), out, each=TWO, ended=ended.append)
    assert [(one.id, one.status.state) for one in ended] == [("rows=100000", "done")]
    assert sorted(os.listdir(out)) == whole


def test_a_disk_that_fills_up_costs_the_page_and_no_run(
    make: Make, calls: Callable[[], list[int]], disk: Path
) -> None:
    out = disk / "out"

    def filling(error: type[BaseException] | None) -> Callable[..., Generator[Ended, None, None]]:
        def each(
            function: Callable[[Work], Ended], works: Sequence[Work], *, lost: Lost[Work, Ended]
        ) -> Generator[Ended, None, None]:
            yield function(works[0])
            fill(disk)
            if error is not None:
                raise error
            yield function(works[1])

        return each

    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        sweep(make(1, 2, 3), out, each=filling(KeyboardInterrupt), say=lines.append)
    assert lines == ["interrupted: 1 of 3 runs ended; the same command goes on"]
    (disk / "fill").unlink()
    ended: list[Ended] = []
    full = r"cannot be written \(No space left on device\); make room there$"
    with pytest.raises(InputError, match=f"index.html: {full}"):
        sweep(make(1, 2, 3), out, each=filling(None), ended=ended.append)
    assert [one.status.state for one in ended] == ["done", "failed"]
    assert "No space left on device" in str(ended[1].status.error)
    with pytest.raises(InputError, match=f"sweep.json: {full}"):
        sweep(make(1, 2), out, each=HERE)
    assert sorted(os.listdir(out)) == [".mmulab", "base=1", "base=2", "sweep.json"]
    (disk / "fill").unlink()
    calls()
    sweep(make(1, 2, 3), out, each=HERE)
    assert calls() == [3]
    assert list(results(out)) == ["base=1", "base=2", "base=3"]
    assert (out / "index.html").exists()


def test_only_some(make: Make, calls: Callable[[], list[int]], tmp_path: Path) -> None:
    sweep(make(1, 2, 3), tmp_path / "out", each=HERE, only={"base=2"})
    assert calls() == [2]
    sweep(make(1, 2, 3), tmp_path / "out", each=HERE)
    assert calls() == [1, 3]


def test_runs_that_are_no_longer_of_it_are_dropped(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(make(1, 2), out, each=HERE)
    (out / "notes.txt").write_text("mine")
    sweep(make(2, 3), out, each=HERE)
    assert list(results(out)) == ["base=2", "base=3"]
    assert (out / "notes.txt").exists()


def test_two_at_once_are_refused(make: Make, calls: Callable[[], list[int]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep(make(1), out, each=HERE)
    calls()
    descriptor = os.open(out / ".mmulab", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another sweep is writing this folder"):
        sweep(make(2), out, each=HERE)
    os.close(descriptor)
    assert calls() == []
    assert list(results(out)) == ["base=1"]
    sweep(make(2), out, each=HERE)


def test_folders_of_others_are_left_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(InputError, match="exists and is no earlier output of a sweep"):
        sweep(make(1), tmp_path / "mine", each=HERE)
    with folder.whole(tmp_path / "other") as building:
        (building / "x").touch()
    with pytest.raises(InputError, match="exists and is no earlier output of a sweep"):
        sweep(make(1), tmp_path / "other", each=HERE)
    sweep(make(1), tmp_path / "out", each=HERE)
    with pytest.raises(InputError, match="holds the sweep 't', not 'report'"):
        sweep(of_notebooks([], {}), tmp_path / "out", each=HERE)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        sweep(make(1), tmp_path / "file" / "out", each=HERE)


def test_works_done_elsewhere_come_back_with_their_files(make: Make, tmp_path: Path) -> None:
    sweep(make(1, 2), tmp_path / "here", each=HERE)
    sweep(make(1, 2), tmp_path / "out", each=TWO, elsewhere=True)
    assert results(tmp_path / "out") == results(tmp_path / "here")
    assert (tmp_path / "out/base=1/tables/powers.csv").exists()
    assert [why for _, why in pending(make(1, 2), tmp_path / "out")] == ["", ""]
