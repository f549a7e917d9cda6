"""The kernel's files, from a build and from a package."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from mmulab.errors import InputError
from mmulab.record.kernel_files import cached_package, from_build, from_deb


def module(folder: Path, name: str, depends: str, packed: bool = False) -> None:
    """Write what is read of a module."""
    folder.mkdir(parents=True, exist_ok=True)
    data = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"
    if packed:
        (folder / f"{name}.ko.xz").write_bytes(lzma.compress(data))
    else:
        (folder / f"{name}.ko").write_bytes(data)


def build(top: Path, **depends: str) -> tuple[Path, Path]:
    """Write a build tree with an image and modules."""
    image = top / "bzImage"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(b"image")
    for name, others in depends.items():
        module(top / "arch/x86/kvm", name.replace("_", "-"), others, packed=name == "kvm")
    return image, top


def test_modules_come_in_the_order_of_loading(tmp_path: Path) -> None:
    image, top = build(tmp_path, kvm_amd="kvm,ccp", kvm="irqbypass", irqbypass="", ccp="rng-core")
    (top / "modules.builtin").write_text("kernel/drivers/char/hw_random/rng-core.ko\n")
    needed = from_build(image, top).needed("kvm-amd")
    assert [name for name, _ in needed] == ["irqbypass", "kvm", "ccp", "kvm_amd"]
    assert all(data.startswith(b"\x7fELF") for _, data in needed)


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    image, top = build(tmp_path, kvm_amd="kvm")
    with pytest.raises(InputError, match=r"no module kvm\.ko"):
        from_build(image, top).needed("kvm_amd")


def test_without_modules_all_is_built_in(tmp_path: Path) -> None:
    image, _ = build(tmp_path)
    assert from_build(image, None).needed("kvm_amd") == []


def test_what_is_no_module_is_said(tmp_path: Path) -> None:
    image, top = build(tmp_path)
    (top / "kvm-amd.ko").write_bytes(b"text")
    with pytest.raises(InputError, match="no kernel module"):
        from_build(image, top).needed("kvm_amd")


def test_zstd_is_said_with_the_mend(tmp_path: Path) -> None:
    image, top = build(tmp_path)
    (top / "kvm-amd.ko.zst").write_bytes(b"")
    with pytest.raises(InputError, match=r"zstd -d --rm kvm-amd\.ko\.zst"):
        from_build(image, top).needed("kvm_amd")


def test_folders_and_images_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        from_build(tmp_path / "bzImage", None)
    image, _ = build(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        from_build(image, tmp_path / "ghost")


def package(top: Path, with_image: bool = True) -> Path:
    """Build a Debian package of a kernel."""
    tree = top / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: linux-image-test\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <a@b.c>\nDescription: none\n"
    )
    modules = tree / "lib/modules/1-test/kernel"
    module(modules / "arch/x86/kvm", "kvm-amd", "kvm,odd-one")
    module(modules / "arch/x86/kvm", "kvm", "")
    module(modules / "drivers", "odd-one", "")
    module(modules / "drivers", "unrelated", "")
    if with_image:
        (tree / "boot").mkdir()
        (tree / "boot/vmlinuz-1-test").write_bytes(b"image")
    subprocess.run(
        ["dpkg-deb", "-b", str(tree), str(top / "linux-image-test_1.deb")], check=True, capture_output=True
    )
    return top / "linux-image-test_1.deb"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg-deb")


@dpkg
def test_of_a_package_only_what_kvm_needs_is_unpacked(tmp_path: Path, cache: Path) -> None:
    files = from_deb(str(package(tmp_path)))
    assert files.image.read_bytes() == b"image"
    assert [name for name, _ in files.needed("kvm_amd")] == ["kvm", "odd_one", "kvm_amd"]
    assert not list(cache.rglob("unrelated.ko"))
    assert from_deb(str(tmp_path / "linux-image-test_1.deb")) == files  # from the cache


@dpkg
def test_a_cache_that_was_filled_for_less_is_filled_up(tmp_path: Path, cache: Path) -> None:
    files = from_deb(str(package(tmp_path)))
    told = next(cache.rglob("unpacked"))
    assert {"kvm_intel", "kvm_amd", "odd_one"} <= set(told.read_text().split())
    files.modules["kvm_amd"].unlink()
    told.write_text("kvm")  # an earlier version did not look for the others
    assert from_deb(str(tmp_path / "linux-image-test_1.deb")) == files


@dpkg
def test_a_package_without_a_kernel_is_said(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="no kernel in it"):
        from_deb(str(package(tmp_path, with_image=False)))


@dpkg
def test_a_file_that_is_no_package_is_said(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"not a package")
    with pytest.raises(InputError, match="no Debian package"):
        from_deb(str(tmp_path / "x.deb"))


def test_of_a_package_in_the_cache_the_release_that_is_wanted(cache: Path) -> None:
    folder = cache / "mmulab/packages"
    assert cached_package("linux-image-x") is None
    for version in ("6.1.19-9", "6.1.192-1", "6.1.192-2", "6.1.195-1"):
        (folder / f"linux-image-x_{version}_amd64.deb").touch()
    assert cached_package("linux-image-x", "6.1.192") == folder / "linux-image-x_6.1.192-2_amd64.deb"
    assert cached_package("linux-image-x", "6.1.19") == folder / "linux-image-x_6.1.19-9_amd64.deb"
    assert cached_package("linux-image-x") == folder / "linux-image-x_6.1.195-1_amd64.deb"
    assert cached_package("linux-image") is None


def test_a_name_that_no_package_has_is_said(cache: Path) -> None:
    with pytest.raises(InputError, match=r"neither a \.deb file nor a package's name"):
        from_deb("../x y")
