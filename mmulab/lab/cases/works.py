"""What designs and kernels are compared on: cases, recordings of real kernels, recorded boots, workloads."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import partial
from glob import glob
from pathlib import Path

from mmulab import paths
from mmulab.conform.recording import SUFFIXES, read_recording
from mmulab.errors import InputError, near
from mmulab.lab.cases.table import MODE_WORDS, Case, cases
from mmulab.lab.sync.witnesses import witnesses
from mmulab.scenario.text import read_scenario
from mmulab.workload.patterns import HOSTS, named_workloads

__all__ = ["ALL", "find_works"]

ALL = "all"
"""Stands for every case of ``mmulab cases``."""
_RECORDED = ("conformance", "conformance-more")
_STREAM, WORKLOAD = "stream/", "workload/"
_SUFFIX = ".jsonl.xz"
SCENARIO = ".mmu"
"""How the name of a file with a scenario ends."""


def find_works(patterns: Iterable[str], *, records: int | None = None, seed: int = 0) -> list[Case]:
    """Return the work that `patterns` name, each piece once, in the order of the patterns.

    Parameters
    ----------
    patterns : iterable of str
        ``all``; a case's name; ``conformance/6.1.192/sh/basic-32``, a recording (of ``conformance-more``
        too), which is judged by the recorded outcomes; ``stream/boot-686-nonpae``, a boot, which
        is judged by the recorded addresses; ``workload/fork-exec/64/shadow``, a workload in a
        paging mode on a host, judged by the guest's tables; ``sync/two-modes-64``, a guest that
        tells sync policies apart; ``first.mmu``, a scenario of the user's, or ``out/first.jsonl.xz``, a
        recording. ``*`` stands for anything.
    records : int, optional
        Of a stream, how many records; all by default.
    seed : int
        Of the workloads.

    Raises
    ------
    InputError
        A pattern that names nothing, or a scenario that cannot be read.
    """
    every = [*cases(), *witnesses(), *_recordings(), *_streams(records), *_workloads(seed)]
    known = {case.name: case for case in every}
    found: dict[str, Case] = {}
    for pattern in patterns:
        if pattern.endswith((SCENARIO, *SUFFIXES)):
            found |= {case.name: case for case in _of_file(pattern)}
            continue
        wanted = [case for name, case in known.items() if _matches(name, pattern)]
        if not wanted:
            raise InputError(
                f"case '{pattern}': unknown; {near(pattern, known)}'mmulab cases' lists them, "
                f"recordings are {_RECORDED[0]}/KERNEL/FOLDER/NAME, boots {_STREAM}NAME, workloads "
                f"{WORKLOAD}NAME/MODE/HOST; a file ends in {SCENARIO} or, a recording, in {SUFFIXES[0]}"
            )
        found |= {case.name: case for case in wanted}
    return list(found.values())


def _of_file(name: str) -> list[Case]:
    """Return the cases that a file makes, a scenario or a recording, or that recordings of a pattern make.

    Each is read now, so that a bad one is refused at once.
    """
    if name.endswith(SCENARIO):
        header = read_scenario(name).header
        return [Case(name, header.vendor, MODE_WORDS[header.mode], scenario=partial(read_scenario, name))]
    path = Path(name)
    if not path.exists() and (matches := sorted(glob(name, recursive=True))):
        return [case for match in matches for case in _of_file(match)]
    read_recording(path)
    inside = paths.name_of(path).removeprefix("data/").removesuffix(_SUFFIX)
    return [Case(name, "recorded", "", recording=inside)]


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a piece of work; one without a folder means cases only."""
    if pattern == ALL:
        return "/" not in name
    return fnmatchcase(name, pattern) and ("/" in pattern or "/" not in name)


def _recordings() -> list[Case]:
    tops = [paths.data(folder) for folder in _RECORDED]
    found = [path.relative_to(top.parent) for top in tops for path in top.glob(f"*/*/*{_SUFFIX}")]
    names = sorted(str(path).removesuffix(_SUFFIX) for path in found)
    return [Case(name, "recorded", "", recording=name) for name in names]


def _workloads(seed: int) -> list[Case]:
    return [
        Case(
            WORKLOAD + name,
            " ".join(f"{key}={value}" for key, value in HOSTS[host].items()),
            MODE_WORDS[mode],
            scenario=partial(workload.scenario, mode, host),
            note=workload.summary,
        )
        for name, workload, mode, host in named_workloads(seed)
    ]


def _streams(records: int | None) -> list[Case]:
    names = sorted(path.stem for path in paths.data("stream").glob("*.npz"))
    return [Case(_STREAM + name, "npt=0", "recorded boot", stream=name, records=records) for name in names]
