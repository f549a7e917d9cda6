"""A run of the model as a recording: the kernel's own files come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmulab.conform.compare import Level, compare, frame_map
from mmulab.conform.record import recording_lines, write_recording
from mmulab.conform.recording import KernelRecording, read_lines, read_recording
from mmulab.errors import InputError
from mmulab.scenario.runner import Runner
from mmulab.scenario.scenario import Scenario
from mmulab.scenario.text import parse_scenario

NAMES = [
    "sh/dirtylog-manual-thp-pae",
    "sh/fuzz-32-mix-02",
    "sh/mode-switch",
    "intel-sh/fuzz-64-thp-04",
    "intel-sh/memslot-64",
    "intel-sh/os-pae-04",
]


def record(scenario: Scenario) -> list[str]:
    """Run a scenario and return its recording's lines."""
    runner = Runner(scenario)
    return recording_lines(scenario, list(runner.results()), frame_map(runner.machine.memory))


@pytest.fixture(params=NAMES)
def original(root: Path, request: pytest.FixtureRequest) -> KernelRecording:
    """A recording with which the model agrees."""
    return read_recording(root / f"data/conformance/6.1.192/{request.param}.jsonl.xz")


def test_the_models_recording_is_the_kernels_line_for_line(original: KernelRecording) -> None:
    ours = record(original.scenario)
    theirs = read_lines(Path(original.path))
    assert len(ours) == len(theirs)
    for mine, other in zip(ours[1:-1], theirs[1:-1], strict=True):
        # Beyond level full each side has statistics of its own.
        pair = [json.loads(line) for line in (mine, other)]
        stats = [Level.FULL.stats(record.pop("stats", {})) for record in pair]
        assert json.dumps(pair[0]) == json.dumps(pair[1])
        assert stats[0] == stats[1]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.xz"])
def test_a_written_recording_reads_back_and_conforms(
    original: KernelRecording, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"r.{suffix}"
    lines = record(original.scenario)
    write_recording(path, lines)
    first = path.read_bytes()
    write_recording(path, lines)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    again = read_recording(path)
    assert again.scenario.header == original.scenario.header
    assert [s._replace(line=0) for s in again.scenario.steps] == [
        s._replace(line=0) for s in original.scenario.steps
    ]
    assert compare(again, Level.FULL).agrees


@pytest.mark.parametrize("disabled", [False, True])
def test_a_vm_that_opted_out_of_nx_huge_pages_stays_so(tmp_path: Path, disabled: bool) -> None:
    header = f"mode np\nhost amd npt=1 nx_huge_pages=1\nthp 1\nnxdisable {disabled:d}"
    scenario = parse_scenario(f"mmulab-scenario 1\n{header}\nops\nnxhuge 0\nnxhuge 1\nxc s 205000\nend\n")
    write_recording(tmp_path / "r.jsonl", record(scenario))
    again = read_recording(tmp_path / "r.jsonl")
    assert again.scenario.header == scenario.header
    assert ("nxdisable" in json.loads(read_lines(tmp_path / "r.jsonl")[0])) is disabled
    assert ("nx_lpage_splits" in again.ops[-2].stats) is not disabled
    assert compare(again, Level.FULL).agrees


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the name of a recording"):
        write_recording(tmp_path / "r.txt", [])
    with pytest.raises(InputError, match="no such file"):
        write_recording(tmp_path / "none/r.jsonl", [])
    assert list(tmp_path.iterdir()) == []
