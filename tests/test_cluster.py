"""Works on a scheduler's workers: as with processes, also when one is lost; nothing is left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mmulab import cluster, parcel, pool
from mmulab.cluster import Cluster, each
from mmulab.errors import InputError
from mmulab.lab.cases.table import find_cases
from mmulab.lab.designs.compare import compare
from tests.dask_cluster import STARTED, Loopback, loopback
from tests.far_works import Piece, deadly, locked, squared, text_and_place


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """Give a scheduler with two workers; nobody kills them."""
    with loopback(tmp_path_factory.mktemp("workers"), 2) as found:
        yield found


def test_results_are_those_of_processes_in_order(two: Loopback) -> None:
    works = range(20)
    assert list(pool.each(squared, works, Cluster(two.address))) == list(pool.each(squared, works, 2))
    assert sorted(each(squared, works, two.address, in_order=False)) == [n**2 for n in works]
    assert list(each(squared, [], two.address)) == []
    assert pool.width(Cluster(two.address)) == 2
    assert two.forgets()


def test_an_error_comes_in_its_turn_as_what_it_is(two: Loopback) -> None:
    results = []
    with pytest.raises(InputError, match=r"^-3: negative$"):
        results.extend(each(squared, [1, 2, -3, 4], two.address))
    with pytest.raises(TypeError) as found:
        list(each(squared, [1, "two"], two.address))  # type: ignore[list-item]
    assert "in squared" in "".join(found.value.__notes__)
    with pytest.raises(RuntimeError, match=r"cannot be sent: .*lock"):
        list(each(locked, [1], two.address))
    assert two.forgets()


def test_files_go_by_digest_and_stay_with_the_worker(two: Loopback, tmp_path: Path) -> None:
    for folder, text in (("a", "one"), ("b", "other")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "input.txt").write_text(text)
    works = [Piece(str(number), tmp_path / "ab"[number % 2] / "input.txt") for number in range(12)]
    found = list(each(text_and_place, works, two.address))
    assert [text for text, *_ in found] == ["one", "other"] * 6
    assert {name for _, name, *_ in found} == {"input.txt"}
    places = {(text, worker): place for text, _, place, worker in found}
    assert not any(place.startswith(str(tmp_path)) for place in places.values())
    again = list(each(text_and_place, works, two.address))
    assert all(places.get((text, worker), place) == place for text, _, place, worker in again)
    (tmp_path / "a" / "input.txt").write_text("new")
    assert next(each(text_and_place, works[:1], two.address))[0] == "new"


def test_a_file_of_the_checkout_is_not_sent(two: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_keep", None)
    path = Path(parcel.__file__)
    assert next(each(text_and_place, [Piece("own", path)], two.address))[2] == str(path)


def test_whoever_stops_early_leaves_no_future(two: Loopback) -> None:
    with closing(each(squared, range(100), two.address)) as results:
        assert next(results) == 0
    assert two.forgets()


def test_designs_are_compared_as_by_processes(two: Loopback) -> None:
    works = find_cases(["mixed-wp-32", "shadow-32-l0-5", "la57-switch-npt-4to5-l0-5"])
    near = compare(["D0", "D4", "glevel"], works, jobs=2)
    far = compare(["D0", "D4", "glevel"], works, jobs=Cluster(two.address))
    assert far.records() == near.records()
    assert any(cell.verdict == "wrong" for cell in far.cells)


def test_another_mmulab_is_refused_by_name(two: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    here = parcel.side()
    for other, said in (
        (here._replace(package="0" * 64), r"worker tcp:\S+ of tcp:\S+: its mmulab is \S+ \(\w{12}\), here"),
        (here._replace(python="3.9"), "it runs Python 3.1., here is 3.9"),
        (here._replace(data="0" * 64), r"its folder data/ is another"),
    ):
        monkeypatch.setattr(parcel, "side", lambda other=other: other)
        with pytest.raises(InputError, match=said):
            list(each(squared, [1], two.address))
    assert two.forgets()


def test_what_cannot_be_sent_is_refused(two: Loopback) -> None:
    with pytest.raises(InputError, match=r"cannot be sent to another machine: .*lock"):
        list(each(squared, [threading.Lock()], two.address))  # type: ignore[list-item]


@pytest.mark.parametrize("address", ["nonsense", "tcp://", "tcp://127.0.0.1:none", "ftp://127.0.0.1:1"])
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    with pytest.raises(InputError, match=rf"^--scheduler {address}: "):
        list(each(squared, [1], address))


def test_a_scheduler_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(InputError, match="no scheduler answers; start 'dask scheduler'"):
            list(each(squared, [1], address))


def test_a_lost_workers_works_are_repeated(tmp_path: Path) -> None:
    with loopback(tmp_path, 2) as found:
        results = []
        with closing(each(squared, range(200), found.address)) as coming:
            for result in coming:
                results.append(result)
                if len(results) == 3:
                    found.workers[0].kill()
                    found.workers[0].wait()
        assert results == [number**2 for number in range(200)]
        assert found.forgets()


def test_a_work_that_kills_every_worker_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WORKERLESS_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "GATHER_SECONDS", 2.0)
    with loopback(tmp_path, 2) as found:
        with pytest.raises(InputError, match=r"has no worker left; start 'dask worker .*work 2 \(2\)"):
            list(each(deadly, range(4), found.address))
        assert found.forgets()


def test_a_work_that_kills_more_workers_than_allowed_is_named(tmp_path: Path) -> None:
    with loopback(tmp_path, 2, failures=0) as found:
        with pytest.raises(InputError, match=r"work 0 \(2\): workers that died of it: 1, .* given up"):
            list(each(deadly, [2], found.address))
        assert next(each(deadly, [5], found.address)) == 5


def test_a_scheduler_that_goes_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.1)
    with loopback(tmp_path, 0) as found:
        coming = each(squared, range(4), found.address)
        found.scheduler.kill()
        found.scheduler.wait()
        with pytest.raises(InputError, match="no scheduler answers"):
            next(coming)


PROGRAM = """
import signal
from mmulab.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
main.main()
"""
INTERRUPTED = {
    "check": (b"ended=0/2", ["check", "--scope", "ept-64,ept-clear", "--budget", "600", "--json"]),
    "compare": (b"case/s", ["compare", "--designs", "D0,D5", "--json"]),
}
"""What the bar shows, and the command."""


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_command_leaves_the_scheduler_to_others(name: str, two: Loopback) -> None:
    """What is under way ends, what waits is dropped, and a bar tells how far it was."""
    terminal, end = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    bar, args = INTERRUPTED[name]
    command = [sys.executable, "-c", PROGRAM, *args, "--scheduler", two.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, text=True) as process:
        os.close(end)
        assert two.works()
        seen = b""
        while bar not in seen:
            seen += os.read(terminal, 1000)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate()
    while b"interrupted" not in seen:
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert process.returncode == 130
    assert len(json.loads(shown or "[]")) < 2 * 165
    assert two.forgets()
    assert list(each(squared, range(4), two.address)) == [0, 1, 4, 9]


LOOPBACK = """
import sys
import termios
from pathlib import Path
from tests.dask_cluster import loopback

with loopback(Path(sys.argv[1]), 1, nanny=True) as found:
    print(found.scheduler.pid, found.workers[0].pid, flush=True)
    sys.stdin.read()
"""


def test_scheduler_and_workers_of_a_killed_test_go_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOOPBACK, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as test:
        assert test.stdout is not None
        left = [os.pidfd_open(int(pid)) for pid in test.stdout.readline().split()]
        test.kill()
    assert len(left) == 2
    for descriptor in left:
        gone, _, _ = select.select([descriptor], [], [], STARTED)
        os.close(descriptor)
        assert gone
