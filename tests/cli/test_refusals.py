"""Every command that takes or makes a file says in one line what a path is instead, and does not wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmulab.cli import main

ROOT = Path(__file__).parents[2]
SCENARIO = str(ROOT / "tests/scenario/examples/first_fault.mmu")

READERS = {
    "run": ("run", "{}.mmu"),
    "run-recording": ("run", "{}.jsonl"),
    "run-design": ("run", SCENARIO, "--design", "{}.py:X"),
    "step": ("step", "{}.mmu"),
    "step-recording": ("step", "{}.mmr"),
    "conform": ("conform", "{}.jsonl"),
    "translate": ("translate", "{}.npz"),
    "replay": ("replay", "{}.npz"),
    "bench": ("bench", "--replay", "{}.npz"),
    "compare": ("compare", "--designs", "{}.py:X"),
    "cases-design": ("cases", "la57-switch-npt-4to5-l0-5", "--design", "{}.py:X"),
}
KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "fifo": (os.mkfifo, "a FIFO"),
    "endless": (lambda path: path.symlink_to("/dev/zero"), "a character device"),
    "loop": (lambda path: path.symlink_to(path), "a loop of symbolic links"),
}
EMPTY = {
    name: tuple("" if "{}." in word and word[-2:] != ":X" else word for word in args)
    for name, args in READERS.items()
    if not any(word.endswith(":X") for word in args)
}


def refusal(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process that must refuse, and return its one line."""
    assert main.run(args) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("mmulab: ")
    return line.removeprefix("mmulab: ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_said_as_what_it_is(
    reader: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = tuple(word.replace("{}", str(tmp_path / "x")) for word in READERS[reader])
    path = next(word for word in args if word.startswith(str(tmp_path))).removesuffix(":X")
    make, says = KINDS[kind]
    make(Path(path))
    line = refusal(args, capsys)
    assert path in line
    if (reader, kind) not in {("run", "missing"), ("step", "missing"), ("conform", "folder")}:
        assert says in line
    assert list(tmp_path.iterdir()) in ([], [Path(path)])


@pytest.mark.parametrize("reader", EMPTY)
def test_an_empty_name_is_said(reader: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name is empty" in refusal(EMPTY[reader], capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read(reader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = tuple(word.replace("{}", str(tmp_path / "x")) for word in READERS[reader])
    path = Path(next(word for word in args if word.startswith(str(tmp_path))).removesuffix(":X"))
    path.write_bytes(b"x")
    path.chmod(0)
    assert "may not be read" in refusal(args, capsys)


@pytest.mark.parametrize("option", ["--save", "--page"])
@pytest.mark.parametrize(
    ("name", "says"), [("", "the file's name is empty"), ("/", "/: a folder"), (".", ".: a folder")]
)
def test_a_name_that_no_file_can_take(
    option: str, name: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusal(("step", SCENARIO, option, name), capsys)


@pytest.mark.parametrize(
    ("name", "says"), [("", "the file's name is empty"), ("/dev/null/x", "/dev/null/x: the folder cannot be")]
)
def test_a_report_needs_a_folder(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert says in refusal(("report", "--notebook", "first_fault", "--out", name), capsys)
