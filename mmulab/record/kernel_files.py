"""The kernel of a recording host: its image and the modules that KVM needs, from a package or a build."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mmulab import files
from mmulab.errors import InputError, named, quoted
from mmulab.record.cache import cache_folder
from mmulab.record.tools import call, find_tool

__all__ = ["PACKAGES", "KernelFiles", "Module", "cached_package", "from_build", "from_deb"]

PACKAGES = {
    "6.1.192": "linux-image-6.1.0-56-amd64-unsigned",
    "6.12.117": "linux-image-6.12.117+deb12-amd64-unsigned",
}
"""Debian's packages of the kernels that the recordings in ``data`` were made on."""

_DEPENDS = re.compile(rb"(?:^|\0)depends=([\w,-]*)\0")
_MODULE = re.compile(r"([\w-]+)\.ko(\.xz|\.gz|\.zst)?")
_OF_KVM = ("kvm", "kvm_amd", "irqbypass", "ccp", "kvm_intel")
_OF_DISKS = ("ata_piix", "libata", "sd_mod", "scsi_mod", "scsi_common", "t10_pi", "crc64", "crc64_rocksoft")
_OF_PACKAGES = {*_OF_KVM, *_OF_DISKS, "crc_t10dif", "crct10dif_common", "brd"}
"""What Debian's kernels need, and a disk to swap to; another's package is read again for what is missing."""
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")


class Module(NamedTuple):
    """A module, unpacked."""

    name: str
    data: bytes


class KernelFiles(NamedTuple):
    """Where a kernel's files lie.

    Attributes
    ----------
    image : Path
        The bzImage.
    modules : dict of str to Path
        Files of modules by name, with ``_``.
    built_in : frozenset of str
        Names of what the image has in itself.
    modules_told : bool
        False: nobody said where modules are, so all must be built in.
    """

    image: Path
    modules: dict[str, Path]
    built_in: frozenset[str]
    modules_told: bool = True

    def needed(self, *names: str) -> list[Module]:
        """Return modules and what they depend on, in the order of loading.

        Raises
        ------
        InputError
            One is neither there nor built in.
        """
        found: dict[str, bytes] = {}
        for name in names:
            self._collect(_plain(name), found)
        return [Module(*item) for item in found.items()]

    def _collect(self, name: str, found: dict[str, bytes]) -> None:
        if name in found or name in self.built_in or not self.modules_told:
            return
        if name not in self.modules:
            raise InputError(
                f"{named(self.image)}: no module {name}.ko beside it, and modules.builtin does not have it; "
                f"build it: KVM with CONFIG_KVM and CONFIG_KVM_AMD or CONFIG_KVM_INTEL, for Bochs "
                f"CONFIG_ATA_PIIX and CONFIG_BLK_DEV_SD"
            )
        data = _unpacked(self.modules[name])
        depends = _DEPENDS.search(data)
        if depends is None:
            raise InputError(
                f"{named(self.modules[name])}: no kernel module: nothing in it says what it depends on"
            )
        for other in filter(None, depends[1].decode().split(",")):
            self._collect(_plain(other), found)
        found[name] = data


def from_build(image: Path, modules: Path | None) -> KernelFiles:
    """Return the files of a kernel that was built, or unpacked, by its owner.

    Parameters
    ----------
    image : Path
    modules : Path or None
        A folder with modules anywhere in it: a build tree, or ``lib/modules/RELEASE``.

    Raises
    ------
    InputError
    """
    files.check_file(image)
    if modules is None:
        return KernelFiles(image, {}, frozenset(), modules_told=False)
    if not modules.is_dir():
        raise InputError(f"{named(modules)}: no such folder; name the build tree or lib/modules/RELEASE")
    return _files_in(image, modules)


