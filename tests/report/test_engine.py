"""What a notebook's kernel is asked when its cells have run, and what the engine does without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmulab.report import provenance
from mmulab.report.notebook import execute

SMALL = Path(__file__).parent / "notebooks" / "small.ipynb"


def packages(folder: Path) -> dict[str, str]:
    found: dict[str, str] = execute(SMALL, folder / "x.ipynb", {}).metadata["mmulab"]["packages"]
    return found


def test_a_kernel_of_other_packages_reads_them_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process has read counts for kernels of its own environment alone; the answers are equal."""
    of_here = packages(tmp_path)
    assert "ipykernel" in of_here
    monkeypatch.setattr(sys, "prefix", "/elsewhere")
    monkeypatch.setattr(provenance, "owners", lambda: {})
    assert packages(tmp_path) == of_here


def test_no_grammar_of_iris_is_made() -> None:
    """It takes longer than all else that a batch imports."""
    program = "import sys, mmulab.report.notebook as n, mmulab.report.engine, mmulab.report.page, nbconvert\n"
    program += "print('papermill' in sys.modules, 'rfc3987_syntax' in sys.modules, 'lark' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False False\n"
