"""A scheduler and workers of dask.distributed as processes on loopback, for tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, Scheduler

ROOT = Path(__file__).resolve().parents[1]
MORTAL = """
import ctypes, os, runpy, signal, sys

PR_SET_PDEATHSIG = 1  # prctl(2)
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
parent, program = int(sys.argv.pop(1)), sys.argv.pop(1)
if os.getppid() == parent:  # else it has gone already
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""
"""Runs a module in a process that is killed when its parent goes, even if that is killed itself."""
STARTED = 60
"""Seconds in which all must have come up; a test that waits longer fails."""


class Loopback:
    """A scheduler, its address, and its workers' processes.

    Parameters
    ----------
    folder : Path
        What the workers keep lies there.
    failures : int
        Workers that may die of a work before it is given up.
    """

    def __init__(self, folder: Path, failures: int = 3) -> None:
        self.folder = folder
        self.environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(failures)}
        self.workers: list[subprocess.Popen[str]] = []
        self.scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        self.address = self._said(self.scheduler, "Scheduler at:")

    def _start(self, program: str, *options: str) -> subprocess.Popen[str]:
        run = (sys.executable, "-c", MORTAL, str(os.getpid()), f"distributed.cli.{program}")
        command = [*run, "--no-dashboard", *options]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, **pipes)

    def _said(self, process: subprocess.Popen[str], words: str) -> str:
        """Return what a process says behind some words; what it says later is read and dropped."""
        assert process.stderr is not None
        for line in process.stderr:
            if words in line:
                threading.Thread(target=process.stderr.read, daemon=True).start()
                return line.rpartition(words)[2].strip()
        raise AssertionError(f"{process.args} ended before it said {words!r}")

    def add(self, count: int, *, nanny: bool = False) -> None:
        """Start workers of one thread, and wait until the scheduler has them; a nanny replaces a dead one."""
        options = ("--host", "127.0.0.1", "--nthreads", "1", "--nanny" if nanny else "--no-nanny")
        place = ("--local-directory", str(self.folder))
        new = [self._start("dask_worker", self.address, *options, *place) for _ in range(count)]
        self.workers += new
        for process in new:
            self._said(process, "Registered to:")

    def client(self) -> Client:
        """Return a client of the test's own."""
        return Client(self.address, timeout=STARTED, set_as_default=False)

    def works(self) -> bool:
        """Whether each worker comes to have a task under way."""

        async def busy(dask_scheduler: Scheduler) -> bool:
            for _ in range(STARTED * 100):
                if all(worker.processing for worker in dask_scheduler.workers.values()):
                    return True
                await asyncio.sleep(0.01)
            return False

        with self.client() as client:
            return bool(client.run_on_scheduler(busy))

    def forgets(self) -> bool:
        """Whether the scheduler comes to know no task any more; some are on their way out when asked."""

        async def empty(dask_scheduler: Scheduler) -> bool:
            for _ in range(STARTED * 100):
                if not dask_scheduler.tasks:
                    return True
                await asyncio.sleep(0.01)
            return False

        with self.client() as client:
            return bool(client.run_on_scheduler(empty))

    def end(self) -> None:
        """End all that is left."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@contextmanager
def loopback(folder: Path, workers: int, failures: int = 3, *, nanny: bool = False) -> Iterator[Loopback]:
    """Run a scheduler with workers."""
    cluster = Loopback(folder, failures)
    try:
        cluster.add(workers, nanny=nanny)
        yield cluster
    finally:
        cluster.end()
