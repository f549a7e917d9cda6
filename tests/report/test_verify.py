"""A sweep repeated and compared: all equal, and each kind of difference named."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mmulab import pool
from mmulab.errors import InputError
from mmulab.report.experiment import read_experiment
from mmulab.report.sweep import sweep
from mmulab.report.verify import verify

HERE = partial(pool.each, jobs=1)
SMALL = Path(__file__).parent / "notebooks" / "small.ipynb"
CHANGED = {
    "results.parquet": (lambda data: data[:-1] + b"x", "base=1: results.parquet differs in its types"),
    "manifest.json": (
        lambda data: data.replace(b'"exponent": 2', b'"exponent": 3'),
        "base=1: manifest.json: parameters: {'base': 1, 'exponent': 3, 'label': 'x', 'seed': 0, 'log': ''} "
        "then, {'base': 1, 'exponent': 2, 'label': 'x', 'seed': 0, 'log': ''} now",
    ),
    "status.json": (
        lambda data: data.replace(
            b'"error": null', b'"error": {"type": "ValueError", "message": "m", "cell": null}'
        ),
        "base=1: failed (ValueError: m, cell None) then, done now",
    ),
}


@pytest.fixture
def powers(tmp_path: Path) -> Path:
    """The folder of a sweep of two runs."""
    path = tmp_path / "t.yaml"
    path.write_text("name: t\nfunction: tests.report.functions:powers\ngrid: {base: [1, 2]}\n")
    sweep(read_experiment(path), tmp_path / "out", each=HERE)
    return tmp_path / "out"


def test_equal(powers: Path) -> None:
    found = verify(powers, each=HERE)
    assert (found.total, found.equal, found.differences, found.notes) == (2, 2, (), ())


@pytest.mark.parametrize("name", CHANGED)
def test_a_difference_is_named(name: str, powers: Path) -> None:
    change, said = CHANGED[name]
    path = powers / "base=1" / name
    path.write_bytes(change(path.read_bytes()))
    found = verify(powers, each=HERE)
    assert (found.total, found.equal, found.differences) == (2, 1, (said,))


def test_a_table_that_differs_is_named(powers: Path) -> None:
    for name in ("results.parquet", "tables/powers.csv"):
        (powers / "base=1" / name).write_bytes((powers / "base=2" / name).read_bytes())
    assert verify(powers, each=HERE).differences == ("base=1: results.parquet differs in powers",)


def test_a_run_that_is_not_there(powers: Path) -> None:
    (powers / "base=2" / "status.json").unlink()
    assert verify(powers, each=HERE).differences == ("base=2: status.json is not there",)


def test_versions_that_differ_are_notes(powers: Path) -> None:
    path = powers / "base=1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["python"] = "2.7"
    manifest["packages"]["pytest"] = "1.0"
    manifest["packages"]["gone"] = "1.0"
    manifest["package"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    found = verify(powers, each=HERE)
    assert (found.equal, found.differences) == (2, ())
    kinds = [note.split(": ")[1] for note in found.notes]
    assert kinds == ["mmulab", "python", "pytest"]


def test_notebooks_are_compared(tmp_path: Path, make_notebook: Callable[..., Path]) -> None:
    source = make_notebook("n: int = 1", "import random\n(object(), n)", "random.random()")
    path = tmp_path / "t.yaml"
    path.write_text(f"name: t\nparts: [{{name: a, notebook: {SMALL}}}, {{name: b, notebook: {source}}}]\n")
    sweep(read_experiment(path), tmp_path / "out", each=HERE)
    found = verify(tmp_path / "out", each=HERE)
    assert found.differences == ("b: made.ipynb: cell 2 differs",)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not the folder of a sweep \(no sweep.json\)"):
        verify(tmp_path, each=HERE)
    (tmp_path / "sweep.json").write_text('{"runs": 3}')
    with pytest.raises(InputError, match=r"sweep.json: damaged"):
        verify(tmp_path, each=HERE)
