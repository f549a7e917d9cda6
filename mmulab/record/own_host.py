"""This machine as a recording host: its own KVM and its own trace, as they are.

The VMM is an ordinary process of root's (``vmm/own_host.c``), and the link a file that it maps.
Nothing is booted and no module is loaded, so a scenario runs only where the
machine already is the host that its header names.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import NamedTuple

from mmulab.errors import InputError
from mmulab.record.boot import Host, is_death, open_folder
from mmulab.record.build import compiled_vmm
from mmulab.record.emulator import as_it_is
from mmulab.record.host import LEVELS, MODULES, HostFacts, KernelParameters, address_sizes
from mmulab.record.link import Link
from mmulab.record.probes import event_lines, probe_lines
from mmulab.record.take import Take
from mmulab.scenario.scenario import HOST_DEFAULTS, TDP_PARAMETER, Header

__all__ = ["NEEDS", "Machine", "OwnHost", "read_machine"]

_GRACE = 30
"""Seconds that the VMM's guard has to put the machine back; it needs one, and ten if the VMM hangs."""
_TAINT_DIE = 1 << 7
_VENDORS = {"kvm_amd": "amd", "kvm_intel": "intel"}
_OFF = ("N", "0", "never", "off")
_FLAGS = re.compile(r"^flags\s*:(.*)", re.M)
_KMSG_BYTES = 8192


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


# What is needed ---------------------------------------------------------------


def _root(_top: Path) -> str:
    if os.geteuid():
        raise InputError("this is not root, whom probes, SCHED_FIFO and host frames want; run it with sudo")
    return "this is root"


def _processor(top: Path) -> str:
    flags = _FLAGS.search(_text(top / "proc/cpuinfo"))
    found = [word for word in ("svm", "vmx") if flags and word in flags[1].split()]
    if not found:
        raise InputError("the processor says neither svm nor vmx; turn them on in the firmware, or use --deb")
    return f"the processor has {found[0]}"


def _modules(top: Path) -> str:
    found = [name for name in _VENDORS if (top / "sys/module" / name).exists()]
    if not found:
        raise InputError("neither kvm_amd nor kvm_intel is loaded; modprobe the one of this processor")
    return f"{found[0]} is loaded"


def _device(top: Path) -> str:
    path = top / "dev/kvm"
    if not os.access(path, os.R_OK | os.W_OK):
        here = "cannot be read and written" if path.exists() else "there is none"
        raise InputError(f"/dev/kvm: {here}; load kvm_amd or kvm_intel, in a container pass the device in")
    return "/dev/kvm can be read and written"


def _tracefs(top: Path) -> str:
    if (top / "sys/kernel/tracing/kprobe_events").exists():
        return "tracefs is mounted and has kprobe_events"
    if "\ttracefs\n" in _text(top / "proc/filesystems"):
        return "tracefs can be mounted"
    raise InputError("tracefs has no kprobe_events here; use a kernel with CONFIG_KPROBE_EVENTS, or --deb")


def _no_oops(top: Path) -> str:
    if int(_text(top / "proc/sys/kernel/tainted") or 0) & _TAINT_DIE:
        raise InputError("this kernel had an oops and is no longer to be trusted; reboot")
    return "no oops since the boot"


def _no_other_vms(top: Path) -> str:
    for process in (top / "proc").iterdir():
        if process.name.isdigit() and "anon_inode:kvm-vm" in _open_files(process):
            name = _text(process / "comm").strip()
            raise InputError(
                f"process {process.name} ({name}) runs a VM, whose events would be in the trace; end it"
            )
    return "no other VM runs"


def _open_files(process: Path) -> Iterator[str]:
    """Yield what a process has open; it may close them, or end, meanwhile."""
    try:
        names = os.listdir(process / "fd")
    except OSError:
        return
    for name in names:
        with suppress(OSError):
            yield os.readlink(process / "fd" / name)


NEEDS: dict[str, Callable[[Path], str]] = {
    "root": _root,
    "processor": _processor,
    "modules": _modules,
    "device": _device,
    "tracefs": _tracefs,
    "oops": _no_oops,
    "VMs": _no_other_vms,
}
"""What ``--host`` needs, each looked at under a root folder: says what there is, or raises InputError."""


# Which host this machine is -----------------------------------------------------


