"""notebooks/first_fault.ipynb, run as a user runs it, with plain papermill."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmulab.lab.page import export, remote_references

Papermill = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def papermill(root: Path, tmp_path: Path) -> Papermill:
    """Return a function that runs the notebook into ``out.ipynb`` with ``-p name value`` pairs."""

    def run(*parameters: str) -> subprocess.CompletedProcess[str]:
        pairs = []
        for name, value in zip(parameters[::2], parameters[1::2], strict=True):
            pairs += ["-p", name, value]
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--execution-timeout", "300"]
        notebook = root / "notebooks" / "first_fault.ipynb"
        return subprocess.run(
            [*command, notebook, tmp_path / "out.ipynb", *pairs], capture_output=True, text=True, check=False
        )

    return run


def executed(folder: Path) -> Any:
    import nbformat

    return nbformat.read(folder / "out.ipynb", as_version=4)


def last_line(notebook: Any) -> str:
    return str(notebook.cells[-1].outputs[0]["text"].splitlines()[-1])


def test_default_is_right(papermill: Papermill, tmp_path: Path) -> None:
    assert papermill().returncode == 0
    notebook = executed(tmp_path)
    assert last_line(notebook) == "wrong accesses: 0"
    html = export(notebook, "first_fault")
    assert remote_references(html) == []
    assert "WRONG" in html, "the page shows the copied quadrant's wrong translation too"


def test_copied_names_the_wrong_access(papermill: Papermill, tmp_path: Path) -> None:
    assert papermill("derivation", "copied", "seed", "3").returncode == 0
    line = last_line(executed(tmp_path))
    found = re.fullmatch(
        r"wrong accesses: 1; op 3: read of gva (0x\w+): expected gpa (0x\w+), reached gpa (0x\w+)", line
    )
    assert found, line
    assert found[2] != found[3]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (("derivation", "inherited"), "parameter 'derivation' is 'inherited'; it must be one of parity"),
        (("design", "D9"), "parameter 'design' is 'D9'; it must be one of"),
        (("seed", "-1"), "parameter 'seed' is -1; it must be an integer of at least 0"),
        (("quadrant", "0"), "unknown parameter 'quadrant'; the notebook has design, derivation, seed"),
    ],
    ids=["derivation", "design", "seed", "unknown"],
)
def test_bad_parameters_are_refused(papermill: Papermill, parameters: tuple[str, str], says: str) -> None:
    done = papermill(*parameters)
    assert done.returncode == 1
    assert f"InputError: {says}" in done.stderr


def test_cell_ids_are_numbers(root: Path) -> None:
    notebook = json.loads((root / "notebooks" / "first_fault.ipynb").read_text("utf-8"))
    assert [cell["id"] for cell in notebook["cells"]] == [f"cell-{n}" for n in range(len(notebook["cells"]))]
