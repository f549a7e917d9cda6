"""``mmulab features`` says what the table of features says."""

from __future__ import annotations

import json

import pytest

from mmulab.check.features import SECTIONS, STATES, features
from mmulab.cli.main import run
from mmulab.kvm.kernels import KERNELS
from tests.conftest import CommandLine


def test_every_feature_is_under_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["features"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    heads = [at for at, line in enumerate(lines) if line in SECTIONS.values()]
    assert [lines[at] for at in heads] == list(SECTIONS.values())
    for start, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        rows = [line.split() for line in lines[start + 1 : end] if line[2:3].strip()]
        wanted = [row for row in features() if row.section == lines[start]]
        assert [row[0] for row in rows[: len(wanted)]] == [row.id for row in wanted]


def test_names_can_be_copied_whole(capsys: pytest.CaptureFixture[str]) -> None:
    run(["features"])
    words = {word.rstrip(",") for word in capsys.readouterr().out.split()}
    assert {name for row in features() for name in row.evidence} <= words


def test_the_last_lines_count_for_each_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    run(["features"])
    last = capsys.readouterr().out.splitlines()[-len(KERNELS) :]
    for line, kernel in zip(last, KERNELS, strict=True):
        counts = [sum(row.states[kernel] == state for row in features()) for state in STATES]
        told = ", ".join(f"{state} {count}" for state, count in zip(STATES, counts, strict=True))
        assert line == f"{kernel}: {told}, rows {sum(counts)}"


def test_each_kernel_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    run(["features"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == list(KERNELS)
    (w13,) = (line for line in lines if line.startswith("  W13 "))
    columns = [head.index(kernel) for kernel in KERNELS]
    assert [w13[at:].split()[0] for at in columns] == ["conformant", "conformant"]


def test_one_state_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["features", "--json", "--state", "modelled"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in found] == [row.id for row in features() if "modelled" in row.states.values()]


def test_json_has_the_whole_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["features", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["section"], tuple(row["evidence"])) for row in found] == [
        (row.id, row.section, row.evidence) for row in features()
    ]


def test_an_unknown_state_is_refused(command: CommandLine) -> None:
    assert "not modelled" in command.error("features", "--state", "done")
