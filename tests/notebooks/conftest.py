"""Notebooks run as a user runs them, with plain papermill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Executed:
    """An executed notebook, or how papermill refused it."""

    def __init__(self, done: subprocess.CompletedProcess[str], output: Path) -> None:
        self.returncode = done.returncode
        self.stderr = done.stderr
        self._output = output

    @property
    def notebook(self) -> Any:
        """The notebook with its outputs."""
        import nbformat

        return nbformat.read(self._output, as_version=4)

    @property
    def last_line(self) -> str:
        """The last line that it printed."""
        return str(self.notebook.cells[-1].outputs[0]["text"].splitlines()[-1])


Papermill = Callable[..., Executed]


@pytest.fixture
def papermill(root: Path, tmp_path: Path) -> Papermill:
    """Return a function that runs a notebook, given by name, with parameters."""

    def run(name: str, **parameters: object) -> Executed:
        pairs = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--execution-timeout", "300"]
        files = [root / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb"]
        done = subprocess.run([*command, *files, *pairs], capture_output=True, text=True, check=False)
        return Executed(done, tmp_path / "out.ipynb")

    return run
