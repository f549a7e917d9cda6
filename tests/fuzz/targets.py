"""Every reader: how its inputs are read, changed and begun with.

A target takes the bytes of one input. It returns, or raises ``InputError``
whose message is one line that a terminal can show.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from mmulab.cli.main import COMMANDS
from mmulab.cli.main import run as command_line
from mmulab.conform.compare import Level, compare
from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.ftrace.layouts import KVMMMU
from mmulab.ftrace.reader import read_text
from mmulab.ftrace.writer import format_recording, format_trace
from mmulab.kvm.roles.design import DESIGNS
from mmulab.report.parameters import declared, resolve
from mmulab.scenario.grammar import FORMS, usage
from mmulab.scenario.record import record
from mmulab.scenario.runner import run
from mmulab.scenario.text import read_scenario
from mmulab.trace.file import open_recording, save
from mmulab.trace.search import SEARCHES
from mmulab.workload.snapshot import load_snapshot
from mmulab.workload.stream import load_stream
from tests.fuzz import mutators
from tests.fuzz.mutators import NUMBERS, Mutator
from tests.fuzz.structure import run_choices
from tests.workload.streams import PAGING_NAMES, Guest

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = Path(__file__).resolve().parent / "corpus"
OPS = 40
"""Ops of a scenario or recording that are run; more of them find nothing that fewer do not."""
MOMENTS = 6
MESSAGE = 4000
"""Characters of the longest message that is still called one line."""
_NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


class Reader(NamedTuple):
    """One fuzzer.

    Attributes
    ----------
    target : callable
        Reads one input; its working folder is one that may be written to.
    mutate : callable
    made : callable
        Inputs that are made at run time, because they are large or must fit the code.
    guided : bool
        Whether coverage guides it; what runs long for each input gains nothing from it.
    """

    target: Callable[[bytes], None]
    mutate: Mutator
    made: Callable[[], list[bytes]] = list
    guided: bool = False


def seeds(name: str) -> list[bytes]:
    """Return the inputs that a reader begins with, in order."""
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*kept, *TARGETS[name].made()]


def wrong_message(text: str) -> str:
    """Return what is wrong with the message of an ``InputError``, which is one short line; "" if nothing."""
    if text.isprintable() and 0 < len(text) < MESSAGE:
        return ""
    return f"not one short line: {text[:200]!r} ({len(text)} characters)"


def _scenario(data: bytes) -> None:
    path = Path("input.mmu")
    path.write_bytes(data)
    scenario = read_scenario(path)
    run(replace(scenario, steps=scenario.steps[:OPS]))


def _recording(data: bytes) -> None:
    suffix = {b"\x1f\x8b": ".gz", b"\xfd7": ".xz"}.get(data[:2], "")
    path = Path(f"input.jsonl{suffix}")
    path.write_bytes(data)
    recording = read_recording(path)
    compare(recording, Level.FULL)


def _mmr(data: bytes) -> None:
    path = Path("input.mmr")
    path.write_bytes(data)
    recording = open_recording(path)
    for number in range(0, len(recording), max(1, len(recording) // MOMENTS)):
        state = recording.visit(recording.moment(number))
        _ = state.machine, state.op, state.event
    for _ in islice(format_recording(recording), 500):
        pass


def _trace(data: bytes) -> None:
    path = Path("input.trace")
    path.write_bytes(data)
    _command("trace", "show", "input.trace", "--list", "50")
    _command("trace", "stats", "input.trace", "input.trace")
    trace = read_text(data.decode("utf-8", "replace"))
    again = read_text("\n".join(format_trace(event for event in trace.events() if event.fields)))
    if again.counts.unreadable:
        raise RuntimeError(f"written and not read again: {again.counts.samples}")


def _stream(data: bytes) -> None:
    load_stream(_beside(data))
    _command("replay", "input.npz", "--limit", "300")


def _snapshot(data: bytes) -> None:
    snapshot = load_snapshot(_beside(data))
    _ = snapshot.summary(), repr(snapshot)
    for truth in snapshot.truth:
        _ = repr(truth)


def _beside(data: bytes) -> Path:
    """Write the first line as the JSON file and the rest as the archive beside it."""
    about, _, columns = data.partition(b"\n")
    path = Path("input.npz")
    path.write_bytes(columns)
    path.with_suffix(".json").write_bytes(about)
    return path


def _command(*args: str, keys: str = "") -> None:
    """Run the command line in this process and hold it to its exit codes and its one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _standard_input(keys):
        code = command_line(args)
    if code not in (0, 1, 2):
        raise RuntimeError(f"exit code {code} of {args}")
    if code == 2:
        raise InputError(err.getvalue().removesuffix("\n"))


