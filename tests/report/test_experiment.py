"""Experiment files: what they mean, and what is refused with file, line and mend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.report.experiment import Experiment, of_notebooks, read_experiment

SMALL = Path(__file__).parent / "notebooks" / "small.ipynb"
POWERS = "name: t\nfunction: tests.report.functions:powers\n"
NOTEBOOK = f"name: t\nnotebook: {SMALL}\n"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an experiment file."""

    def write_text(text: str) -> Path:
        path = tmp_path / "t.yaml"
        path.write_text(text)
        return path

    return write_text


def test_order_ids_and_parameters(write: Write) -> None:
    text = "parameters: {label: z}\nlist: [{base: 2}, {base: 1}]\ngrid: {exponent: [3, 2]}\nseeds: 2\n"
    found = read_experiment(write(POWERS + text))
    assert [run.id for run in found.runs] == [
        f"base={base},exponent={exponent},seed={seed}"
        for base in (2, 1)
        for exponent in (3, 2)
        for seed in (0, 1)
    ]
    assert found.runs[1].parameters == {"base": 2, "exponent": 3, "label": "z", "seed": 1, "log": ""}
    assert found.runs[1].seed == 1
    assert found.runs[1].target.name == "tests.report.functions:powers"


def test_a_notebook_with_its_defaults(write: Write) -> None:
    (run,) = read_experiment(write(NOTEBOOK)).runs
    assert run.id == "small"
    assert run.target.name == "tests/report/notebooks/small.ipynb"
    assert run.parameters == {"count": 4, "shape": "square", "seed": 0}


def test_a_project_notebook_by_name(write: Write) -> None:
    (run,) = read_experiment(write("name: t\nnotebook: first_fault\n")).runs
    assert run.target.name == "notebooks/first_fault.ipynb"


def test_parts_open_the_ids(write: Write) -> None:
    parts = f"""
parts:
  - {{name: a, notebook: {SMALL}, seeds: [7]}}
  - {{name: b, function: "tests.report.functions:powers", parameters: {{base: 1}}}}
"""
    assert [run.id for run in read_experiment(write("name: t\n" + parts)).runs] == ["a,seed=7", "b"]


def test_odd_and_long_values_end_in_a_digest(write: Write) -> None:
    text = f"grid: {{base: [1], label: ['a/b', 'a b', '../..', '{'x' * 200}']}}\n"
    ids = [run.id for run in read_experiment(write(POWERS + text)).runs]
    assert len(set(ids)) == 4
    assert [name[:-8] for name in ids[:3]] == [f"base=1,label={word}-" for word in ("a-b", "a-b", "..-..")]
    assert all(len(name) <= 80 and set(name) <= set("=,.-_+") | set(map(chr, range(48, 123))) for name in ids)


def test_a_grid_of_more_does_not_change_ids(write: Write) -> None:
    few = read_experiment(write(POWERS + "grid: {base: [1], label: ['a/b']}\n"))
    more = read_experiment(write(POWERS + "grid: {base: [0, 1], label: [c, 'a/b']}\n"))
    assert few.runs[0] in more.runs


