"""Commands stopped at any moment: what is finished is whole, the earlier result stays, no process is left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

from mmulab import files
from mmulab.report import folder
from mmulab.trace.file import open_recording

ROOT = Path(__file__).resolve().parents[2]
MARK = "MMULAB_TEST_MARK"
MOMENTS = 20
USUAL = {signal.SIGINT: 11, signal.SIGTERM: 15, signal.SIGKILL: 18}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
SAID = {130: "mmulab: interrupted\n", 143: "mmulab: terminated\n"}

# The command line with other notebooks than the project's; tests may run in the background, where SIGINT is
# ignored.
PROGRAM = """
import signal
from pathlib import Path
from mmulab.cli import main
from mmulab import paths

paths.notebooks = lambda: sorted(Path("notebooks").resolve().glob("*.ipynb"))
signal.signal(signal.SIGINT, signal.default_int_handler)
main.main()
"""


class Command(NamedTuple):
    """A command, what it finds and what must hold after it was stopped."""

    args: Sequence[str | Path]
    prepare: Callable[[Path], None]
    check: Callable[[Path, bool], None]
    check_output: Callable[[str, bool], None]


def nothing(_folder: Path) -> None:
    """Prepare nothing."""


# report -----------------------------------------------------------------------


def two_notebooks_and_an_earlier_report(place: Path) -> None:
    (place / "notebooks").mkdir()
    for name in ("one", "two"):
        cells = [
            nbformat.v4.new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("seed"),
        ]
        kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata=kernel), place / "notebooks" / f"{name}.ipynb"
        )
    with folder.whole(place / "out") as building:
        for name in ("one", "two"):
            with folder.whole(building / name) as earlier:
                (earlier / f"{name}.html").write_text("earlier</html>")
        (building / "index.html").write_text("earlier</html>")
        record = {"name": "report", "title": "earlier", "file": None, "runs": []}
        (building / "sweep.json").write_text(json.dumps(record))


def check_report(place: Path, killed: bool) -> None:
    out = place / "out"
    if killed:  # the next run sweeps
        folder.sweep_killed(out)
    assert sorted(path.name for path in place.iterdir()) == ["notebooks", "out"]
    left = [path.name for path in out.iterdir() if not (killed and path.name.startswith(".index.html."))]
    left = [name for name in left if not (killed and name.startswith(".sweep.json."))]
    assert sorted(left) == [".mmulab", "index.html", "one", "sweep.json", "two"]
    for name in ("index.html", "one/one.html", "two/two.html"):
        assert (out / name).read_text().rstrip().endswith("</html>")
    for name in ("one", "two"):  # of the earlier report, or whole
        fresh = (out / name / f"{name}.html").read_text() != "earlier</html>"
        assert (out / name / "results.parquet").exists() == fresh
        assert not fresh or json.loads((out / name / "status.json").read_text())["state"] == "done"


def check_report_output(text: str, finished: bool) -> None:
    assert not finished or text.endswith("index.html\n")
    assert "failed" not in text.replace("0 failed", "")


# replay -----------------------------------------------------------------------


def an_earlier_recording(place: Path) -> None:
    (place / "x.mmr").write_bytes(b"earlier")


def check_recording(place: Path, killed: bool) -> None:
    path = place / "x.mmr"
    content = path.read_bytes()
    if killed:  # the next writing sweeps
        files.write_bytes(path, content)
    assert [entry.name for entry in place.iterdir()] == ["x.mmr"]
    if content != b"earlier":
        recording = open_recording(path)
        assert recording.visit(recording.moment(len(recording) - 1)).digest()


def check_replay_output(text: str, finished: bool) -> None:
    lines = text.splitlines()
    assert not lines or lines[-1].startswith("replay: accesses ")
    assert not finished or not any(line.startswith("interrupted ") for line in lines)


# conform and compare ------------------------------------------------------------


def check_nothing_written(place: Path, _killed: bool) -> None:
    assert list(place.iterdir()) == []


def check_conform_output(text: str, finished: bool) -> None:
    if not text:
        assert not finished
        return
    answer = json.loads(text)
    done = len(answer["recordings"])
    assert answer["scenarios"] == {"agree": done, "total": done}
    assert answer.get("not_run", 0) == RECORDINGS - done
    assert answer.get("interrupted", False) == (done < RECORDINGS)
    assert not finished or done == RECORDINGS


def check_compare_output(text: str, finished: bool) -> None:
    if not text:
        assert not finished
        return
    cells = json.loads(text)
    assert len(cells) % 2 == 0
    assert {cell["design"] for cell in cells} <= {"D0", "D5"}


def check_diff_output(text: str, finished: bool) -> None:
    if not text:
        assert not finished
        return
    answer = json.loads(text)
    done = answer["scenarios"]["total"]
    assert answer["scenarios"]["differ"] == 0
    assert answer.get("not_run", 0) == len(_TDP) - done
    assert answer.get("interrupted", False) == (done < len(_TDP))
    assert not finished or done == len(_TDP)


def check_found(place: Path, _killed: bool) -> None:
    assert list(place.glob("found/*")) == []


def check_check_output(text: str, finished: bool) -> None:
    lines = text.splitlines()
    assert not lines or lines[-1].startswith("check: found ")
    assert not finished or lines


_TDP = sorted((ROOT / "data/conformance/6.1.192/tdp0").iterdir())
_FUZZ = sorted((ROOT / "data/conformance/6.1.192/sh").glob("fuzz-32-*"))
RECORDINGS = len(_FUZZ)
COMMANDS = {
    "report": Command(
        ["report", "--out", "out", "--jobs", "2"],
        two_notebooks_and_an_earlier_report,
        check_report,
        check_report_output,
    ),
    "replay": Command(
        ["replay", ROOT / "data/stream/boot-686-nonpae.npz", "--record", "x.mmr", "--limit", "10000"],
        an_earlier_recording,
        check_recording,
        check_replay_output,
    ),
    "conform": Command(
        ["conform", *_FUZZ, "--json", "--jobs", "2"], nothing, check_nothing_written, check_conform_output
    ),
    "compare": Command(
        ["compare", "--designs", "D0,D5", "--cases", "shadow-*", "--json", "--jobs", "2"],
        nothing,
        check_nothing_written,
        check_compare_output,
    ),
    "diff": Command(
        ["diff", _TDP[0].parent, "model", "--json", "--jobs", "2"],
        nothing,
        check_nothing_written,
        check_diff_output,
    ),
    "check": Command(
        ["check", "--scope", "paths-32,shadow-64", "--budget", "2", "--out", "found", "--jobs", "2"],
        nothing,
        check_found,
        check_check_output,
    ),
}


# The runs -----------------------------------------------------------------------


class Run:
    """A command in a session and a folder of its own."""

    def __init__(self, command: Command, place: Path) -> None:
        place.mkdir()
        command.prepare(place)
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, command.args)],
            cwd=place,
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._until_it_has_its_handlers()

    def _until_it_has_its_handlers(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        while not self.ends_within(0.001):
            caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
            if int(caught.split()[1], 16) >> signal.SIGTERM - 1 & 1:
                return

    def ends_within(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            return True
        return False

    def stop(self, number: signal.Signals) -> None:
        """Send a signal as it comes: Ctrl-C to all of the terminal's group, others to the process."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def left(self) -> list[int]:
        """Return the processes of this run that are still there."""
        return list(self._marked())

    def _marked(self) -> Iterator[int]:
        wanted = f"{MARK}={self.mark}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if wanted in path.read_bytes().split(b"\0"):
                    yield int(path.parent.name)

    def wait_for_the_others(self) -> None:
        """Wait until no process of this run is there; a kernel looks for its parent once a second."""
        for pid in self.left():
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                gone, _, _ = select.select([descriptor], [], [], 30)
                os.close(descriptor)
                assert gone, Path(f"/proc/{pid}/cmdline").read_bytes()
        assert self.left() == []


