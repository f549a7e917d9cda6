"""``mmulab record``: scenarios on a real kernel, in QEMU, in Bochs or this machine's own."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import click

from mmulab import files
from mmulab.cli.path import PATH
from mmulab.conform.record import write_recording
from mmulab.conform.recording import SUFFIXES, find_recordings
from mmulab.errors import InputError, named
from mmulab.lab.kernel_run import named_works
from mmulab.record.boot import EMULATORS, BootError
from mmulab.record.host import KernelParameters, parse_parameters
from mmulab.record.kernel_files import KernelFiles, from_build, from_deb
from mmulab.record.own_host import NEEDS, Machine, read_machine
from mmulab.record.session import Recorded, record
from mmulab.record.work import A_HOST, Work, of_scenario, read_recorded
from mmulab.scenario.text import SUFFIX, read_scenario


def _usual(limit: str) -> str:
    """Say what is usual of a limit, for each emulator."""
    return ", ".join(f"{getattr(e.limits, limit):g} in {e.name}" for e in EMULATORS.values())


@click.command(name="record")
@click.argument("works", nargs=-1, required=True, metavar="SCENARIO...")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Where the recordings go.")
@click.option(
    "--deb", metavar="PACKAGE", help="A Debian kernel: linux-image-..., downloaded, or a .deb file."
)
@click.option("--kernel", "image", type=PATH, metavar="BZIMAGE", help="A kernel of your own.")
@click.option("--modules", type=PATH, metavar="DIR", help="Its build tree or lib/modules/RELEASE.")
@click.option(
    "--host",
    "this_machine",
    is_flag=True,
    help="This machine's own KVM, as root: a scenario that kills its host kills THIS MACHINE.",
)
@click.option(
    "--vendor", type=click.Choice(["amd", "intel"]), help="Leave out what this vendor's hosts cannot run."
)
@click.option(
    "--kvm", "settings", default="", metavar="NAME=VALUE,..", help="Module parameters: npt=0,ept=0,tdp_mmu=0."
)
@click.option("--levels", type=click.Choice(["4", "5"]), help="Levels of the host's own tables.")
@click.option(
    "--limit",
    type=click.FloatRange(1),
    default=None,
    show_default=_usual("scenario"),
    help="Seconds a scenario.",
)
@click.option(
    "--boot-limit",
    type=click.FloatRange(1),
    default=None,
    show_default=_usual("boot"),
    help="Seconds a boot.",
)
@click.pass_context
def record_scenarios(
    ctx: click.Context,
    works: tuple[str, ...],
    out: Path,
    deb: str | None,
    image: Path | None,
    modules: Path | None,
    this_machine: bool,
    vendor: str | None,
    settings: str,
    levels: str | None,
    limit: float | None,
    boot_limit: float | None,
) -> None:
    """Run scenarios on a real kernel and write its recordings to DIR.

    SCENARIO is a scenario file (.mmu), a recording, whose scenario is recorded anew, the name of a case or
    recording ('mmulab cases', conformance/6.1.192/sh/basic-32), or a folder of files. The host, its module
    parameters and levels, is the one that the scenario's header names; --kvm and --levels change it.
    AMD hosts run in QEMU, Intel ones in Bochs.
    Scenarios of one host run in one boot. One that kills the host is recorded up to there, with
    the kernel's words, and the others run in a fresh boot; the exit code is then 1. 'mmulab doctor record'
    says what this machine lacks.

    With --host nothing is booted and no module is loaded. A scenario that needs another host than this
    machine as it is, is left out and named, and the exit code is 1. Settings and tracing are left as they
    were. A scenario that kills its host kills this machine, and whatever is not saved is lost.
    """
    changes = parse_parameters(settings)
    machine = _this_machine(deb, image, modules, settings, levels) if this_machine else None
    asked = _possible(list(_find(works)), vendor)
    if machine:
        found = _of_machine(asked, machine)
        hosts = [machine.kernel_parameters()] * len(found)
    else:
        found = asked
        hosts = [work.parameters().changed(int(levels) if levels else None, changes) for work in found]
        _check_hosts(found, hosts, changes)
    kernel = None if machine else _kernel(deb, image, modules)
    _make_folders(out, found)
    try:
        whole = _write(record(found, kernel, hosts, _told, boot_limit, limit), len(found), out)
    except BootError as error:
        for line in error.tail:
            click.echo(f"  console: {line}", err=True)
        raise
    if not whole or len(found) < len(asked):
        ctx.exit(1)


def _told(line: str) -> None:
    click.echo(line, err=True)


def _write(results: Generator[Recorded, None, None], count: int, out: Path) -> bool:
    """Write all recordings as they come; return whether each ran to its end."""
    whole = 0
    with closing(results) as each:
        for number, recorded in enumerate(each, 1):
            if recorded.lines:
                write_recording(out / f"{recorded.work.name}{SUFFIXES[0]}", recorded.lines)
            whole += not (recorded.error or recorded.words)
            for line in _lines(recorded):
                click.echo(f"[{number}/{count}] {recorded.work.name}: {line}")
    click.echo(f"{whole} of {count} scenarios recorded whole, in {out}")
    return whole == count


def _lines(recorded: Recorded) -> Iterator[str]:
    for note in recorded.notes:
        yield f"note: {note}"
    if recorded.error:
        yield f"not recorded: {recorded.error}"
    elif recorded.words:
        yield f"host_died: {recorded.words[0]}"
        yield from (f"    {line}" for line in recorded.words[1:])
    else:
        yield f"{len(recorded.lines) - 2} records in {recorded.seconds:.2f} s"


def _this_machine(
    deb: str | None, image: Path | None, modules: Path | None, settings: str, levels: str | None
) -> Machine:
    """Return what this machine's KVM is, after a look at all that is needed of it."""
    given = {"--deb": deb, "--kernel": image, "--modules": modules, "--kvm": settings, "--levels": levels}
    for option, value in given.items():
        if value:
            raise InputError(f"--host: this machine is taken as it is; leave out {option}, or --host")
    lacking = list(_lacking())
    for line in lacking[:-1]:
        click.echo(f"mmulab: {line}", err=True)
    if lacking:
        raise InputError(lacking[-1])
    return read_machine()


