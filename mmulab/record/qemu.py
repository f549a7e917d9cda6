"""QEMU without KVM under it (TCG), which has SVM: AMD hosts."""

from __future__ import annotations

from collections.abc import Mapping

from mmulab.record.emulator import Boot, Emulator, Limits, as_it_is
from mmulab.record.host import KernelParameters
from mmulab.record.tools import find_tool

__all__ = ["QEMU"]


def _command(boot: Boot) -> list[str]:
    size = boot.link.stat().st_size
    link = f"memory-backend-file,id=link,size={size},mem-path={boot.link},share=on"
    return [
        find_tool("qemu-system-x86_64"),
        *("-nodefaults", "-display", "none", "-no-reboot", "-accel", "tcg", "-smp", "1"),
        *("-cpu", f"max,la57={'on' if boot.parameters.levels == 5 else 'off'}"),
        *("-m", str(boot.mebibytes)),
        *("-serial", f"file:{boot.console}"),
        *("-kernel", str(boot.image), "-initrd", str(boot.initramfs), "-append", boot.arguments),
        *("-object", link, "-device", "ivshmem-plain,memdev=link"),
    ]


def _obstacle(parameters: KernelParameters, wanted: Mapping[str, int]) -> str:
    return ""


QEMU = Emulator(
    name="QEMU",
    link="memory",
    drivers=(),
    arguments="",
    limits=Limits(boot=120, scenario=60),
    command=_command,
    obstacle=_obstacle,
    corrected=as_it_is,
)
