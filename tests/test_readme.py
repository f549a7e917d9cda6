"""The README's commands are ones that there are, and its sweep goes as it says."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from distributed.cli import dask_scheduler, dask_worker

from mmulab.cli.main import COMMANDS
from tests.conftest import CommandLine
from tests.dask_cluster import loopback

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
SWEEPS = TEXT[TEXT.index("\n## Sweeps\n") : TEXT.index("\n## A scenario by hand\n")]
DASK = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """Return the command lines of the shell blocks, in words, without comments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("words", commands(TEXT), ids=" ".join)
def test_a_command_is_one_that_there_is(words: list[str]) -> None:
    program, *rest = words
    if program == "mmulab":
        module, name = COMMANDS[rest[0]].target.split(":")
        getattr(import_module(module), name).make_context(rest[0], rest[1:])
    elif program == "dask":
        DASK[rest[0]].make_context(rest[0], rest[1:])
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.M)
    else:
        assert program == "papermill"
        assert (ROOT / rest[0]).is_file()


def test_the_sweep_goes_as_it_says(command: CommandLine, tmp_path: Path) -> None:
    (file,) = blocks(SWEEPS, "yaml")
    (tmp_path / "la57.yaml").write_text(file)
    assert len(file.splitlines()) <= 10
    near = [words[1:] for words in commands(SWEEPS) if words[0] == "mmulab" and "--scheduler" not in words]
    done = [command(*words) for words in near]
    assert [one.returncode for one in done] == [0] * len(near)
    dry, first, again, verified, results = (one.stdout for one in done)
    assert dry == "".join(f"design={name}: missing\n" for name in ("D0", "D1", "D4"))
    assert first == "la57: 3 of 3 runs done, 0 failed\nout/sweeps/la57/index.html\n"
    assert "3 as before" in again
    assert verified == "verify: 3 of 3 runs equal\n"
    assert results in blocks(SWEEPS, "")


def test_the_sweep_goes_on_a_scheduler(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "la57.yaml").write_text(blocks(SWEEPS, "yaml")[0])
    (far,) = [words[1:] for words in commands(SWEEPS) if words[0] == "mmulab" and "--scheduler" in words]
    with loopback(tmp_path / "workers", 1) as found:
        done = command(*(word.replace("tcp://HOST:8786", found.address) for word in far))
    assert (done.returncode, done.stdout) == (0, "la57: 3 of 3 runs done, 0 failed\nout/far/index.html\n")


def test_each_ready_sweep_is_named() -> None:
    ready = sorted(path.name for path in (ROOT / "notebooks/sweeps").glob("*.yaml"))
    assert sorted(re.findall(r"`(\w+\.yaml)`", SWEEPS)) == ready
