"""Programs of the machine that recording calls, and the package that has each on Debian."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from pathlib import Path

from mmulab.errors import InputError, quoted

__all__ = ["PACKAGES", "call", "compiler", "end_with_parent", "find_file", "find_tool"]

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "gcc": "gcc libc6-dev",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "bochs": "bochs bochs-sdl",
    "xorriso": "xorriso",
    "env": "coreutils",
}
_FILE_PACKAGES = {
    "/usr/share/bochs": "bochsbios",
    "/usr/lib/ISOLINUX": "isolinux",
    "/usr/lib/syslinux": "syslinux-common",
}


_PR_SET_PDEATHSIG = 1


def find_tool(name: str) -> str:
    """Return the path of a program.

    Raises
    ------
    InputError
        There is none; the message says what to install.
    """
    path = shutil.which(name)
    if path is None:
        package = PACKAGES.get(name)
        mend = f"apt-get install {package}" if package else "install it, or set CC to another"
        raise InputError(f"{quoted(name)}: there is no such program; {mend}")
    return path


def find_file(path: str) -> Path:
    """Return a file that a package brings.

    Raises
    ------
    InputError
        There is none; the message says what to install.
    """
    if not Path(path).exists():
        package = next(name for top, name in _FILE_PACKAGES.items() if path.startswith(f"{top}/"))
        raise InputError(f"{path}: there is no such file; apt-get install {package}")
    return Path(path)


def compiler() -> str:
    """Return the C compiler: ``$CC``, or gcc; raises InputError."""
    return find_tool(os.environ.get("CC") or "gcc")


def end_with_parent() -> None:
    """Have this process killed when its parent ends, even by SIGKILL: for a child to call before its program.

    Source: prctl(2)
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def call(what: str, command: list[str], cwd: Path | None = None) -> str:
    """Run a program to its end and return its standard output.

    Raises
    ------
    InputError
        It failed; the message has `what` and its last line.
    """
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
        raise InputError(f"{what}: {command[0]} failed with {done.returncode}: {quoted(said[-1], 200)}")
    return done.stdout
