"""How often recordings reach the kernel's assertions, and what another kernel has of them.

The assertions themselves are a table, :func:`mmulab.kvm.assertions.assertions`.
``assertion_counts.csv`` beside this file says how often each one that the model
has was reached, how often its condition held, and in how many recordings it was
reached; its first line says over how many. ``mmulab assertions`` makes it anew.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from mmulab.check.kernel_source import KVM, Place, places
from mmulab.conform.compare import make_runner
from mmulab.conform.recording import read_recording
from mmulab.errors import InputError
from mmulab.files import write_text
from mmulab.kvm.assertions import assertions

__all__ = ["CHOSEN_FILES", "Counts", "Reached", "SourceDifference", "count_recording", "differences"]

CHOSEN_FILES = ("svm/svm.c", "svm/svm.h", "vmx/vmx.c", "x86.c")
"""Files of which the table has no more than what concerns the MMU, memslots and nested guests."""
_SHIPPED = "assertion_counts.csv"
_COLUMNS = ["name", "reached", "held", "recordings"]


class Reached(NamedTuple):
    """What became of an assertion.

    Attributes
    ----------
    reached, held : int
        How often KVM came there, and how often with the condition true.
    recordings : int
        Those in which it was reached.
    """

    reached: int = 0
    held: int = 0
    recordings: int = 0

    def plus(self, other: Reached) -> Reached:
        """Return both together."""
        return Reached(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(slots=True)
class Counts:
    """What recordings reach.

    Attributes
    ----------
    recordings, ops : int
        How many there were.
    by_name : dict of str to Reached
        One that was never reached may be missing.
    """

    recordings: int = 0
    ops: int = 0
    by_name: dict[str, Reached] = field(default_factory=dict)

    def of(self, name: str) -> Reached:
        """Return what became of one assertion."""
        return self.by_name.get(name, Reached())

    def add(self, other: Counts) -> None:
        """Count others in."""
        self.recordings += other.recordings
        self.ops += other.ops
        for name, reached in other.by_name.items():
            self.by_name[name] = self.of(name).plus(reached)

    def write(self, path: Path) -> None:
        """Write a row for each assertion that the model has, in the table's order.

        Raises
        ------
        InputError
            The file cannot be written.
        """
        text = io.StringIO()
        text.write(f"# {self.recordings} recordings, {self.ops} ops\n")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(_COLUMNS)
        rows.writerows([a.name, *self.of(a.name)] for a in assertions().values() if a.modelled)
        write_text(path, text.getvalue())

    @classmethod
    def shipped(cls) -> Counts:
        """Return those that the package has."""
        head, *rows = resources.files(__package__).joinpath(_SHIPPED).read_text("ascii").splitlines()
        _, recordings, _, ops, _ = head.split()
        table = {name: Reached(*map(int, numbers)) for name, *numbers in csv.reader(rows[1:])}
        return cls(int(recordings), int(ops), table)


def count_recording(path: Path) -> Counts:
    """Run a recording's scenario on its kernel, to its end, and count.

    Raises
    ------
    InputError
        It is no recording, or asks for more than the model knows.
    """
    runner = make_runner(read_recording(path), None)
    found: dict[str, tuple[int, int]] = {}
    runner.machine.kvm.assertion_counts = found
    ops = sum(1 for _ in runner.results())
    return Counts(1, ops, {name: Reached(reached, held, 1) for name, (reached, held) in found.items()})


class SourceDifference(NamedTuple):
    """In what a kernel's sources and the table differ.

    Attributes
    ----------
    new : Counter of Place
        What the table lacks, in the files that it has whole.
    gone : Counter of Place
        What the sources lack.
    changed : Counter of (Place, str)
        What has another macro in the same function of the sources.
    """

    new: Counter[Place]
    gone: Counter[Place]
    changed: Counter[tuple[Place, str]]


def differences(source: Path) -> SourceDifference:
    """Compare the table with a kernel's sources, by file, function and macro.

    Raises
    ------
    InputError
        There are no KVM sources.
    """
    table = Counter(Place(a.file, a.function, str(a.severity)) for a in assertions().values())
    found = places(source, dict.fromkeys([*(place.file for place in table), *_mmu_files(source)]))
    new, gone = found - table, table - found
    changed: Counter[tuple[Place, str]] = Counter()
    for was in list(gone.elements()):
        now = next((p for p in new if new[p] and p[:2] == was[:2]), None)
        if now is not None:
            changed[was, now.macro] += 1
            new[now] -= 1
            gone[was] -= 1
    new = Counter({place: number for place, number in new.items() if place.file not in CHOSEN_FILES})
    return SourceDifference(+new, +gone, changed)


def _mmu_files(source: Path) -> Iterable[str]:
    """Return the MMU's files in this kernel, which may be more than 6.1's."""
    try:
        names = sorted(path.name for path in (source / KVM / "mmu").iterdir())
    except OSError as error:
        raise InputError(f"{source}: no kernel sources: there is no {KVM / 'mmu'} in it") from error
    return [f"mmu/{name}" for name in names if name.endswith((".c", ".h"))]