def from_deb(package: str) -> KernelFiles:
    """Return the files of a Debian package, unpacked into the cache and never installed.

    Parameters
    ----------
    package : str
        A name, which ``apt-get download`` fetches, or a path that ends in ``.deb``.

    Raises
    ------
    InputError
    """
    deb = Path(package) if package.endswith(".deb") else _downloaded(package)
    files.check_file(deb, limit=1 << 31)
    with open(deb, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache_folder("kernels", f"{deb.stem.partition('_')[0]}-{digest}")
    lacking = set(_OF_PACKAGES)
    while True:  # what the package does not have is said where it is needed
        found = _unpacked_package(deb, folder, lacking)
        if lacking == (lacking := lacking | _lacking(found)):
            return found


def _unpacked_package(deb: Path, folder: Path, wanted: set[str]) -> KernelFiles:
    """Return the files in `folder`, after unpacking what was not yet looked for."""
    complete = folder / "unpacked"
    looked_for = set(complete.read_text().split()) if complete.exists() else set()
    if not wanted <= looked_for:
        _unpack(deb, folder, wanted - looked_for)
        files.write_bytes(complete, " ".join(sorted(wanted | looked_for)).encode())
    images = sorted(folder.glob("**/boot/vmlinuz-*"))
    if not images:
        complete.unlink()
        raise InputError(f"{named(deb)}: no kernel in it; name what it depends on, linux-image-VERSION-amd64")
    return _files_in(images[0], folder)


def _lacking(found: KernelFiles) -> set[str]:
    """Return the modules that others depend on and that were not unpacked."""
    have = set(found.modules) | found.built_in
    lacking = set()
    for path in found.modules.values():
        depends = _DEPENDS.search(_unpacked(path))
        if depends is not None:
            lacking |= {_plain(name) for name in depends[1].decode().split(",") if name} - have
    return lacking


def _downloaded(package: str) -> Path:
    """Download a package with apt, unless the cache has it."""
    if not _PACKAGE_NAME.fullmatch(package):
        raise InputError(f"--deb '{quoted(package)}': neither a .deb file nor a package's name")
    if (known := cached_package(package)) is None:
        folder = cache_folder("packages")
        call(f"--deb {package}", [find_tool("apt-get"), "download", package], cwd=folder)
        known = cached_package(package)
    if known is None:
        raise InputError(f"--deb {package}: apt-get download left no {package}_*.deb; run apt-get update")
    return known


def cached_package(package: str, release: str = "") -> Path | None:
    """Return the newest file of a package that was downloaded before, of a release only if one is given.

    Raises
    ------
    InputError
        There can be no cache.
    """
    version = f"{release}-*" if release else "*"
    return max(cache_folder("packages").glob(f"{package}_{version}.deb"), default=None)


def _unpack(deb: Path, folder: Path, modules: set[str]) -> None:
    """Unpack the image, ``modules.builtin`` and some modules; the rest of a package is half a gigabyte."""
    command = [find_tool("dpkg-deb"), "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and _is_wanted(member.name, modules):
                        archive.extract(member, folder, filter="data")
        except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
            process.kill()
            raise InputError(
                f"{named(deb)}: no Debian package ({quoted(error)}); download it again"
            ) from error
        process.stdout.read()


def _is_wanted(name: str, modules: set[str]) -> bool:
    base = os.path.basename(name)
    if base.startswith("vmlinuz-") or base == "modules.builtin":
        return True
    module = _MODULE.fullmatch(base)
    return module is not None and _plain(module[1]) in modules


def _files_in(image: Path, folder: Path) -> KernelFiles:
    paths: dict[str, Path] = {}
    built_in: set[str] = set()
    for at, _, names in os.walk(folder):
        for name in names:
            if module := _MODULE.fullmatch(name):
                paths[_plain(module[1])] = Path(at, name)
            elif name == "modules.builtin":
                built_in |= set(_names(files.read_text(Path(at, name)).split()))
    return KernelFiles(image, paths, frozenset(built_in))


def _names(paths: Iterable[str]) -> Iterable[str]:
    return (_plain(os.path.basename(path).removesuffix(".ko")) for path in paths)


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _unpacked(path: Path) -> bytes:
    data = files.read_bytes(path)
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        raise InputError(f"{named(path)}: compressed with zstd; unpack it with zstd -d --rm {path.name}")
    return data
