"""Output folders: whole or not at all, and never somebody else's."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.report.folder import whole


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with whole(target) as building:
        (building / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert contents(target.parent) == ["out"]


def test_earlier_output_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("a", "b"):
        with whole(target) as building:
            (building / name).touch()
    assert (target / "b").exists()
    assert not (target / "a").exists()
    assert contents(tmp_path) == ["out"]


def test_error_leaves_the_earlier_output(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with whole(target) as building:
        (building / "a").touch()
    before = contents(target)
    with pytest.raises(IsADirectoryError), whole(target) as building:
        building.write_text("a folder is no file")
    assert contents(target) == before
    assert contents(tmp_path) == ["out"]


def test_somebody_elses_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear").touch()
    with (
        pytest.raises(InputError, match="letters: exists and is no earlier output"),
        whole(tmp_path / "letters"),
    ):
        pytest.fail("the block ran")
    assert contents(tmp_path / "letters") == ["dear"]


def test_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole(tmp_path / "out") as building:
        (building / "a").touch()
    assert (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("below", ["out", "deep/out"])
def test_folder_that_cannot_be_written(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), whole(tmp_path / "file" / below):
        pytest.fail("the block ran")
    assert contents(tmp_path) == ["file"]


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="no earlier output"), whole(tmp_path / "out"):
        pytest.fail("the block ran")
    assert (tmp_path / "out").read_text() == "mine"


KILLED = """
import os, signal, sys
import resource
import signal
import subprocess
import sys
from pathlib import Path
from mmulab.report import folder

exchange, rename = folder._exchange, Path.rename
left = int(sys.argv[2])

def step(do):
    def stepping(*args):
        global left
        done = do(*args)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return stepping

folder._exchange = step(exchange) if sys.argv[3] == "exchange" else lambda one, other: False
Path.rename = step(rename)
with folder.whole(Path(sys.argv[1])) as building:
    (building / "new").touch()
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("way", "moment", "stands"),
    [("exchange", 0, "old"), ("exchange", 1, "new"), ("renames", 1, "old"), ("renames", 2, "new")],
)
def test_killed_at_any_step_the_earlier_or_the_new_output_stands(
    tmp_path: Path, way: str, moment: int, stands: str
) -> None:
    target = tmp_path / "out"
    with whole(target) as building:
        (building / "old").touch()
    done = subprocess.run([sys.executable, "-c", KILLED, target, str(moment), way], check=False)
    assert done.returncode == -signal.SIGKILL
    if (way, moment) != ("renames", 1):  # else it stands under a name of its own until the next run
        assert contents(target) == [".mmulab", stands]
    with pytest.raises(IsADirectoryError), whole(target) as building:
        building.write_text("a folder is no file")
    assert contents(target) == [".mmulab", stands]
    assert contents(tmp_path) == ["out"]


def test_what_killed_runs_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    names = {".out.abcdefgh": "ours", ".out.ijklmnop": "", ".out.qrstuvwx": "letters", ".out.notes": "ours"}
    for name, kind in names.items():
        (tmp_path / name).mkdir()
        if kind:
            (tmp_path / name / kind).touch()
        if kind == "ours":
            (tmp_path / name / ".mmulab").touch()
    with whole(tmp_path / "out") as building, whole(tmp_path / "out") as other:
        assert building.exists()  # a living run's is locked
        assert other.exists()
    assert contents(tmp_path) == [".out.notes", ".out.qrstuvwx", "out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    with whole(tmp_path / "real"):
        pass
    (tmp_path / "link").symlink_to("real")
    with whole(tmp_path / "link") as building:
        (building / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == [".mmulab", "a"]
    assert contents(tmp_path) == ["link", "real"]


def test_error_leaves_no_parents(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), whole(tmp_path / "a" / "b" / "out") as building:
        building.write_text("a folder is no file")
    assert contents(tmp_path) == []


def test_full_disk_is_one_line_and_leaves_the_earlier_output(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from mmulab import files
from mmulab.report.folder import whole
with whole(Path(sys.argv[1])) as building, files.disk_errors_of(Path(sys.argv[1])):
    (building / "a").write_text("x" * 100_000)
"""
    target = tmp_path / "out"
    with whole(target) as building:
        (building / "earlier").touch()
    done = subprocess.run(
        [sys.executable, "-c", program, target],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    said = f"{target}: cannot be written (File too large); raise the limit on a file's size (ulimit -f)"
    assert done.stderr.splitlines()[-1] == f"mmulab.errors.InputError: {said}"
    assert contents(target) == [".mmulab", "earlier"]
    assert contents(tmp_path) == ["out"]
