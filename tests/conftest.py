"""What all tests share: the checkout's paths and how subprocesses find the package."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import settings

from mmulab.cli.main import run
from tests.reported import Reports

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run; no deadline, because a busy machine is no bug.
settings.register_profile("mmulab", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("mmulab")

# Kernels and commands that tests start see this checkout, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


LONG = tuple(str(ROOT / "tests" / name) for name in ("browser", "notebooks"))
"""Folders whose tests take seconds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long tests: what is left for the end is short, and no processor waits for another."""
    items.sort(
        key=lambda item: (item.get_closest_marker("slow") is None, not str(item.path).startswith(LONG))
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


class CommandLine:
    """Runs ``mmulab`` in a folder, its two streams kept apart."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.prepare: Callable[[], object] | None = None  # called in the new process, before the command

    def __call__(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """Run ``mmulab args...`` and return its exit code and texts: here, unless a process is prepared."""
        if self.prepare is not None:
            return self.process(*args)
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", newline="", write_through=True) for _ in range(2)]
        with chdir(self.cwd), redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            code = run(list(map(str, args)))
        texts = [stream.buffer.getvalue().decode("utf-8") for stream in streams]
        return subprocess.CompletedProcess(args, code, *texts)

    def process(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """Run it in a process of its own, the way a user does."""
        command = [sys.executable, "-m", "mmulab.cli.main", *map(str, args)]
        return subprocess.run(
            command, cwd=self.cwd, capture_output=True, text=True, check=False, preexec_fn=self.prepare
        )

    def error(self, *args: str | Path) -> str:
        """Run a command that must refuse its input, and return the one line that it says."""
        done = self(*args)
        assert done.returncode == 2, done
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("mmulab: ")
        return lines[0].removeprefix("mmulab: ")


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    """The command line, run in an empty folder."""
    return CommandLine(tmp_path)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """The reports on small parameters that all tests share, in whichever process they run."""
    own = tmp_path_factory.getbasetemp()
    return Reports((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "reported")


@pytest.fixture(scope="session")
def small_report(reported: Reports) -> Path:
    """The folder of a report on the small notebook that the tests keep for themselves."""
    return reported("small").index.parent


@pytest.fixture(scope="session")
def boot_report(reported: Reports) -> Path:
    """The folder of a report on the first 20,000 records of the real boot."""
    return reported("real_boot").index.parent
