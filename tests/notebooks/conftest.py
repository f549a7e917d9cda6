"""Notebooks run as a user runs them, with plain papermill; what a notebook refuses needs no Jupyter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmulab.errors import InputError
from mmulab.report.parameters import TAG


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
Refusal = Callable[..., str]
Opened = Callable[..., dict[str, Any]]


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


def sources(path: Path, given: dict[str, object]) -> Iterator[str]:
    """Yield the code cells of a notebook, the one that papermill injects among them."""
    import nbformat
    from papermill.cli import _resolve_type
    from papermill.translators import PythonTranslator

    values = {name: _resolve_type(str(value)) for name, value in given.items()}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            yield cell.source
        if TAG in cell.metadata.get("tags", []):
            yield PythonTranslator.codify(values, "Parameters")


@pytest.fixture
def opened(root: Path) -> Opened:
    """Return a function that executes the cells of a notebook here, to the one that sets `until`."""

    def run(name: str, *, until: str = "", **parameters: object) -> dict[str, Any]:
        history = [""]
        shell: dict[str, Any] = {"__name__": "__main__", "In": history, "display": lambda *shown: None}
        for source in sources(root / "notebooks" / f"{name}.ipynb", parameters):
            history.append(source)
            exec(compile(source, f"{name}.ipynb", "exec"), shell)
            if until in shell:
                break
        return shell

    return run


@pytest.fixture
def refusal(opened: Opened) -> Refusal:
    """Return a function that gives a notebook parameters and returns how it refuses them."""

    def run(name: str, **parameters: object) -> str:
        with pytest.raises(InputError) as refused:
            opened(name, **parameters)
        return str(refused.value)

    return run