class Machine(NamedTuple):
    """What this machine's KVM is.

    Attributes
    ----------
    vendor : {"amd", "intel"}
    levels : {4, 5}
        Of its own tables.
    parameters : dict of (str, str) to str
        Value of each module's parameter, as it is printed.
    huge_pages : bool
        Whether the kernel gives huge pages to who asks for them.
    """

    vendor: str
    levels: int
    parameters: dict[tuple[str, str], str]
    huge_pages: bool

    def kernel_parameters(self) -> KernelParameters:
        """Return the host that this machine is, for all scenarios alike."""
        told = (("kvm", "tdp_mmu"), (f"kvm_{self.vendor}", TDP_PARAMETER[self.vendor]))
        modules = tuple((*key, self.parameters[key]) for key in told if key in self.parameters)
        return KernelParameters(self.vendor, self.levels, modules)

    def obstacle(self, header: Header) -> str:
        """Return why this machine is not the host that a header wants, and what to do; empty: it is."""
        if header.vendor != self.vendor:
            return f"this machine's KVM is kvm_{self.vendor}; use one of kvm_{header.vendor}"
        wanted = LEVELS[header.host["virt_bits"]]
        if wanted != self.levels:
            boot = "boot with no5lvl or " if wanted == 4 else ""
            return f"this machine's tables have {self.levels} levels, not {wanted}; {boot}use --deb"
        for module, names in MODULES[self.vendor].items():
            if other := self._differing(module, names, header.host):
                has = ", ".join(f"{name}={self.parameters[module, name]}" for name in other)
                told = " ".join(f"{name}={header.host[name]}" for name in other)
                return f"this machine's {module} has {has}; reload {module} with {told} or use --deb"
        if header.thp and not self.huge_pages:
            return "transparent_hugepage/enabled is 'never' here; set it to madvise or use --deb"
        return ""

    def _differing(self, module: str, names: tuple[str, ...], wanted: dict[str, int]) -> list[str]:
        if not wanted[TDP_PARAMETER[self.vendor]]:  # then kernels turn tdp_mmu off by themselves
            names = tuple(name for name in names if name != "tdp_mmu")
        return [
            name
            for name in names
            if (module, name) in self.parameters
            and (self.parameters[module, name] not in _OFF) != bool(wanted[name])
        ]


def read_machine(top: Path = Path("/")) -> Machine:
    """Return what this machine's KVM is; its modules must be loaded.

    Raises
    ------
    InputError
    """
    loaded = [name for name in _VENDORS if (top / "sys/module" / name).exists()]
    bits = address_sizes(_text(top / "proc/cpuinfo"))
    if not loaded or bits is None or bits[1] not in LEVELS:
        raise InputError("/proc/cpuinfo and /sys/module do not say which host this is; use --deb")
    known = [*HOST_DEFAULTS]
    values = {
        (module, name): text.strip()
        for module in ("kvm", loaded[0])
        for name in known
        if (text := _text(top / "sys/module" / module / "parameters" / name))
    }
    huge = "[never]" not in _text(top / "sys/kernel/mm/transparent_hugepage/enabled")
    return Machine(_VENDORS[loaded[0]], LEVELS[bits[1]], values, huge)


# The host while it runs ---------------------------------------------------------


class OwnHost(Host):
    """The VMM on this machine, from its start to its end.

    Parameters
    ----------
    parameters : KernelParameters
        What the machine is.
    kernel_log : Path
        Where the kernel's words are.

    Raises
    ------
    InputError
        Something of :data:`NEEDS` is lacking, as after an oops.
    """

    def __init__(self, parameters: KernelParameters, kernel_log: Path = Path("/dev/kmsg")) -> None:
        for look in NEEDS.values():
            look(Path("/"))
        self.facts = HostFacts()
        self.parameters = parameters
        self.corrected = as_it_is
        self._heard: list[str] = []
        self._seen = 0
        vmm = compiled_vmm()
        with ExitStack() as opened:
            folder = open_folder(opened)
            for name, lines in (("probes", probe_lines()), ("events", event_lines(parameters.vendor))):
                (folder / name).write_text("".join(f"{line}\n" for line in lines))
            self.link = opened.enter_context(closing(Link(folder / "link")))
            self._log = os.open(kernel_log, os.O_RDONLY | os.O_NONBLOCK)
            opened.callback(os.close, self._log)
            os.lseek(self._log, 0, os.SEEK_END)
            self._said = opened.enter_context(open(folder / "vmm", "w+"))
            # In a session of its own: Ctrl-C comes to it through end(), our death by itself.
            self.process = subprocess.Popen(
                [str(vmm), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                start_new_session=True,
            )
            opened.callback(self._end_process)
            self._opened = opened.pop_all()

    def _end_process(self) -> None:
        """End the VMM; its guard puts the machine back."""
        self.process.terminate()
        try:
            self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def collect(self, take: Take, seconds: float) -> bool:
        """Take what comes of a job, as :meth:`Host.collect` does.

        A VMM that ended while the kernel said nothing of its own death is no result but a failure.
        """
        in_time = super().collect(take, seconds)
        ended = in_time and not take.done and not take.error
        if ended and not any(map(is_death, self._lines(self._seen))):
            code = self.process.returncode
            take.error = f"the VMM ended with exit code {code}, and the kernel said nothing of it"
        return in_time

    def new_words(self) -> list[str]:
        """Return what the kernel has said since the last call."""
        lines = self._lines(self._seen)
        self._seen += len(lines)
        return lines

    def _lines(self, start: int) -> list[str]:
        """Return the kernel's lines from `start` on: records of ``PRIORITY,..;TEXT``, a line each.

        Source: Linux ``Documentation/ABI/testing/dev-kmsg``
        """
        while True:
            try:
                record = os.read(self._log, _KMSG_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten before they were read
                continue
            if not record:
                break
            self._heard += [
                line.partition(";")[2]
                for line in record.decode("utf-8", "replace").splitlines()
                if not line.startswith(" ")
            ]
        return self._heard[start:]
