"""What ``make`` runs, without running it."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_lab_passes_its_arguments_on(root: Path) -> None:
    given = "LAB_ARGS=--no-browser --port 9000"
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old=.venv/.installed", "lab", given]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith("lab --notebook-dir=notebooks --no-browser --port 9000")