def _lacking() -> Iterator[str]:
    for name, look in NEEDS.items():
        try:
            look(Path("/"))
        except InputError as error:
            yield f"--host {name}: {error}"


def _of_machine(works: list[Work], machine: Machine) -> list[Work]:
    """Return what this machine is the host for, and say of each other why it is not."""
    kept = []
    for work in works:
        if why := machine.obstacle(work.scenario.header):
            click.echo(f"{work.name}: left out: {why}", err=True)
        else:
            kept.append(work)
    if not kept:
        raise InputError(f"this machine is the host of none of the {len(works)} scenarios; use --deb")
    return kept


def _kernel(deb: str | None, image: Path | None, modules: Path | None) -> KernelFiles:
    if (deb is None) == (image is None):
        raise InputError("which kernel: give --deb linux-image-..., --kernel BZIMAGE --modules DIR or --host")
    if image is not None:
        return from_build(image, modules)
    if modules is not None:
        raise InputError(f"--modules {named(modules)}: goes with --kernel; a package has its own")
    assert deb is not None
    return from_deb(deb)


def _find(names: tuple[str, ...]) -> Iterator[Work]:
    """Yield the work that each argument names."""
    for name in names:
        path = Path(name)
        if name and path.is_dir():
            yield from _in_folder(path)
        else:
            yield from named_works(name)


def _in_folder(folder: Path) -> Iterator[Work]:
    texts = sorted(folder.rglob(f"*{SUFFIX}"))
    for path in texts:
        yield of_scenario(str(path.relative_to(folder)).removesuffix(SUFFIX), read_scenario(path))
    if texts and not any(path.name.endswith(SUFFIXES) for path in folder.rglob("*")):
        return
    for path in find_recordings([str(folder)]):
        yield read_recorded(path, str(path.relative_to(folder)).partition(".jsonl")[0])


def _possible(works: list[Work], vendor: str | None) -> list[Work]:
    """Return what can run, of one vendor if that is asked for; that more is left out must have been, too."""
    host = "any host" if vendor is None else A_HOST[vendor]
    mine = [work for work in works if vendor in (None, work.scenario.header.vendor)]
    kept = [work for work in mine if not work.obstacle()]
    hindered = [work for work in mine if work.obstacle()]
    if hindered and vendor is None:
        makers = " or ".join(sorted({work.scenario.header.vendor for work in hindered}))
        mend = f"--vendor {makers} leaves out what cannot run, {len(hindered)} of {len(works)}"
        raise InputError(f"{hindered[0].name}: {hindered[0].obstacle()}; {mend}")
    if not kept:
        raise InputError(f"none of the {len(works)} scenarios can run on {host}; name others")
    if len(kept) < len(works):
        left_out = len(works) - len(kept)
        click.echo(f"left out: {left_out} scenarios that cannot run on {host}", err=True)
    return kept


def _check_hosts(
    works: list[Work], hosts: list[KernelParameters], changes: Iterable[tuple[str, str, str]]
) -> None:
    """Refuse a host that its emulator cannot be, and a parameter that no host has."""
    for work, host in zip(works, hosts, strict=True):
        if obstacle := EMULATORS[host.vendor].obstacle(host, work.scenario.header.host):
            raise InputError(f"{work.name}: {obstacle}")
    names = {name for host in hosts for _, name, _ in host.modules}
    for module, name, _ in changes:
        if name not in names:
            raise InputError(f"--kvm {name}: of {module}, which the hosts of these scenarios do not load")


def _make_folders(out: Path, works: list[Work]) -> None:
    """Make the folders of the recordings, each of which needs a name of its own."""
    seen: dict[str, Work] = {}
    for work in works:
        if work.name in seen:
            both = f"{named(seen[work.name].scenario.source)} and {named(work.scenario.source)}"
            raise InputError(
                f"{both}: both would be {work.name}{SUFFIXES[0]}; record them into different folders"
            )
        seen[work.name] = work
    for folder in {(out / work.name).parent for work in works}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"{files.reason(error)}; {files.remedy(error, 'folder')}"
            raise InputError(f"{named(folder)}: {why}") from error