@contextlib.contextmanager
def _standard_input(text: str) -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        yield
    finally:
        sys.stdin = before


def _lines(data: bytes) -> list[str]:
    """Return the lines as the arguments that a shell would give: without a NUL."""
    return os.fsdecode(data.replace(b"\0", b"")).split("\n")


def _role(data: bytes) -> None:
    _command("role", *_lines(data))


def _parameters(data: bytes) -> None:
    pairs = [line.partition("=") for line in _lines(data)]
    unknown = {name: value for name, _, value in pairs}
    for path in _NOTEBOOKS:
        known = declared(path)
        for name in known:
            unknown.pop(name, None)
        resolve(path, {name: value for name, _, value in pairs if name in known})
    resolve(_NOTEBOOKS[0], unknown)


def _keys(data: bytes) -> None:
    Path("keys.mmr").write_bytes(_small_mmr())
    _command("step", "keys.mmr", keys="\n".join(_lines(data)[:12]))


def _arguments(data: bytes) -> None:
    for name, content in _files().items():
        Path(name).write_bytes(content)
    Path("folder").mkdir(exist_ok=True)
    if not Path("fifo").exists():
        os.mkfifo("fifo")
    _command(*_lines(data))


@cache
def _files() -> dict[str, bytes]:
    """Return the files that command lines name."""
    about, _, columns = _streams()[0].partition(b"\n")
    return {
        "good.mmu": (CORPUS / "scenario/first_fault.mmu").read_bytes(),
        "good.jsonl.xz": (CORPUS / "recording/large-thp-32.jsonl.xz").read_bytes(),
        "good.mmr": _small_mmr(),
        "good.npz": columns,
        "good.json": about,
        "empty": b"",
        "bad.mmr": b"PK",
        "bad.npz": b"PK\x05\x06" + bytes(18),
    }


@cache
def _small_mmr() -> bytes:
    path = Path("small.mmr").resolve()
    save(record(read_scenario(CORPUS / "scenario/first_fault.mmu"), interval=8), path)
    return path.read_bytes()


@cache
def _streams() -> list[bytes]:
    """Return a small stream of each mode."""
    made = []
    for paging in PAGING_NAMES:
        guest = Guest(paging)
        guest.read(0x5000, 0x5000)
        guest.write(0x6008, 0x6008)
        guest.miss(guest.entry_gpa(1, 0x7000))
        guest.set_entry(0x7000, 0x8067)
        guest.invlpg(0x7000)
        path = guest.save(Path())
        made.append(path.with_suffix(".json").read_bytes() + b"\n" + path.read_bytes())
    return made


def _snapshots() -> list[bytes]:
    """Return two of the kept snapshots, with the first few of their samples."""
    made = []
    for name in ("linux-amd64-4l-pti-4", "linux-686-pae-3"):
        path = ROOT / f"data/snapshots/{name}.npz"
        about = json.loads(path.with_suffix(".json").read_bytes())
        about["truth"] = about["truth"][:5]
        made.append(json.dumps(about).encode() + b"\n" + path.read_bytes())
    return made


def _traces() -> list[bytes]:
    """Return the extracts of public threads, but for that of a log."""
    paths = sorted((ROOT / "data/ftrace/public").glob("*.txt"))
    return [path.read_bytes() for path in paths if "dmesg" not in path.name]


def _parameter_seeds() -> list[bytes]:
    return [
        "\n".join(f"{p.name}={p.default}" for p in declared(path).values()).encode() for path in _NOTEBOOKS
    ]


def _choices() -> list[bytes]:
    return [Random(seed).randbytes(2000) for seed in range(8)]


def change_choices(rng: Random, data: bytes) -> bytes:
    """Change some choices, or take others."""
    return rng.randbytes(rng.randrange(200, 4000)) if rng.randrange(2) else mutators.change_bytes(rng, data)


