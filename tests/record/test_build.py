"""What a host boots from."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from mmulab.record.build import SOURCES, compiled_vmm, initramfs
from mmulab.record.host import KernelParameters
from mmulab.record.kernel_files import from_build
from mmulab.scenario.scenario import HOST_DEFAULTS
from tests.record.test_cpio import read
from tests.record.test_kernel_files import build


def test_the_initramfs_loads_kvm_with_its_parameters(tmp_path: Path) -> None:
    image, top = build(tmp_path, kvm_amd="kvm", kvm="")
    vmm = tmp_path / "vmm"
    vmm.write_bytes(b"program")
    packed = initramfs(vmm, from_build(image, top), KernelParameters.of_header("amd", HOST_DEFAULTS))
    entries = {entry.name: entry for entry in read(gzip.decompress(packed))}
    assert entries["init"].data == b"program"
    assert entries["init"].mode & 0o111
    assert entries["modules"].data == b"kvm.ko\nkvm_amd.ko npt=0\n"
    assert entries["drivers"].data == b""
    assert "lib/brd.ko" not in entries
    assert {"lib/kvm.ko", "lib/kvm_amd.ko", "probes", "events", "dev/console"} <= set(entries)


def test_what_the_link_needs_is_loaded_before_it(tmp_path: Path) -> None:
    image, top = build(tmp_path, kvm_intel="kvm", kvm="", sd_mod="scsi_mod", scsi_mod="")
    vmm = tmp_path / "vmm"
    vmm.write_bytes(b"program")
    host = KernelParameters.of_header("intel", HOST_DEFAULTS)
    packed = initramfs(vmm, from_build(image, top), host, ["sd_mod"])
    entries = {entry.name: entry for entry in read(gzip.decompress(packed))}
    assert entries["drivers"].data == b"scsi_mod.ko\nsd_mod.ko\n"
    assert entries["modules"].data == b"kvm.ko\nkvm_intel.ko ept=0\n"
    assert {"lib/scsi_mod.ko", "lib/sd_mod.ko"} <= set(entries)
    assert b"kvm/kvm_nested_vmenter\n" in entries["events"].data


def test_the_disk_to_swap_to_is_there_and_loaded_by_the_vmm(tmp_path: Path) -> None:
    image, top = build(tmp_path, kvm_amd="kvm", kvm="", brd="")
    (tmp_path / "vmm").write_bytes(b"program")
    parameters = KernelParameters.of_header("amd", HOST_DEFAULTS)
    packed = initramfs(tmp_path / "vmm", from_build(image, top), parameters)
    entries = {entry.name: entry for entry in read(gzip.decompress(packed))}
    assert "lib/brd.ko" in entries
    assert b"brd" not in entries["modules"].data


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_the_vmm_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = compiled_vmm()
    made = first.stat().st_mtime_ns
    assert compiled_vmm() == first
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_c_files_stay_small() -> None:
    sizes = {path.name: len(path.read_text("utf-8").splitlines()) for path in SOURCES.glob("*.[ch]")}
    assert sizes
    assert max(sizes.values()) < 500
