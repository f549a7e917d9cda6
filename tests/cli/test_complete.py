"""Completion in a shell: the script that bash gets, and what it then asks for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmulab.cli.main import COMMANDS
from mmulab.kvm.kernels import KERNELS
from mmulab.lab.cases.table import cases

CASE = "la57-switch-npt-4to5-l0-5"


def asked(*words: str) -> list[str]:
    """Return what is offered for the last word, as bash asks."""
    asks = {
        "_MMULAB_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("mmulab", *words)),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-m", "mmulab.cli.main"]
    done = subprocess.run(command, env=os.environ | asks, capture_output=True, text=True, check=True)
    answers = [line.split(",", 1) for line in done.stdout.splitlines()]
    return [value for kind, value in answers if kind == "plain"]


def test_a_commands_name() -> None:
    assert asked("re") == [name for name in COMMANDS if name.startswith("re")]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("role", "d"), ["decode", "diff"]),
        (("run", CASE[:-3]), [case.name for case in cases() if case.name.startswith(CASE[:-3])]),
        (("cases", "mixed-smep"), [case.name for case in cases() if case.name.startswith("mixed-smep")]),
        (("step", CASE, "--design", "passthrough_"), ["passthrough_levels"]),
        (("run", CASE, "--kernel", "6"), list(KERNELS)),
        (("run", CASE, "--event", "kvm_mmu_zap"), ["kvm_mmu_zap_all_fast"]),
        (("compare", "--cases", f"mixed-smep-32,{CASE[:-1]}"), [f"mixed-smep-32,{CASE}"]),
    ],
)
def test_names_of_subcommands_cases_designs_kernels_and_events(
    words: tuple[str, ...], offered: list[str]
) -> None:
    assert offered
    assert asked(*words) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script_that_the_command_prints(tmp_path: Path) -> None:
    command = tmp_path / "mmulab"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmulab.cli.main "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(_MMULAB_COMPLETE=bash_source mmulab)"; COMP_WORDS=(mmulab affec); COMP_CWORD=1; '
        '_mmulab_completion mmulab; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "affected\n"
