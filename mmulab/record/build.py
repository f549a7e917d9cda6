"""Builds what a recording host boots from: the VMM, compiled once, and the initramfs around it."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mmulab import files
from mmulab.record import cpio
from mmulab.record.cache import cache_folder
from mmulab.record.host import KernelParameters
from mmulab.record.kernel_files import KernelFiles
from mmulab.record.probes import event_lines, probe_lines
from mmulab.record.tools import call, compiler

__all__ = ["compiled_vmm", "initramfs"]

SOURCES = Path(__file__).resolve().parent / "vmm"
FLAGS: tuple[str, ...] = ("-static", "-O2", "-Wall", "-Wextra", "-Werror=implicit-function-declaration")
"""What the compiler is told; a program is kept for each set of flags."""


def compiled_vmm() -> Path:
    """Return the VMM's program; it is compiled if the cache does not have these sources.

    Raises
    ------
    InputError
        There is no compiler, or it failed.
    """
    sources = sorted(SOURCES.glob("*.c"))
    digest = hashlib.sha256(" ".join((compiler(), *FLAGS)).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(files.read_bytes(path))
    program = cache_folder("vmm") / digest.hexdigest()[:16]
    if not program.exists():
        made = program.with_name(f"{program.name}.{os.getpid()}")
        call("the VMM", [compiler(), *FLAGS, "-o", str(made), *map(str, sources)])
        made.replace(program)
    return program


def initramfs(
    vmm: Path, kernel: KernelFiles, parameters: KernelParameters, drivers: Sequence[str] = ()
) -> bytes:
    """Return the initramfs of a host: the VMM as its first process, KVM's modules, what to trace.

    Parameters
    ----------
    vmm : Path
    kernel : KernelFiles
    parameters : KernelParameters
    drivers : sequence of str
        Modules that the link needs.

    Raises
    ------
    InputError
        A module is missing.
    """
    first = kernel.needed(*drivers)
    modules = kernel.needed(f"kvm_{parameters.vendor}")
    order = [" ".join([f"{name}.ko", *parameters.of_module(name)]) for name, _ in modules]
    # The VMM loads the disk when something is swapped out.
    disk = kernel.needed("brd") if "brd" in kernel.modules else []
    entries = [
        cpio.folder("dev"),
        cpio.console(),
        cpio.file("init", files.read_bytes(vmm), 0o755),
        cpio.folder("lib"),
        *(cpio.file(f"lib/{name}.ko", data) for name, data in (*first, *modules, *disk)),
        cpio.file("drivers", _text([f"{name}.ko" for name, _ in first])),
        cpio.file("modules", _text(order)),
        cpio.file("probes", _text(probe_lines())),
        cpio.file("events", _text(event_lines(parameters.vendor))),
    ]
    return gzip.compress(cpio.archive(entries), 1, mtime=0)


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
