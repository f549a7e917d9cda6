"""Run the fuzzers: ``python -m tests.fuzz.run --seconds 10 --jobs 2``.

Each reader runs in a process of its own, with 2 GiB of memory and ten seconds
for an input. What is found is written to ``out/fuzz/READER``: the input, and
beside it the traceback. The exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.worker import INPUT_SECONDS, MEMORY_MIB, TOO_LARGE, TOO_MUCH, write_finding

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = "tests.fuzz.targets"
_GRACE = 20
"""Seconds for a start, beyond what an input may take, before a process that tells nothing is ended."""
_POLL = 0.2
_PAUSE = 1.0
"""Least seconds that are worth another start."""


class Count(NamedTuple):
    """What one reader's fuzzer did."""

    reader: str
    inputs: int
    seconds: float
    findings: int
    peak: int


def fuzz(
    reader: str,
    seconds: float,
    seed: int,
    out: Path,
    *,
    table: str = TABLE,
    guided: bool = False,
    memory: int = MEMORY_MIB,
) -> Count:
    """Fuzz one reader; a process that dies or hangs is a finding and is started again."""
    folder = out / reader
    inputs, peak, spent, found = 0, 0, 0.0, set()
    with tempfile.TemporaryDirectory(prefix="mmulab-fuzz-") as work:
        while seconds - spent > _PAUSE or not spent:
            status, log, ended = _process(
                [
                    table,
                    reader,
                    str(folder),
                    f"--seconds={seconds - spent}",
                    f"--seed={seed}",
                    f"--memory={memory}",
                ]
                + ["--guided"] * guided,
                Path(work),
                seconds - spent,
                memory << 20,
            )
            inputs += status["inputs"]
            peak = max(peak, status["peak"])
            spent += max(status["seconds"], _PAUSE)
            found |= set(status["findings"])
            if ended:
                last = Path(work, "input")
                data = last.read_bytes() if last.exists() else b""
                write_finding(folder, data, ended.split()[0], f"{ended}\n\n{log[-6000:]}")
                found.add(ended)
            seed += 1
    return Count(reader, inputs, spent, len(found), peak)


def _process(args: list[str], work: Path, seconds: float, memory: int) -> tuple[dict[str, Any], str, str]:
    """Run one process to its end; return its status, what it printed and how it failed, if it did."""
    status_file = work / "status.json"
    status_file.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    command = [sys.executable, "-m", "tests.fuzz.worker", *args]
    log_file = work / "log"
    ended = ""
    with log_file.open("wb") as log:
        child = subprocess.Popen(
            command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            ended = _watch(child, status_file, time.monotonic() + seconds, memory)
        finally:
            child.kill()
            child.wait()
    text = log_file.read_text("utf-8", "replace")
    if not ended and child.returncode not in (0, TOO_LARGE):
        ended = f"died with exit code {child.returncode}"
    try:
        status = json.loads(status_file.read_text())
    except FileNotFoundError:
        status = {"inputs": 0, "seconds": 0.0, "peak": 0, "findings": []}
        ended = ended or "died before its first input"
    return status, text, ended


def _watch(child: subprocess.Popen[bytes], status_file: Path, end: float, memory: int) -> str:
    """Wait for the end; return what is wrong with a process that tells nothing for too long or grows."""
    told, changed = -1, time.monotonic()
    while child.poll() is None:
        time.sleep(_POLL)
        now = time.monotonic()
        stamp = status_file.stat().st_mtime_ns if status_file.exists() else 0
        if stamp != told:
            told, changed = stamp, now
        if _held(child.pid) > memory:
            return TOO_MUCH
        if now - changed > INPUT_SECONDS + _GRACE or now > end + 3 * INPUT_SECONDS + _GRACE:
            return "hang in a call that no signal ends"
    return ""


def _held(process: int) -> int:
    """Return the bytes that a process holds; 0 where the system has no /proc or the process is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def table_text(counts: list[Count]) -> str:
    """Return the counts as lines."""
    lines = [f"{'reader':18} {'inputs':>9} {'seconds':>8} {'findings':>8} {'peak MiB':>9}"]
    lines += [f"{c.reader:18} {c.inputs:9} {c.seconds:8.1f} {c.findings:8} {c.peak >> 20:9}" for c in counts]
    return "\n".join(lines)


def main(args: list[str] | None = None) -> int:
    """Run what is asked for, print the counts, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, help="for each reader (10)")
    parser.add_argument("--total", type=float, help="for all readers and jobs together, instead")
    parser.add_argument("--reader", action="append", help="only this one; may be given again")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--memory", type=int, default=MEMORY_MIB, help="MiB that a reader may hold (2048)")
    parser.add_argument("--out", type=Path, default=ROOT / "out/fuzz", help="folder for what is found")
    parser.add_argument("--table", default=TABLE, help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    known = list(importlib.import_module(given.table).TARGETS)
    readers = given.reader or known
    if unknown := set(readers) - set(known):
        parser.error(f"no reader {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    seconds = given.seconds or (given.total * given.jobs / len(readers) if given.total else 10)
    seed = random.randrange(1 << 31) if given.seed is None else given.seed
    guided = importlib.util.find_spec("atheris") is not None
    if not guided:
        print("atheris is not installed: no fuzzer is guided by coverage, all change inputs at random")
    print(f"seed {seed}; {seconds:.0f} s each of {len(readers)} readers", flush=True)
    with ThreadPoolExecutor(given.jobs) as pool:
        jobs = [
            pool.submit(
                fuzz,
                name,
                seconds,
                seed,
                given.out.resolve(),
                table=given.table,
                guided=guided,
                memory=given.memory,
            )
            for name in readers
        ]
        counts = [job.result() for job in jobs]
    print(table_text(counts))
    for count in counts:
        for path in sorted((given.out / count.reader).glob("*.txt")) if count.findings else []:
            print(f"{path}: {path.read_text('utf-8').splitlines()[0]}")
    return int(any(count.findings for count in counts))


if __name__ == "__main__":
    sys.exit(main())
