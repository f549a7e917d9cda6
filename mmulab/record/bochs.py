"""Bochs, which has VMX: Intel hosts.

It has neither shared memory nor a way to start a kernel by itself. So the link
is a disk, and the kernel lies on a disc that ISOLINUX boots. It ends where the
host triple-faults, which is how the kernel is told to restart.

Debian's 2.7 has processors with 4-level paging only. Its physical addresses have
40 bits whatever the model. What it does otherwise than a processor, as far as
recordings show it, is in :mod:`mmulab.record.bochs_trace`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mmulab import files
from mmulab.errors import InputError
from mmulab.record.bochs_trace import as_of_a_processor
from mmulab.record.emulator import Boot, Emulator, Limits
from mmulab.record.flat_kernel import flat_image
from mmulab.record.host import KernelParameters
from mmulab.record.tools import call, find_file, find_tool

__all__ = ["BOCHS", "needed_files"]

MAX_MEBIBYTES = 2048
_HEADS, _SECTORS, _SECTOR_BYTES = 16, 32, 512
"""A disk's geometry: the link's size is a multiple of a cylinder."""


class _Files(NamedTuple):
    """What lies where of the emulator's packages."""

    bios: Path
    vga_bios: Path
    loader: Path
    loader_module: Path


def needed_files() -> _Files:
    """Return the files that a boot needs beside the programs; raises InputError with the package."""
    return _Files(
        find_file("/usr/share/bochs/BIOS-bochs-latest"),
        find_file("/usr/share/bochs/VGABIOS-lgpl-latest"),
        find_file("/usr/lib/ISOLINUX/isolinux.bin"),
        find_file("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
    )


def _model(parameters: KernelParameters) -> str:
    """Return a processor that has what the parameters turn on, and no more than they ask for.

    The recordings' hosts are these two: page-modification logging is what the second has more.
    """
    pml = ("kvm_intel", "pml", "1") in parameters.modules
    return "corei7_skylake_x" if pml else "broadwell_ult"


_CONFIGURATION = """\
megs: {mebibytes}
cpu: model={model}, count=1, ips=200000000, reset_on_triple_fault=0, ignore_bad_msrs=1
romimage: file={bios}
vgaromimage: file={vga_bios}
display_library: sdl2
speaker: enabled=0
sound: waveoutdrv=dummy
clock: sync=slowdown, time0=1700000000, rtc_sync=0
pci: enabled=1, chipset=i440fx
boot: cdrom
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=disk, path={link}, mode=flat, cylinders={cylinders}, heads={heads}, spt={sectors}
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata1-master: type=cdrom, path={disc}, status=inserted
com1: enabled=1, mode=file, dev={console}
log: -
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"""
_LOADER = """\
DEFAULT host
PROMPT 0
TIMEOUT 0
LABEL host
 KERNEL vmlinuz
 INITRD initrd
 APPEND {arguments}
"""


def _make_disc(boot: Boot, found: _Files, disc: Path) -> None:
    folder = boot.folder / "disc"
    folder.mkdir()
    for path, name in (
        (found.loader, "isolinux.bin"),
        (found.loader_module, "ldlinux.c32"),
        (boot.initramfs, "initrd"),
    ):
        shutil.copyfile(path, folder / name)
    image = files.read_bytes(boot.image)
    (folder / "vmlinuz").write_bytes(flat_image(image) or image)
    (folder / "isolinux.cfg").write_text(_LOADER.format(arguments=boot.arguments))
    command = [find_tool("xorriso"), "-as", "mkisofs", "-quiet", "-o", str(disc)]
    command += ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot"]
    call("the host's disc", [*command, "-boot-load-size", "4", "-boot-info-table", str(folder)])
    shutil.rmtree(folder)


def _command(boot: Boot) -> list[str]:
    """Return Bochs as it runs without a screen and, if it has a debugger, without its prompt."""
    if boot.mebibytes > MAX_MEBIBYTES:
        raise InputError(f"the host would need {boot.mebibytes} MiB; Bochs has {MAX_MEBIBYTES} at most")
    found, bochs = needed_files(), find_tool("bochs")
    disc = boot.folder / "disc.iso"
    _make_disc(boot, found, disc)
    configuration, debugger = boot.folder / "bochsrc", boot.folder / "debugger"
    configuration.write_text(
        _CONFIGURATION.format(
            mebibytes=boot.mebibytes,
            model=_model(boot.parameters),
            bios=found.bios,
            vga_bios=found.vga_bios,
            link=boot.link,
            cylinders=boot.link.stat().st_size // (_HEADS * _SECTORS * _SECTOR_BYTES),
            heads=_HEADS,
            sectors=_SECTORS,
            disc=disc,
            console=boot.console,
        )
    )
    debugger.write_text("c\n")
    started = ("-q", "-f", str(configuration), "-rc", str(debugger))
    return [find_tool("env"), "SDL_VIDEODRIVER=dummy", bochs, *started]


def _obstacle(parameters: KernelParameters, wanted: Mapping[str, int]) -> str:
    if parameters.levels != 4:
        return "an Intel host runs in Bochs, which has 4-level paging only; --levels 4 takes such a host"
    if wanted["ept_advanced_info"]:
        return "its processor tells more of EPT violations (ept_advanced_info=1), which Bochs 2.7's do not"
    return ""


BOCHS = Emulator(
    name="Bochs",
    link="disk",
    drivers=("ata_piix", "sd_mod"),
    # Its timers run as fast as it does, so the kernel measures none of them.
    arguments="reboot=t tsc=reliable lpj=4000000 nowatchdog",
    limits=Limits(boot=900, scenario=600),
    command=_command,
    obstacle=_obstacle,
    corrected=as_of_a_processor,
)
