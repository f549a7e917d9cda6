"""What recording needs: whether each thing is there, and what to do if not."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from mmulab.checks import Check, checked
from mmulab.errors import InputError
from mmulab.record.bochs import needed_files
from mmulab.record.build import compiled_vmm
from mmulab.record.cache import cache_folder
from mmulab.record.emulator import HOST_MEBIBYTES
from mmulab.record.own_host import NEEDS
from mmulab.record.tools import call, find_tool

__all__ = ["checks"]

_MEMINFO = re.compile(r"^MemAvailable:\s*(\d+) kB", re.M)


def checks() -> list[Check]:
    """Look at this machine."""
    return [
        checked("emulator", _emulator),
        checked("compiler", lambda: f"the VMM is {compiled_vmm()}"),
        checked("packages", lambda: f"{find_tool('dpkg-deb')} unpacks Debian kernels"),
        checked("download", lambda: f"{find_tool('apt-get')} downloads them", needed=False),
        checked("cache", lambda: str(cache_folder())),
        checked("memory", _memory),
        checked("intel hosts", _bochs, needed=False),
        *(checked(f"--host {name}", partial(look, Path("/")), needed=False) for name, look in NEEDS.items()),
    ]


def _emulator() -> str:
    qemu = find_tool("qemu-system-x86_64")
    if "ivshmem-plain" not in call("emulator", [qemu, "-device", "help"]):
        raise InputError(f"{qemu}: it has no device ivshmem-plain; install Debian's qemu-system-x86")
    version = call("emulator", [qemu, "--version"]).splitlines()[0]
    return f"{qemu}, {version.removeprefix('QEMU emulator ')}"


def _bochs() -> str:
    bochs, _ = find_tool("bochs"), find_tool("xorriso")
    needed_files()
    return f"{bochs} runs them"


def _memory() -> str:
    found = _MEMINFO.search(Path("/proc/meminfo").read_text()) if os.path.exists("/proc/meminfo") else None
    if found is None:
        raise InputError("/proc/meminfo does not say what is available; a host takes 1.5 GiB")
    mebibytes = int(found[1]) >> 10
    if mebibytes < HOST_MEBIBYTES * 3 // 2:
        raise InputError(f"{mebibytes} MiB available; a host takes {HOST_MEBIBYTES * 3 // 2}; end something")
    return f"{mebibytes} MiB available"