_FILES = (
    "good.mmu", "good.jsonl.xz", "good.mmr", "good.npz", "empty", "bad.mmr", "bad.npz", "folder",
    "fifo", "missing", ".", "nested",
)  # fmt: skip
_OPTIONS = (
    "--events", "--json", "--record", "--design", "--derivation", "--roots", "--at", "--follow",
    "--page", "--part", "--save", "--ftrace", "--level", "--jobs", "--explain", "--limit", "--help",
    "--kernel", "--to", "--no-such",
)  # fmt: skip
_VALUES = (
    "1", "0", "-1", "99999999999999999999", "out.jsonl", "out.jsonl.xz", "out.mmr", "out.html",
    "missing/out.mmr", "folder", "none", "full", "mmu", "passthrough", "none:None", ":", "x:",
    "json:dumps", "6.1", "2.6.28", "99", "é", "40000000", "zz",
)  # fmt: skip
_ROLE_WORDS = (
    *NUMBERS, "decode", "encode", "diff", "layouts", "--kernel", "6.1", "--json", "--design", "level=4",
    "direct", "smm=1", "invalid=2", "=", "level=", "--to", "0x3712", *DESIGNS,
)  # fmt: skip
_PARAMETER_WORDS = (*NUMBERS, *_VALUES, "nan", "inf", "true", "False", "1.5", "'", "1" * 5000, "limit", "é=")
_TRACE_LINES = (
    "# tracer: nop", "> ", "--", "CPU:3 [LOST 123 EVENTS]", " => kvm_mmu_page_fault", "spte 5 (r-xu) level 1",
    " vm-6434 [059] .... 234.587044: <stack trace>", " vm-6434 [059] .... 234.587044: sched_switch: a b",
    "kvm_mmu_set_spte: gfn 1 spte 5 (r-xu) level 1", "TP_SPTE gfn=0x0 level=5 old=0x8 new=0x0",
    " vm-6434 [059] .... 234.587044: f: (f+0x0/0x9 [kvm]) a=0x1", " vm-6434 [059] .... 234.587044:",
)  # fmt: skip
_TRACE_WORDS = (*NUMBERS, *KVMMMU, "kvm_exit:", "gfn", "spte", "level", "(rwxu)", "[000]", "16.309345:", "q0")
_KEYS = (
    *(f"/ {name} {search.argument and '10'}" for name, search in SEARCHES.items()),
    *["n", "p", "f", "F", "o", "O", "s", "S", "g", "a", "h"], "g 3", "g 99999999999", "a 40000000", "a zz",
    "g ²", "/ event kvm_exit",
)  # fmt: skip
_OP_LINES = tuple(usage(name).replace("[SIZE]", "4").replace("MODE", "u") for name in FORMS)


def change_arguments(rng: Random, data: bytes) -> bytes:
    """Make a command line, or change some words of one; it can only write in the working folder."""
    words = _lines(data)
    if rng.randrange(3) == 0:
        words = [rng.choice(("run", "step", "conform", "replay", *COMMANDS)), rng.choice(_FILES)]
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(1, len(words) + 1)
        word = rng.choice(rng.choice((_FILES, _OPTIONS, _VALUES)))
        words[at : at + rng.randrange(2)] = [word]
    # These run long, start a kernel, or compile: their readers are other targets.
    if words[0] in ("report", "bench", "compare", "cases", "translate"):
        words = ["run", *words[1:]]
    words += ["--jobs", "1"] if words[0] == "conform" else []
    return "\n".join(words).encode()


TARGETS: dict[str, Reader] = {
    "scenario": Reader(_scenario, mutators.lines_of_words((*NUMBERS, *FORMS), _OP_LINES), guided=True),
    "scenario-grammar": Reader(run_choices, change_choices, _choices),
    "recording": Reader(_recording, mutators.packed(mutators.change_json_lines)),
    "mmr": Reader(_mmr, mutators.change_zip, lambda: [_small_mmr()]),
    "trace": Reader(_trace, mutators.lines_of_words(_TRACE_WORDS, _TRACE_LINES), _traces, guided=True),
    "stream": Reader(_stream, mutators.two_files(mutators.change_json, mutators.change_zip), _streams),
    "snapshot": Reader(_snapshot, mutators.two_files(mutators.change_json, mutators.change_zip), _snapshots),
    "role": Reader(_role, mutators.lines_of_words(_ROLE_WORDS, _ROLE_WORDS), guided=True),
    "parameters": Reader(
        _parameters, mutators.lines_of_words(_PARAMETER_WORDS), _parameter_seeds, guided=True
    ),
    "search": Reader(_keys, mutators.lines_of_words(tuple(NUMBERS), _KEYS)),
    "arguments": Reader(_arguments, change_arguments),
}
"""Every reader by its name."""
