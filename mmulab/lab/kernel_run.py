"""A scenario on a real kernel: recorded now, in QEMU, or read from the recordings in ``data``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from html import escape
from pathlib import Path
from typing import NamedTuple

from mmulab import files, paths
from mmulab.conform.outcome import outcome_str
from mmulab.conform.record import MODULE_PARAMETERS
from mmulab.conform.recording import SUFFIXES, KernelRecording, parse_recording, read_lines
from mmulab.errors import InputError, named, quoted
from mmulab.kvm.kernels import recorded_kernel
from mmulab.lab.cases.case import CaseKind
from mmulab.lab.cases.table import read_case, scenario_of
from mmulab.lab.cases.works import find_works
from mmulab.record.boot import EMULATORS, BootError
from mmulab.record.doctor import checks
from mmulab.record.kernel_files import PACKAGES, cached_package, from_deb
from mmulab.record.session import record
from mmulab.record.work import Work, of_scenario, read_recorded
from mmulab.scenario.scenario import HOST_DEFAULTS, TDP_PARAMETER, Header
from mmulab.scenario.text import SUFFIX, read_scenario

__all__ = ["WHEN", "KernelRun", "data_recording", "find_work", "kernel_run", "named_works", "obstacle"]

WHEN = AUTO, NEVER, ALWAYS = "auto", "never", "always"
"""When a scenario is recorded anew: if this machine can without a download, not at all, or it is an error."""
MISSING = "missing"
"""As ``auto``, but only where ``data`` has no recording."""
_SETS = ("conformance", "conformance-more")
_FULL_NAME = re.compile(rf"(?:{'|'.join(_SETS)})/[^/]+/(.+)")


class KernelRun(NamedTuple):
    """A scenario's run on a real kernel.

    Attributes
    ----------
    recording : KernelRecording
    path : Path or None
        Of the recording's file; None: it was made just now.
    where : str
        Kernel, parameters and machine in one line, and whether it was recorded now.
    notes : tuple of str
        Why it was not recorded now; in what the host is not the one that the scenario wants; what it died of.
    """

    recording: KernelRecording
    path: Path | None
    where: str
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<p>{escape(self.where)}</p>" + (f"<ul>{lines}</ul>" if lines else "")


def named_works(name: str) -> Iterator[Work]:
    """Yield the work of a name: a scenario's file, a recording's, a case or recording in ``data``, or ``*``.

    Raises
    ------
    InputError
    """
    path = Path(name)
    if name.endswith(SUFFIXES):
        yield read_recorded(path)
    elif name.endswith(SUFFIX):
        yield of_scenario(path.name.removesuffix(SUFFIX), read_scenario(path))
    else:
        for case in find_works([name]):
            if case.kind is CaseKind.BOOT:
                raise InputError(f"{case.name}: a boot, which is no scenario; name a case or a recording")
            if case.change is None and case.kind is CaseKind.RECORDING:
                recorded = paths.data(f"{case.recording}{SUFFIXES[-1]}")
                yield read_recorded(recorded, "/".join(case.name.split("/")[-2:]))
            else:
                yield of_scenario(case.name, scenario_of(read_case(case)))


def find_work(name: str, kernel: str) -> Work:
    """Return the one scenario that a name stands for.

    Parameters
    ----------
    name : str
        As :func:`named_works` takes it, or ``sh/basic-32``: a recording in each kernel's folder in ``data``.
    kernel : str
        Whose recording is read, where there are several of that scenario.

    Raises
    ------
    InputError
    """
    within = _within(name)
    known = (data_recording(within, release) for release in (kernel, *PACKAGES))
    if path := next(filter(None, known), None):
        return read_recorded(path, within)
    works = list(named_works(name))
    if len(works) > 1:
        raise InputError(f"scenario '{quoted(name)}': it names {len(works)} scenarios; name one")
    return works[0]


def _within(name: str) -> str:
    """Return a recording's name in a kernel's folder."""
    full = _FULL_NAME.fullmatch(name)
    return full[1] if full else name


def data_recording(within: str, kernel: str) -> Path | None:
    """Return the recording in ``data`` of a scenario on a kernel; None: there is none."""
    tops = (paths.checkout() / "data" / name / kernel for name in _SETS)
    found = (top / f"{within}{SUFFIXES[-1]}" for top in tops)
    return next((path for path in found if path.is_file()), None)


def kernel_run(
    name: str,
    kernel: str,
    when: str,
    told: Callable[[str], None] = lambda line: None,
) -> KernelRun:
    """Run a scenario on a real kernel, or read how it ran there.

    Parameters
    ----------
    name : str
        As :func:`find_work` takes it.
    kernel : str
        A release of :data:`~mmulab.record.kernel_files.PACKAGES`, a package's name, or a ``.deb`` file.
    when : str
        One of :data:`WHEN`, or :data:`MISSING`.
    told : callable
        Is told of the boot, and how long it took.

    Raises
    ------
    InputError
        It must be recorded and cannot be; or it is not recorded, and ``data`` has no recording of it.
    """
    release = _release(kernel)
    work = find_work(name, release)
    path = data_recording(_within(name), release)
    if path is None and name.endswith(SUFFIXES) and work.scenario.header.kernel == release:
        path = Path(name)
    if when == MISSING and path is not None:
        return _run(read_lines(path), path, ())
    why = f"record is '{NEVER}'" if when == NEVER else obstacle(work, kernel, waits=when == ALWAYS)
    if not why:
        try:
            return _recorded(work, kernel, told)
        except InputError as error:
            why = str(error)
    if when == ALWAYS:
        raise InputError(f"record '{ALWAYS}': {why}")
    if path is None:
        raise InputError(
            f"scenario '{quoted(name)}': not recorded: {why}; and data has no recording of it on {kernel}"
        )
    return _run(read_lines(path), path, (f"not recorded anew: {why}",))


def _release(kernel: str) -> str:
    """Return the release that a package's or file's name tells; empty: none that is known."""
    if kernel in PACKAGES:
        return kernel
    for release, package in PACKAGES.items():
        if Path(kernel).name.partition("_")[0] == package:
            return release
    try:
        return recorded_kernel(Path(kernel).name).name
    except InputError:
        return ""


def obstacle(work: Work, kernel: str, *, waits: bool) -> str:
    """Return why this machine cannot record a scenario on a kernel; empty: it can.

    Parameters
    ----------
    work : Work
    kernel : str
        As :func:`kernel_run` takes it.
    waits : bool
        Whether a package that is not in the cache may be downloaded, and a slow boot waited for.
    """
    host = work.parameters()
    if reason := work.obstacle() or EMULATORS[host.vendor].obstacle(host, work.scenario.header.host):
        return reason
    if host.vendor == "intel" and not waits:
        return f"an Intel host takes minutes to boot; record '{ALWAYS}' waits for it"
    package, release = PACKAGES.get(kernel, kernel), kernel if kernel in PACKAGES else ""
    try:
        if not (waits or package.endswith(".deb") or cached_package(package, release)):
            package += f" of {release}" if release else ""
            return f"{package} is not in the cache, and a notebook downloads nothing by itself"
    except InputError as error:
        return str(error)
    return next((f"{check.name}: {check.says}" for check in checks() if check.needed and not check.ok), "")


def _recorded(work: Work, kernel: str, told: Callable[[str], None]) -> KernelRun:
    """Record a scenario now."""
    parameters = work.parameters()
    try:
        files_of = from_deb(PACKAGES.get(kernel, kernel))
        with closing(record([work], files_of, [parameters], told)) as each:
            (recorded,) = each
    except BootError as error:
        said = f"; its console's last line: {quoted(error.tail[-1], 120)}" if error.tail else ""
        raise InputError(f"{error}{said}") from error
    if recorded.error:
        raise InputError(f"{work.name}: {recorded.error}")
    return _run(recorded.lines, Path(f"{work.name} on {kernel}"), tuple(recorded.notes), now=True)


def _run(lines: list[str], path: Path, notes: tuple[str, ...], *, now: bool = False) -> KernelRun:
    recording = parse_recording(lines, path)
    header = recording.scenario.header
    told = files.parse_json(lines[0], f"{named(path)}: line 1")["host"]["kernel"]
    machine = "an AMD machine in QEMU" if header.vendor == "amd" else "an Intel machine in Bochs"
    when = "recorded just now" if now else f"recorded before: {_shown(path)}"
    where = f"Linux {told}; {host_str(header)}; {machine}; {when}"
    if (op := recording.fatal) is not None:
        notes = (*notes, f"op {op.index} {op.text}: {outcome_str(op.outcome)}")
    return KernelRun(recording, None if now else path, where, notes)


def _shown(path: Path) -> str:
    top = paths.checkout()
    return str(path.relative_to(top) if path.is_relative_to(top) else path)


def host_str(header: Header) -> str:
    """Return a host's levels, and the parameters of KVM's modules that matter or are no defaults."""
    tdp = TDP_PARAMETER[header.vendor]
    known = [name for names in MODULE_PARAMETERS[header.vendor].values() for name in names]
    shown = [
        f"{name}={header.host[name]}"
        for name in (tdp, *(name for name in known if name != tdp))
        if name == tdp or header.host[name] != HOST_DEFAULTS[name]
    ]
    return f"{' '.join(shown)}, tables of {5 if header.host['virt_bits'] == 57 else 4} levels"
