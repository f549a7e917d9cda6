"""A kernel's image without its decompressor, whose work is most of a boot in a slow emulator.

What a boot loader loads stays a bzImage: the kernel's own real-mode setup, and behind
it in place of the decompressor a start that moves the kernel to where it was linked
and enters it in 64-bit mode, with the first 4 GiB mapped as they are.

Source: Linux 6.1 ``Documentation/x86/boot.rst``: the real-mode header, the 32-bit and
the 64-bit boot protocol
"""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import NamedTuple

__all__ = ["flat_image"]

_SETUP_SECTS, _SYSSIZE, _MAGIC, _VERSION = 0x1F1, 0x1F4, 0x202, 0x206
_RELOCATABLE, _PAYLOAD, _PREF_ADDRESS, _INIT_SIZE = 0x234, 0x248, 0x258, 0x260
_WITH_INIT_SIZE = 0x20A
_SECTOR, _PAGE = 512, 4096

_START = 0x100000
"""Where a boot loader puts what follows the setup."""
_TABLES = _START + _PAGE
_GIBIBYTES = 4
_KERNEL = _TABLES + (2 + _GIBIBYTES) * _PAGE
_GDT = _START + 0x100
_CS, _DS = 0x10, 0x18
_SEGMENTS = (0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF)
_PRESENT_WRITABLE, _LARGE = 3, 0x80


class _Unpacked(NamedTuple):
    """The kernel as it lies in memory: from `address` on, and where it is entered."""

    address: int
    entry: int
    data: bytes


def flat_image(image: bytes) -> bytes | None:
    """Return a bzImage that needs no decompression; None: this one is of no kind that is known here."""
    if len(image) < _INIT_SIZE + 4 or image[_MAGIC : _MAGIC + 4] != b"HdrS":
        return None
    if struct.unpack_from("<H", image, _VERSION)[0] < _WITH_INIT_SIZE:
        return None
    setup_bytes = (image[_SETUP_SECTS] + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    packed = image[setup_bytes + offset : setup_bytes + offset + length]
    kernel = _unpacked(packed)
    if kernel is None or kernel.address < _KERNEL:
        return None
    body = _start(kernel).ljust(_PAGE, b"\0") + _tables() + kernel.data
    setup = bytearray(image[:setup_bytes])
    span = kernel.address - _START + struct.unpack_from("<I", image, _INIT_SIZE)[0]
    struct.pack_into("<I", setup, _SYSSIZE, (len(body) + 15) // 16)
    setup[_RELOCATABLE] = 0
    struct.pack_into("<Q", setup, _PREF_ADDRESS, _START)
    struct.pack_into("<I", setup, _INIT_SIZE, span)
    return bytes(setup) + body + bytes(-len(body) % 16)


def _unpacked(packed: bytes) -> _Unpacked | None:
    try:
        if packed.startswith(b"\xfd7zXZ"):
            elf = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed)
        elif packed.startswith(b"\x1f\x8b"):
            elf = zlib.decompressobj(wbits=31).decompress(packed)
        else:
            return None
    except (lzma.LZMAError, zlib.error):
        return None
    return _loaded(elf)


def _loaded(elf: bytes) -> _Unpacked | None:
    """Lay the segments of an ELF file out as they lie in memory, by their physical addresses."""
    if elf[:5] != b"\x7fELF\x02":
        return None
    entry, headers = struct.unpack_from("<QQ", elf, 24)
    size, count = struct.unpack_from("<HH", elf, 54)
    segments = []
    for at in range(headers, headers + size * count, size):
        kind, _, offset, _, physical, in_file, _, _ = struct.unpack_from("<IIQQQQQQ", elf, at)
        if kind == 1 and in_file:
            segments.append((physical, elf[offset : offset + in_file]))
    if not segments:
        return None
    start = min(address for address, _ in segments)
    data = bytearray(max(address + len(piece) for address, piece in segments) - start)
    for address, piece in segments:
        data[address - start : address - start + len(piece)] = piece
    return _Unpacked(start, entry, bytes(data) + bytes(-len(data) % 4))


def _tables() -> bytes:
    """Return page tables that map memory as it is, in 2 MiB pages."""
    directories = [_TABLES + (2 + i) * _PAGE for i in range(_GIBIBYTES)]
    top = struct.pack("<Q", (_TABLES + _PAGE) | _PRESENT_WRITABLE).ljust(_PAGE, b"\0")
    second = struct.pack(f"<{_GIBIBYTES}Q", *(d | _PRESENT_WRITABLE for d in directories))
    pages = range(_GIBIBYTES * 512)
    return (
        top
        + second.ljust(_PAGE, b"\0")
        + b"".join(struct.pack("<Q", page << 21 | _LARGE | _PRESENT_WRITABLE) for page in pages)
    )


def _start(kernel: _Unpacked) -> bytes:
    """Return the code at the start, entered in 32-bit mode with the boot parameters in ESI, and its GDT."""

    def word(value: int) -> str:
        return struct.pack("<I", value).hex()

    size = len(kernel.data)
    code = [
        "89f5",  # mov %esi, %ebp
        "fd",  # std: the kernel moves up, over itself
        "be" + word(_KERNEL + size - 4),  # mov $.., %esi
        "bf" + word(kernel.address + size - 4),  # mov $.., %edi
        "b9" + word(size // 4),  # mov $.., %ecx
        "f3a5",  # rep movsl
        "fc",  # cld
        "b8" + word(_TABLES) + "0f22d8",  # mov $.., %eax; mov %eax, %cr3
        "0f20e0" + "0c20" + "0f22e0",  # CR4.PAE
        "b9800000c0" + "0f32" + "0fbae808" + "0f30",  # EFER.LME
        "0f0115" + word(_GDT),  # lgdt
        "0f20c0" + "0fbae81f" + "0f22c0",  # CR0.PG
    ]
    here = _START + len(bytes.fromhex("".join(code))) + 7
    code += [
        "ea" + word(here) + "1000",  # ljmp $CS, $here
        f"b8{word(_DS)}8ed88ec08ed0",  # mov $DS, %eax; to %ds, %es, %ss
        "89ee",  # mov %ebp, %esi
        f"b8{word(kernel.entry)}ffe0",  # mov $.., %eax; jmp *%rax
    ]
    gdt = struct.pack("<HI2x", 8 * len(_SEGMENTS) - 1, _GDT + 8) + struct.pack("<4Q", *_SEGMENTS)
    return bytes.fromhex("".join(code)).ljust(_GDT - _START, b"\0") + gdt
