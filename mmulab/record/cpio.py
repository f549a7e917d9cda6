"""Writes an initramfs: an archive in cpio's ``newc`` format, as the kernel unpacks it.

Source: Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Entry", "archive", "console", "file", "folder"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGN = 4


class Entry(NamedTuple):
    """One thing in the archive.

    Attributes
    ----------
    name : str
        Its path, without a slash in front.
    mode : int
        Kind and permissions, as ``stat`` has them.
    data : bytes
        What a file holds.
    device : (int, int)
        Major and minor number of a device.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """Return a file."""
    return Entry(name, stat.S_IFREG | mode, data)


def folder(name: str) -> Entry:
    """Return a folder; it must stand before what is in it."""
    return Entry(name, stat.S_IFDIR | 0o755)


def console() -> Entry:
    """Return the device on which the kernel opens its first process's standard streams."""
    return Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive of some entries, in their order."""
    pieces = [_entry(number, entry) for number, entry in enumerate(entries, 1)]
    return b"".join([*pieces, _entry(0, Entry(_TRAILER, 0))])


def _entry(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)
