"""A kernel's image without its decompressor; that it runs shows in every recording of an Intel host."""

from __future__ import annotations

import gzip
import lzma
import struct

import pytest

from mmulab.record.flat_kernel import flat_image

ADDRESS = 0x1000000
TEXT, DATA = b"text" * 100, b"data" * 3


def kernel() -> bytes:
    """Return an ELF file with two segments, the second 4 KiB behind the first."""
    header = b"\x7fELF\x02".ljust(24, b"\0") + struct.pack("<QQ", ADDRESS + 8, 64)
    header = header.ljust(54, b"\0") + struct.pack("<HH", 56, 2)
    segments = b""
    for offset, physical, data in ((0x200, ADDRESS, TEXT), (0x400, ADDRESS + 0x1000, DATA)):
        segments += struct.pack("<IIQQQQQQ", 1, 5, offset, 0, physical, len(data), 0x2000, 0)
    whole = header.ljust(64, b"\0") + segments
    return whole.ljust(0x200, b"\0") + TEXT.ljust(0x200, b"\0") + DATA


def image(payload: bytes) -> bytes:
    """Return a bzImage with one sector of setup behind the first, and a decompressor of 16 bytes."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    setup[0x234] = 1
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    struct.pack_into("<QI", setup, 0x258, ADDRESS, 0x300000)
    return bytes(setup) + bytes(16) + payload


@pytest.mark.parametrize("pack", [lambda data: lzma.compress(data) + b"size", gzip.compress])
def test_the_kernel_lies_unpacked_behind_its_start(pack: object) -> None:
    made = flat_image(image(pack(kernel())))  # type: ignore[operator]
    assert made is not None
    body = made[1024:]
    size = 0x1000 + len(DATA)
    assert body[0x7000:] == (TEXT.ljust(0x1000, b"\0") + DATA).ljust((size + 15) // 16 * 16, b"\0")
    assert struct.unpack_from("<I", body, 4)[0] == 0x107000 + size - 4  # moved from its last word on
    assert struct.unpack_from("<I", body, 9)[0] == ADDRESS + size - 4
    assert struct.unpack_from("<I", made, 0x1F4)[0] * 16 == len(body)
    assert struct.unpack_from("<Q", made, 0x258)[0] == 0x100000
    assert struct.unpack_from("<I", made, 0x260)[0] == ADDRESS - 0x100000 + 0x300000


def test_the_first_four_gibibytes_are_mapped_as_they_are() -> None:
    made = flat_image(image(lzma.compress(kernel())))
    assert made is not None
    tables = made[1024:]

    def entry(table: int, index: int) -> int:
        return int(struct.unpack_from("<Q", tables, table - 0x100000 + 8 * index)[0])

    for address in (0, 0x1234567, 0xFFFFFFFF):
        pdpt = entry(0x101000, 0) & ~0xFFF
        leaf = entry(entry(pdpt, address >> 30) & ~0xFFF, address >> 21 & 511)
        assert leaf == address >> 21 << 21 | 0x83


@pytest.mark.parametrize(
    "data", [b"", bytes(4096), image(b"\x28\xb5\x2f\xfd zstd"), image(lzma.compress(b"no kernel" * 10))]
)
def test_an_image_of_another_kind_stays_as_it_is(data: bytes) -> None:
    assert flat_image(data) is None
