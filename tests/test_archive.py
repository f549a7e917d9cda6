"""Archives: claims are compared with what is held, and damage names file and part."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmulab import limits
from mmulab.archive import open_archive
from mmulab.errors import InputError

AGAIN = "copy it again"


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=True)
    return buffer.getvalue()


def claiming(shape: str, dtype: str = "<u8", data: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def archive(path: Path, **parts: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in parts.items():
            made.writestr(f"{name}.npy", data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.npz"


def refused(path: Path, name: str = "a") -> str:
    with pytest.raises(InputError) as raised, open_archive(path, AGAIN) as opened:
        opened.array(name, ("uint64",))
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert text.isprintable()
    return text.removeprefix(f"{path}: ")


def test_arrays_come_back(path: Path) -> None:
    values = np.arange(6, dtype=np.uint64).reshape(2, 3)
    archive(path, a=npy(values), f=npy(np.asfortranarray(values)))
    with open_archive(path, AGAIN) as opened:
        for name in "af":
            assert (opened.array(name, ("uint64",), 2) == values).all()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (claiming("(1000000000000,)"), "holds 0 bytes"),
        (claiming("(2,)", data=bytes(15)), "holds 15 bytes"),
        (claiming("(-1,)"), "a is no array"),
        (claiming("(-1, -1)", data=bytes(8)), "a is no array"),
        (claiming("(True,)", data=bytes(8)), "a is no array"),
        (claiming("(" + "1, " * 100 + ")", data=bytes(8)), "a is no array"),
        (claiming("(__import__('os'),)"), "a is no array"),
        (claiming("(1,)", "|O", bytes(8)), "a is object, expected uint64"),
        (claiming("(1,)", ">u8", bytes(8)), "a is >u8, expected uint64"),
        (npy(np.zeros(2, np.float64)), "a is float64, expected uint64"),
        (npy(np.zeros((2, 2), np.uint64)), "a has 2 axes, expected 1"),
        (npy(np.array([object], object)), "a is object, expected uint64"),
        (claiming("(1,"), "a is no array"),
        (b"", "a is no array"),
        (b"\x93NUMPY\x09\x00", "a is no array"),
    ],
)
def test_an_array_that_is_not_what_it_says(path: Path, data: bytes, said: str) -> None:
    assert said in refused(archive(path, a=data))


def test_a_part_that_is_missing(path: Path) -> None:
    assert refused(archive(path, b=b""), "a") == "a.npy is missing from the file; copy it again"


def test_more_than_the_limits_allow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(path, a=bytes(10_000))
    monkeypatch.setattr(limits, "UNPACKED_BYTES", 9_999)
    assert refused(path) == "unpacks to 10000 bytes; the limit is 9999; copy it again"
    monkeypatch.setattr(limits, "ARCHIVE_MEMBERS", 0)
    assert refused(path) == "1 parts; the limit is 0; copy it again"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: data.replace(b"\x08\x00", b"\x63\x00"),  # another way of compression
    ],
)
def test_damage_is_one_line(path: Path, change: Callable[[bytes], bytes]) -> None:
    archive(path, a=npy(np.arange(1000, dtype=np.uint64)))
    path.write_bytes(change(path.read_bytes()))
    assert refused(path).endswith("; copy it again")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_parts_of_one_name(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a.npy", b"")
        made.writestr("a.npy", b"")
    assert refused(path) == "two parts of one name; copy it again"