def test_inputs_by_digest(write: Write, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    text = POWERS + f"parameters: {{base: 1}}\ninputs: [{{path: in.txt, sha256: {digest}}}]\n"
    (run,) = read_experiment(write(text)).runs
    assert run.inputs == {str((tmp_path / "in.txt").resolve()): digest}
    (tmp_path / "in.txt").write_bytes(b"abd")
    with pytest.raises(InputError, match=r"t.yaml: line 4: inputs.0.sha256: its SHA-256 is [0-9a-f]{64}"):
        read_experiment(tmp_path / "t.yaml")


def test_a_folder_gives_the_experiment_back(write: Write, tmp_path: Path) -> None:
    found = read_experiment(write(POWERS + "grid: {base: [1, 2]}\n"))
    (tmp_path / "sweep.json").write_text(json.dumps(found.record()))
    assert Experiment.from_folder(tmp_path) == found


def test_a_report_is_a_run_a_notebook() -> None:
    found = of_notebooks([SMALL], {"count": "0x3"})
    (run,) = found.runs
    assert (found.name, run.id, run.parameters["count"]) == ("report", "small", 3)
    assert run.repeat == "mmulab report --notebook small -p count 3 -p shape square -p seed 0"


REFUSED = {
    "name: t\n": "line 1: exactly one key of 'notebook' or 'function' must be there",
    POWERS + "gird: {base: [1]}\n": "line 3: gird: unknown key; the keys are name, title, notebook",
    POWERS + "grid: {bass: [1]}\n": "line 3: grid.bass: unknown parameter 'bass'; .*:powers has base",
    POWERS + "grid: {base: 1}\n": "line 3: grid.base: 1 is not a list of at least one value",
    POWERS + "grid: {base: []}\n": r"line 3: grid.base: \[\] is not a list of at least one value",
    POWERS + "grid:\n  base: [1,\n    two]\n": "line 5: grid.base.1: parameter 'base': 'two' is no int",
    POWERS + "grid: {base: [1, 1]}\n": "line 1: the run 'base=1' is there twice",
    POWERS + "parameters: {label: a}\n": "line 1: .*:powers: parameter 'base' must be given",
    POWERS + "parameters: {base: 1}\ngrid: {base: [1]}\n": "the parameter 'base' is set in two places",
    POWERS + "parameters: {base: 1}\nseeds: 0\n": "line 4: seeds: 0 is not a count of at least 1, or a list",
    POWERS + "seeds: 2\ngrid: {seed: [1]}\n": "line 3: seeds: the grid sets 'seed' too",
    POWERS + "name: u\n": "line 3: the key 'name' stands here twice",
    POWERS + "parameters: {base: 1, label: 2026-01-01}\n": "line 3: parameters.label: '2026-01-01' is no",
    POWERS + "parameters: {base: 1, on: 2}\n": "line 3: parameters: the key 'on' is no string; quote it",
    POWERS + "parameters: {base: .nan}\n": "line 3: parameters.base: '.nan' is no string, number or bool",
    POWERS + "grid: {base: [1, 2\n": "line 4: no YAML",
    POWERS + "title: &a [*a]\n": "line 3: an alias to what it is part of",
    POWERS + "inputs: [{path: none, sha256: " + "a" * 64 + "}]\n": "line 3: inputs.0.path: 'none': no such",
    POWERS + "inputs: [{path: t.yaml, sha256: 12}]\n": "line 3: inputs.0.sha256: 12 is not 64 hex digits",
    "name: t\nfunction: tests.report.functions:none\n": "line 2: function: function .* cannot be imported",
    "name: t\nfunction: tests.none:none\n": "line 2: function: function .* cannot be imported",
    "name: t\nfunction: tests.report.functions:odd\n": "line 2: .*parameter 'values' cannot be set",
    "name: t\nfunction: tests.report.functions:untyped\n": "line 2: .*parameter 'value' cannot be set",
    "name: t\nnotebook: none\n": "line 2: notebook: notebook 'none': unknown; the project has",
    "name: t\nnotebook: ./none.ipynb\n": "line 2: notebook: './none.ipynb': no such file",
    "name: ../t\nnotebook: first_fault\n": r"line 1: name: '../t' is not a name of at most 60",
    "name: t\nparts: [{name: a, notebook: first_fault}, {name: a, notebook: first_fault}]\n": "two parts 'a'",
    "name: t\nnotebook: first_fault\nparts: [{name: a, notebook: first_fault}]\n": "notebook: unknown",
    "": "empty; write an experiment",
    "- a\n": "is not a mapping",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_refused_in_one_line(text: str, write: Write) -> None:
    path = write(text)
    with pytest.raises(InputError, match=REFUSED[text]) as caught:
        read_experiment(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_many_aliases_unfold_to_too_much(write: Write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(InputError, match="more than 1000000 values, the limit"):
        read_experiment(write("\n".join(lines)))
