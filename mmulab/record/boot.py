"""A recording host while it runs: its emulator, the link to it and its console."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Self

from mmulab import files
from mmulab.errors import InputError
from mmulab.record.bochs import BOCHS
from mmulab.record.build import compiled_vmm, initramfs
from mmulab.record.emulator import HOST_MEBIBYTES, Boot, Emulator
from mmulab.record.host import HostFacts, KernelParameters
from mmulab.record.kernel_files import KernelFiles
from mmulab.record.link import Kind, Link
from mmulab.record.qemu import QEMU
from mmulab.record.take import Take
from mmulab.record.tools import end_with_parent

__all__ = ["EMULATORS", "BootError", "Host", "is_death", "open_folder"]

EMULATORS: dict[str, Emulator] = {"amd": QEMU, "intel": BOCHS}
"""By the host's vendor."""

_COMMAND_LINE = "console=ttyS0 loglevel=5 mitigations=off nokaslr no_timer_check oops=panic panic=-1"
_PREFIX = "mmulab-record-"
_PAUSE = 0.002
_TAIL = 25
"""Lines of the console that are shown of a boot that failed."""
_WORDS = 20
"""Lines of the kernel's that are kept of a death."""
_DEATH = re.compile(
    r"BUG:|kernel BUG at|Oops|general protection fault|Kernel panic|invalid opcode|stack segment|divide error"
)
_TIME = re.compile(r"^\[ *\d+\.\d+\] ?")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|[^\x20-\x7e]")


class BootError(InputError):
    """A host did not come up; `tail` is the end of what its console showed."""

    def __init__(self, message: str, tail: list[str]) -> None:
        super().__init__(message)
        self.tail = tail


class Host:
    """One boot.

    Parameters
    ----------
    kernel : KernelFiles
    parameters : KernelParameters
    guest_bytes : int
        The largest backing of a scenario that will run.
    """

    def __init__(self, kernel: KernelFiles, parameters: KernelParameters, guest_bytes: int) -> None:
        self.facts = HostFacts()
        self.parameters = parameters
        self.emulator = EMULATORS[parameters.vendor]
        self.corrected = self.emulator.corrected
        packed = initramfs(compiled_vmm(), kernel, parameters, self.emulator.drivers)
        with ExitStack() as opened:  # an interrupt leaves nothing behind
            folder = open_folder(opened)
            self._console = folder / "console"
            self._console.touch()
            self._seen = 0
            image = folder / "initramfs"
            image.write_bytes(packed)
            self.link = opened.enter_context(closing(Link(folder / "link")))
            mebibytes = HOST_MEBIBYTES + (guest_bytes >> 20)
            files_of = (kernel.image, image, folder / "link", self._console)
            boot = Boot(folder, *files_of, self._arguments(), parameters, mebibytes)
            command = self.emulator.command(boot)
            self._said = opened.enter_context(open(folder / "emulator", "w+", errors="replace"))
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has no threads
            )
            opened.callback(self._end_process)
            self._opened = opened.pop_all()

    def _arguments(self) -> str:
        # What is built in takes its parameters from the kernel's command line.
        told = " ".join(f"{module}.{name}={value}" for module, name, value in self.parameters.modules)
        return f"{_COMMAND_LINE} {self.emulator.arguments} {told} MMULAB_LINK={self.emulator.link}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the host at once: nothing in it is kept."""
        self._opened.close()

    def _end_process(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait_ready(self, seconds: float) -> float:
        """Wait until the VMM takes jobs, and return how long the boot took.

        Raises
        ------
        BootError
            The host ended, said that it cannot, or took longer than `seconds`.
        """
        start = time.monotonic()
        while True:
            ended = self.process.poll() is not None
            for record in self.link.records():
                if record.kind == Kind.FILE:
                    self.facts.add_file(record.data)
                elif record.kind == Kind.CPUID:
                    self.facts.add_cpuid(record.data)
                elif record.kind == Kind.ERROR:
                    raise self._boot_error(f"the host cannot record: {record.text}")
                elif record.kind == Kind.READY:
                    self.facts.check(self.parameters)
                    self.new_words()
                    return time.monotonic() - start
            if ended:
                raise self._boot_error(
                    f"the host ended before its VMM was ready (exit code {self.process.returncode})"
                )
            if time.monotonic() - start > seconds:
                raise self._boot_error(
                    f"the host did not come up within {seconds:g} s; give it more with --boot-limit"
                )
            time.sleep(_PAUSE)

    def _boot_error(self, message: str) -> BootError:
        self._said.seek(0)
        return BootError(message, (self._said.read().splitlines() + self._lines(0))[-_TAIL:])

    def collect(self, take: Take, seconds: float) -> bool:
        """Take what comes of a job until it is done, the host has ended or `seconds` are over.

        Returns
        -------
        bool
            False: the time was over.
        """
        start = time.monotonic()
        while not take.done and not take.error:
            ended = self.process.poll() is not None
            for record in self.link.records():
                take.add(record)
            if take.done or take.error or ended:
                break
            if time.monotonic() - start > seconds:
                return False
            time.sleep(_PAUSE)
        return True

    def new_words(self) -> list[str]:
        """Return what the console has shown since the last call, without times."""
        lines = self._lines(self._seen)
        self._seen = self._console.stat().st_size
        return lines

    def last_words(self) -> list[str]:
        """Return what the kernel said as it died: from the first line that tells of it."""
        return death_words(self.new_words())

    def _lines(self, start: int) -> list[str]:
        return console_lines(self._console.read_bytes()[start:])


def is_death(line: str) -> bool:
    """Return whether a line of the kernel's tells of its death."""
    return _DEATH.search(line) is not None


def open_folder(opened: ExitStack) -> Path:
    """Make a folder that is there until `opened` is closed, and sweep those of killed runs away."""
    folder, lock = _own_folder()
    opened.callback(os.close, lock)
    opened.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _own_folder() -> tuple[Path, int]:
    """Make a folder that is locked while its descriptor is open."""
    top = Path(tempfile.gettempdir())
    files.sweep(top, re.escape(_PREFIX) + r"\w+", shutil.rmtree)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=top))
    descriptor = os.open(folder, os.O_RDONLY)
    files.lock(descriptor, folder)
    return folder, descriptor


def console_lines(data: bytes) -> list[str]:
    """Return what a console shows, line by line, without times and control characters."""
    lines = (_TIME.sub("", _ESCAPES.sub("", line)) for line in data.decode("ascii", "replace").splitlines())
    return [line for line in lines if line.strip()]


def death_words(lines: list[str]) -> list[str]:
    """Return the kernel's last words: from the first line that tells of its death."""
    at = next((i for i, line in enumerate(lines) if is_death(line)), 0)
    return lines[at : at + _WORDS] or ["nothing: the machine ended without a word on its console"]
