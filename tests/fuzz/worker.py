"""One fuzzer in a process of its own: changes inputs, gives them to the target, writes what it finds.

The parent (:mod:`tests.fuzz.run`) reads ``status.json`` and ``input`` in the
working folder: how far this process is, and what it was given last, if it died
of it or hangs where no Python signal handler runs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

INPUT_SECONDS = 10
"""What one input may take."""
MEMORY_MIB = 2048
"""What the process may hold. A guest's memory is mapped whole, and held where it is touched."""
TOO_LARGE = 77
"""Exit code of a process that held more, once its finding is written."""
_MAPPED = 80 << 30
"""Bytes that may be mapped: more than the largest guest has."""
_REDUCE_SECONDS = 5
_LINES, _LINE = 100, 300
"""Lines of a traceback that are kept, and characters of each."""
_POOL = 200
"""Inputs that are kept to be changed further, when coverage does not choose."""


TOO_MUCH = "memory beyond the limit"


class Hang(BaseException):
    """An input took longer than it may; no handler of the code under test catches it."""


class MessageError(Exception):
    """The error that is no finding says something that it may not say."""


def write_finding(folder: Path, data: bytes, kind: str, text: str) -> Path:
    """Write an input and what it led to, unless a shorter one led there already; return the input's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{hashlib.sha256(text.splitlines()[0].encode()).hexdigest()[:8]}"
    if not path.exists() or len(data) < path.stat().st_size:
        path.write_bytes(data)
        path.with_name(path.name + ".txt").write_text(
            text + "\n", encoding="utf-8", errors="backslashreplace"
        )
    return path


def peak() -> int:
    """Return the most bytes that this program held so far.

    ``ru_maxrss`` is of the process: that it was forked by a large one counts too. 0 without /proc.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def signature(error: BaseException) -> str:
    """Return the error's type and where it was raised: the last place in mmulab, else the last one."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if f"{os.sep}mmulab{os.sep}" in frame.filename] or list(frames)
    if isinstance(error, (RecursionError, Hang, MemoryError)):  # where it is raised differs from time to time
        inside = inside[:6]
    last = inside[-1] if inside else None
    place = f"{os.sep.join(last.filename.split(os.sep)[-3:])}:{last.name}" if last else "nowhere"
    return f"{type(error).__name__} at {place}"


class Fuzzer:
    """Gives inputs to a target and keeps count.

    Parameters
    ----------
    reader : tests.fuzz.targets.Reader
    allowed : type
        The error that is no finding.
    wrong_message : callable
        Says what is wrong with the message of such an error; "" if nothing.
    findings : pathlib.Path
        Folder for what is found.
    memory : int
        Bytes that the process may hold.
    """

    def __init__(
        self,
        reader: Any,
        allowed: type[Exception],
        wrong_message: Callable[[str], str],
        findings: Path,
        memory: int = MEMORY_MIB << 20,
    ) -> None:
        self.reader = reader
        self.allowed = allowed
        self.wrong_message = wrong_message
        self.findings = findings
        self.memory = memory
        self.seen: set[str] = set()
        self.inputs = 0
        self.began = time.monotonic()
        self.last = os.open("input", os.O_CREAT | os.O_RDWR)
        signal.signal(signal.SIGALRM, self._hangs)

    def _hangs(self, number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {INPUT_SECONDS} s")

    def __call__(self, data: bytes) -> None:
        """Try one input; write it if it is a finding of a new kind."""
        os.ftruncate(self.last, 0)
        os.pwrite(self.last, data, 0)
        self.inputs += 1
        error = self.attempt(data)
        if error is not None and signature(error) not in self.seen:
            self.seen.add(signature(error))
            self._report(data, error)
        grown = peak() > self.memory
        if grown:
            self.seen.add(TOO_MUCH)
            write_finding(self.findings, data, "memory", f"{TOO_MUCH}: {peak() >> 20} MiB")
        self.tell()
        if grown:  # the peak stays: what comes next needs another process
            os._exit(TOO_LARGE)

    def attempt(self, data: bytes) -> BaseException | None:
        """Return what is wrong with how the target takes `data`."""
        signal.setitimer(signal.ITIMER_REAL, INPUT_SECONDS)
        try:
            self._hold(data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the target lets through is what is looked for
            return error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return None

    def _hold(self, data: bytes) -> None:
        try:
            self.reader.target(data)
        except self.allowed as error:
            if wrong := self.wrong_message(str(error)):
                raise MessageError(wrong).with_traceback(error.__traceback__) from None

    def _report(self, data: bytes, error: BaseException) -> None:
        where = signature(error)
        if not isinstance(error, (Hang, MemoryError)):
            data, error = self._reduced(data, error, where)
        last = " ".join(f"{type(error).__name__}: {error}".split())[:_LINE]
        shown = "".join(traceback.format_exception(error)).splitlines()
        lines = [where, last.removesuffix(":"), "", *(line[:_LINE] for line in shown[-_LINES:])]
        write_finding(self.findings, data, type(error).__name__, "\n".join(lines))

    def _reduced(self, data: bytes, error: BaseException, where: str) -> tuple[bytes, BaseException]:
        """Leave out lines as long as the same thing is found."""
        lines, end, size = data.split(b"\n"), time.monotonic() + _REDUCE_SECONDS, len(data)
        step = max(1, len(lines) // 2)
        while step and size < 1 << 18:
            for at in range(len(lines) - step, -1, -step):
                if time.monotonic() > end:
                    return b"\n".join(lines), error
                fewer = lines[:at] + lines[at + step :]
                found = self.attempt(b"\n".join(fewer))
                if found is not None and signature(found) == where:
                    lines, error = fewer, found
            step //= 2
        return b"\n".join(lines), error

    def tell(self) -> None:
        """Write how far this is."""
        status = {
            "inputs": self.inputs,
            "seconds": time.monotonic() - self.began,
            "peak": peak(),
            "findings": sorted(self.seen),
        }
        temporary = Path(".status.json")
        temporary.write_text(json.dumps(status))
        os.replace(temporary, "status.json")


def run_seeded(fuzzer: Fuzzer, seeds: list[bytes], seed: int, seconds: float) -> None:
    """Change the seeds, and what came of them, at random."""
    rng = Random(seed)
    pool = list(seeds)
    for data in seeds:
        fuzzer(data)
    while time.monotonic() - fuzzer.began < seconds:
        chosen = seeds if rng.randrange(2) else pool
        data = fuzzer.reader.mutate(rng, rng.choice(chosen))
        fuzzer(data)
        if rng.randrange(10) == 0 and len(data) < 1 << 20:
            if len(pool) < _POOL:
                pool.append(data)
            else:
                pool[rng.randrange(len(seeds), _POOL)] = data


def run_guided(atheris: Any, fuzzer: Fuzzer, seeds: list[bytes], seed: int, seconds: float) -> None:
    """Let libFuzzer choose what to change by what code it reached."""
    folder = Path("seeds")
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (folder / str(number)).write_bytes(data)

    def change(data: bytes, size: int, number: int) -> bytes:
        changed: bytes = fuzzer.reader.mutate(Random(number), data)
        return changed[:size]

    options = [f"-seed={seed % (1 << 31) + 1}", f"-max_total_time={max(1, round(seconds))}", "-max_len=20000"]
    options += ["-timeout=1000", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(folder)], fuzzer, custom_mutator=change)
    atheris.Fuzz()


def main() -> None:
    """Run one reader's fuzzer in the present folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table", help="module with TARGETS, seeds, wrong_message and InputError")
    parser.add_argument("reader")
    parser.add_argument("findings", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--memory", type=int, default=MEMORY_MIB)
    parser.add_argument("--guided", action="store_true")
    given = parser.parse_args()
    table = importlib.import_module(given.table)
    atheris = None
    if given.guided and table.TARGETS[given.reader].guided:
        atheris = _instrumented(given.table)
        table = importlib.import_module(given.table)
    seeds = table.seeds(given.reader)
    resource.setrlimit(resource.RLIMIT_AS, (_MAPPED, resource.getrlimit(resource.RLIMIT_AS)[1]))
    fuzzer = Fuzzer(
        table.TARGETS[given.reader], table.InputError, table.wrong_message, given.findings, given.memory << 20
    )
    if atheris is None:
        run_seeded(fuzzer, seeds, given.seed, given.seconds)
    else:
        run_guided(atheris, fuzzer, seeds, given.seed, given.seconds)


def _instrumented(table: str) -> Any:
    """Import what the target needs once more, so that it counts the code that it reaches."""
    atheris = importlib.import_module("atheris")
    for name in [name for name in sys.modules if name.split(".")[0] == "mmulab" or name.startswith("tests.")]:
        del sys.modules[name]
    # numba compiles from bytecode and cannot read what counts.
    with atheris.instrument_imports(include=["mmulab"], exclude=["mmulab.x86.batch"]):
        importlib.import_module(table)
    return atheris


if __name__ == "__main__":
    main()
