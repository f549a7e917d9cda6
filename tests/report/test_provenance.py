"""What a run writes down about itself."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

import mmulab
from mmulab.errors import InputError
from mmulab.report import provenance

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "tests" / "report" / "notebooks" / "small.ipynb"
OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of "abc", from FIPS 180-4's examples."""


@pytest.fixture
def abc(tmp_path: Path) -> Path:
    path = tmp_path / "abc.bin"
    path.write_bytes(b"abc")
    return path


def test_digest(abc: Path) -> None:
    assert provenance.digest(abc) == OF_ABC


def test_digest_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none: No such file"):
        provenance.digest(tmp_path / "none")


def test_inputs_travel_in_the_notebook(abc: Path) -> None:
    shown = provenance.Inputs(abc, ROOT / "pyproject.toml")
    output = nbformat.v4.new_output("display_data", shown._repr_mimebundle_())
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    found = provenance.harvest(nbformat.reads(nbformat.writes(notebook), 4))
    assert found == {"abc.bin": OF_ABC, "pyproject.toml": provenance.digest(ROOT / "pyproject.toml")}
    assert OF_ABC in shown._repr_html_()


def test_record_says_how_to_repeat() -> None:
    run = provenance.Run(NOTEBOOK, {"shape": "a b", "seed": 7}, {"x": OF_ABC})
    found = provenance.record(run)
    assert found["repeat"] == "mmulab report --notebook small -p shape 'a b' -p seed 7"
    assert found["notebook"] == {
        "name": "tests/report/notebooks/small.ipynb",
        "sha256": provenance.digest(NOTEBOOK),
    }
    assert found["seed"] == 7
    assert found["inputs"] == {"x": OF_ABC}
    assert found["mmulab"]["version"] == mmulab.__version__
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == version("numpy")


def test_record_knows_nothing_of_the_machine() -> None:
    text = json.dumps(provenance.record(provenance.Run(NOTEBOOK, {}, {})))
    assert str(ROOT) not in text
    assert str(Path.home()) not in text
    assert f'"{platform.node()}"' not in text
