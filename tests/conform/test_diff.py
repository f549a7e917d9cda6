"""Two runs of a scenario: which op is which, what the model's run is beside a recording."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mmulab.conform.classify import How, Kind
from mmulab.conform.compare import Level
from mmulab.conform.diff import Run, diff_headers, diff_runs, model_run, only
from mmulab.conform.recording import KernelRecording, read_lines, read_recording
from mmulab.kvm.kernels import LINUX_6_1, LINUX_6_12
from mmulab.machine.machine import Machine
from mmulab.machine.op import Op, Outcome
from tests.conform.deaths import WORDS, cut_short, write

DATA = "data/conformance"


def recorded(root: Path, name: str) -> KernelRecording:
    return read_recording(root / DATA / f"{name}.jsonl.xz")


@pytest.fixture(scope="module")
def basic(root: Path) -> KernelRecording:
    return recorded(root, "6.1.192/sh/basic-64")


@pytest.mark.parametrize(
    "name",
    [
        "6.1.192/sh/basic-64",
        "6.12.117/nested57/nested-roots-32",  # steps that were skipped leave gaps in the ops' numbers
        "6.12.117/nested-ept/ept-misconfig-eptp-ad",
        "6.1.192/sh/fuzz-pae-mix-02",  # helpers
    ],
)
def test_the_models_run_is_the_recording(root: Path, name: str) -> None:
    recording = recorded(root, name)
    run = model_run(recording, LINUX_6_1 if name.startswith("6.1.") else LINUX_6_12)
    assert diff_runs(Run.of(recording), run, Level.FULL) == (len(recording.ops), [])
    assert [op.index for op in run.ops] == [op.index for op in recording.ops]


def test_ops_that_one_side_lacks_are_beside_nothing(root: Path) -> None:
    one, other = (recorded(root, f"{k}/nested-ept/ept-misconfig-eptp-ad") for k in ("6.1.192", "6.12.117"))
    count, differ = diff_runs(Run.of(one), Run.of(other), Level.OUTCOME)
    assert count == len(other.ops) == len(one.ops) + 4
    added = [op for op in differ if op.deltas[0].kinds == (Kind("op", How.ADDED),)]
    assert len(added) == 4
    _, back = diff_runs(Run.of(other), Run.of(one), Level.OUTCOME)
    assert [op.number for op in back] == [op.number for op in differ]
    missing = only(back, lambda kind: kind == Kind("op", How.MISSING))
    assert [op.number for op in missing] == [op.number for op in added]


def test_a_failure_of_the_model_is_at_the_op_where_it_happened(
    basic: KernelRecording, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = Machine.execute
    calls = iter(range(1000))

    def failing(machine: Machine, op: Op) -> Outcome:
        if next(calls) == 3:
            raise ZeroDivisionError("in the model")
        return execute(machine, op)

    monkeypatch.setattr(Machine, "execute", failing)
    run = model_run(basic, LINUX_6_1)
    for sides, line in (((Run.of(basic), run), "+"), ((run, Run.of(basic)), "-")):
        count, differ = diff_runs(*sides, Level.MMU)
        assert (count, len(differ)) == (len(basic.ops), len(basic.ops) - 3)
        assert differ[0].number == basic.ops[3].index
        assert differ[0].deltas[0].kinds == (Kind("model", How.FAILED),)
        assert differ[0].deltas[0].lines == [f"{line} ZeroDivisionError: in the model"]
        assert all(delta.kinds[0].what == "op" for op in differ[1:] for delta in op.deltas)


def test_headers_are_compared_but_not_the_hosts(root: Path, basic: KernelRecording) -> None:
    header = basic.scenario.header
    elsewhere = dataclasses.replace(header, kernel="6.12.117", host={**header.host, "npt": 1})
    assert diff_headers(header, elsewhere) == []
    (delta,) = diff_headers(header, dataclasses.replace(header, thp=True))
    assert delta.kinds == (Kind("header", How.OTHER, "thp"),)
    assert delta.lines == ["- thp False", "+ thp True"]


def test_the_model_numbers_ops_of_several_vcpus_as_recorded(root: Path) -> None:
    recording = read_recording(root / "data/conformance-more/6.1.192/smp/smp-fuzz-pae-mix-00.jsonl.xz")
    run = model_run(recording, LINUX_6_1)
    assert [(op.index, op.text) for op in run.ops] == [(op.index, op.text) for op in recording.ops]


def test_a_death_is_another_outcome_and_takes_the_ops_after_it(root: Path, tmp_path: Path) -> None:
    path = root / DATA / "6.1.192/sh/basic-64.jsonl.xz"
    lines = read_lines(path)
    whole, died = read_recording(path), read_recording(write(tmp_path / "d.jsonl", cut_short(lines, 5)))
    count, differ = diff_runs(Run.of(died), Run.of(whole), Level.OUTCOME)
    assert count == len(whole.ops)
    assert differ[0].deltas[0].kinds == (Kind("outcome", How.OTHER, "out"),)
    assert differ[0].deltas[0].ours == f"outcome host_died: {WORDS[0]}"
    assert [op.deltas[0].kinds for op in differ[1:]] == [(Kind("op", How.ADDED),)] * (len(whole.ops) - 5)


def test_the_models_run_ends_where_the_kernel_died(root: Path, tmp_path: Path) -> None:
    lines = read_lines(root / DATA / "6.1.192/sh/basic-64.jsonl.xz")
    died = read_recording(write(tmp_path / "d.jsonl", cut_short(lines, 5)))
    run = model_run(died, LINUX_6_1)
    assert [op.index for op in run.ops] == [op.index for op in died.ops]
    _, differ = diff_runs(Run.of(died), run, Level.FULL)
    assert [op.number for op in differ] == [died.ops[-1].index]


def test_of_two_deaths_the_first_words_count(root: Path, tmp_path: Path) -> None:
    lines = read_lines(root / DATA / "6.1.192/sh/basic-64.jsonl.xz")
    one, same, other = (
        Run.of(read_recording(write(tmp_path / "d.jsonl", cut_short(lines, 5, words))))
        for words in (WORDS, [WORDS[0], "RAX: 1"], ["Kernel panic", WORDS[1]])
    )
    assert diff_runs(one, same, Level.FULL)[1] == []
    assert [d.kinds for op in diff_runs(one, other, Level.FULL)[1] for d in op.deltas] == [
        (Kind("outcome", How.OTHER, "words"),)
    ]
