"""How Bochs is started, with programs that stand in for it and for what makes the disc."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.record import bochs, tools
from mmulab.record.bochs import BOCHS
from mmulab.record.emulator import Boot
from mmulab.record.host import KernelParameters
from mmulab.record.link import LINK_BYTES
from mmulab.scenario.scenario import HOST_DEFAULTS

WANTED = {**HOST_DEFAULTS, "virt_bits": 48, "ept": 1}


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Boot:
    """Return a boot where xorriso keeps the folder that it is given."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("xorriso", 'for last; do :; done; cp -r "$last" "$5.folder"'), ("bochs", "")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(bochs, "find_file", lambda path: tmp_path / "file")
    for name in ("file", "bzImage", "initramfs"):
        (tmp_path / name).write_text(name)
    with open(tmp_path / "link", "wb") as link:
        link.truncate(LINK_BYTES)
    host = KernelParameters.of_header("intel", WANTED)
    paths = [tmp_path / name for name in ("bzImage", "initramfs", "link", "console")]
    return Boot(tmp_path, *paths, "console=ttyS0 kvm_intel.ept=1", host, 1040)


def configuration(boot: Boot) -> dict[str, str]:
    command = BOCHS.command(boot)
    path = Path(command[command.index("-f") + 1])
    return dict(line.split(": ", 1) for line in path.read_text().splitlines())


def test_the_link_is_a_disk_of_its_whole_size(boot: Boot) -> None:
    said = configuration(boot)
    words = dict(word.split("=", 1) for word in said["ata0-master"].split(", "))
    assert words["path"] == str(boot.link)
    assert int(words["cylinders"]) * int(words["heads"]) * int(words["spt"]) * 512 == LINK_BYTES
    assert said["megs"] == "1040"
    assert f"dev={boot.console}" in said["com1"]


def test_the_disc_has_the_kernel_and_its_command_line(boot: Boot) -> None:
    BOCHS.command(boot)
    disc = boot.folder / "disc.iso.folder"
    assert (disc / "vmlinuz").read_text() == "bzImage"
    assert (disc / "initrd").read_text() == "initramfs"
    assert " APPEND console=ttyS0 kvm_intel.ept=1\n" in (disc / "isolinux.cfg").read_text()
    assert not (boot.folder / "disc").exists()


def test_page_modification_logging_takes_another_processor(boot: Boot) -> None:
    assert configuration(boot)["cpu"].startswith("model=broadwell_ult,")
    host = KernelParameters.of_header("intel", {**WANTED, "pml": 1})
    assert configuration(boot._replace(parameters=host))["cpu"].startswith("model=corei7_skylake_x,")


def test_a_guest_that_is_too_large_is_refused(boot: Boot) -> None:
    with pytest.raises(InputError, match="4096 MiB; Bochs has 2048 at most"):
        BOCHS.command(boot._replace(mebibytes=4096))


@pytest.mark.parametrize(
    ("change", "said"), [({"virt_bits": 57}, "4-level"), ({"ept_advanced_info": 1}, "ept_advanced_info=1")]
)
def test_processors_that_it_has_not_are_refused_by_name(change: dict[str, int], said: str) -> None:
    assert BOCHS.obstacle(KernelParameters.of_header("intel", WANTED), WANTED) == ""
    wanted = {**WANTED, **change}
    assert said in BOCHS.obstacle(KernelParameters.of_header("intel", wanted), wanted)


def test_a_missing_file_names_its_package() -> None:
    with pytest.raises(InputError, match="apt-get install isolinux"):
        tools.find_file("/usr/lib/ISOLINUX/ghost.bin")
