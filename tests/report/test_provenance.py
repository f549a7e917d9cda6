"""What a run writes down about itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
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


def test_a_name_leads_back_to_its_file(abc: Path) -> None:
    assert provenance.name_of(NOTEBOOK) == "tests/report/notebooks/small.ipynb"
    assert provenance.path_of("tests/report/notebooks/small.ipynb") == NOTEBOOK
    assert provenance.path_of(provenance.name_of(abc)) == abc.resolve()


def test_repeat_quotes() -> None:
    found = provenance.repeat("small", {"shape": "a b", "seed": 7})
    assert found == "mmulab report --notebook small -p shape 'a b' -p seed 7"


def test_imported_has_versions_of_what_is_loaded_and_no_others() -> None:
    script = "import numpy; from mmulab.report.provenance import imported; print(imported())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = ast.literal_eval(done.stdout)
    assert found["numpy"] == version("numpy")
    assert "papermill" not in found


def test_digest_of_package_is_of_names_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for name, content in (("a.py", "1"), ("a.py", "2"), ("b.py", "2"), ("__pycache__/x.pyc", "3")):
        top = tmp_path / str(len(digests))
        for path, text in (("__init__.py", ""), ("c.py", "4"), (name, content)):
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_text(text)
        monkeypatch.setattr(mmulab, "__file__", str(top / "__init__.py"))
        digests.append(provenance.digest_of_package.__wrapped__())
        (top / "__pycache__").mkdir(exist_ok=True)
        (top / "__pycache__" / "y.pyc").touch()
        assert provenance.digest_of_package.__wrapped__() == digests[-1]
    assert len(set(digests)) == 4


def test_day_of_a_commit() -> None:
    head = provenance.commit()
    if head is None:
        pytest.skip("not a git checkout")
    day = provenance.date_of(head)
    assert day is not None
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", day)
    assert provenance.date_of("0" * 40) is None


def test_many_inputs_are_folded(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}" for number in range(6)]
    for path in files:
        path.write_text("abc", "utf-8")
    few, many = provenance.Inputs(*files[:5])._repr_html_(), provenance.Inputs(*files)._repr_html_()
    assert "<details>" not in few
    assert many.startswith("<details><summary>6 inputs</summary><table>")
    assert many.count(OF_ABC) == 6