@pytest.fixture(scope="session")
def whole_time(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], float]:
    """Seconds that a command takes, by its name, when nobody stops it."""
    known: dict[str, float] = {}

    def measure(name: str) -> float:
        if name not in known:
            run = Run(COMMANDS[name], tmp_path_factory.mktemp("whole") / name)
            begin = time.monotonic()
            out, err = run.process.communicate()
            seconds = time.monotonic() - begin
            assert (run.process.returncode, err) == (0, "")
            COMMANDS[name].check_output(out, True)
            known[name] = seconds
        return known[name]

    return measure


def stop_at(name: str, number: signal.Signals, seconds: float, place: Path) -> None:
    command = COMMANDS[name]
    run = Run(command, place)
    if not run.ends_within(seconds):
        run.stop(number)
    out, err = run.process.communicate()
    run.wait_for_the_others()
    code = run.process.returncode
    killed = code == -signal.SIGKILL
    assert code in (0, CODES[number]), err
    assert err == SAID.get(code, "")
    if not killed:  # else even a line of its output may be cut
        command.check_output(out, code == 0)
    command.check(place, killed)


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_at_a_moment(
    name: str, number: signal.Signals, whole_time: Callable[[str], float], tmp_path: Path
) -> None:
    """Each signal at a moment of its own in the second half, where there are results."""
    moment = USUAL[number]
    stop_at(name, number, whole_time(name) * moment / MOMENTS, tmp_path / str(moment))


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_at_any_moment(
    name: str, number: signal.Signals, whole_time: Callable[[str], float], tmp_path: Path
) -> None:
    """The signals take turns, so that one comes at every fourth moment."""
    turn = list(CODES).index(number)
    for moment in range(4 * turn, MOMENTS, 4 * len(CODES)):
        stop_at(name, number, whole_time(name) * moment / MOMENTS, tmp_path / str(moment))


# record: it waits for a host that never comes up ----------------------------------

FAKES = {
    "qemu-system-x86_64": "#!/bin/sh\n: > started\nexec sleep 1000\n",
    "cc": '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n',
}
RECORD = ["record", ROOT / "tests/scenario/examples/first_fault.mmu", "--kernel", "bzImage", "--out", "out"]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator and a compiler that do nothing, and folders of the test's own."""
    programs = tmp_path / "bin"
    for name in ("bin", "tmp"):
        (tmp_path / name).mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stop_record(number: signal.Signals, place: Path) -> None:
    command = Command(RECORD, lambda at: (at / "bzImage").touch(), check_nothing_written, lambda *_: None)
    run = Run(command, place)
    while not (place / "started").exists():
        assert not run.ends_within(0.01), run.process.stderr
    run.stop(number)
    out, err = run.process.communicate()
    run.wait_for_the_others()
    assert (run.process.returncode, out, err) == (CODES[number], "", SAID.get(CODES[number], ""))
    assert sorted(path.name for path in place.iterdir()) == ["bzImage", "out", "started"]
    assert list((place / "out").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_record_stopped_while_it_waits_for_the_boot(
    number: signal.Signals, fakes: None, tmp_path: Path
) -> None:
    stop_record(number, tmp_path / "place")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_next_record_sweeps_what_a_killed_one_left(fakes: None, tmp_path: Path) -> None:
    stop_record(signal.SIGKILL, tmp_path / "first")
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    stop_record(signal.SIGTERM, tmp_path / "second")
    assert list((tmp_path / "tmp").iterdir()) == []
