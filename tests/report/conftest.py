"""Small notebooks made for one test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

MakeNotebook = Callable[..., Path]


@pytest.fixture
def make_notebook(tmp_path: Path) -> MakeNotebook:
    """Return a function that writes a notebook of code cells; the first one is tagged ``parameters``."""

    def make(*sources: str, name: str = "made", tags: tuple[str, ...] = ("parameters",)) -> Path:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        for cell, tag in zip(cells, tags, strict=False):
            cell.metadata["tags"] = [tag]
        kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
        return path

    return make
