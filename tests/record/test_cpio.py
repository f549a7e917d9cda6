"""The initramfs: every field of an entry is where the kernel looks for it."""

from __future__ import annotations

import stat
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from mmulab.record import cpio


class Read(NamedTuple):
    name: str
    mode: int
    data: bytes
    device: tuple[int, int]


def read(archive: bytes) -> list[Read]:
    """Read an archive as Linux's init/initramfs.c does: 13 numbers, name, data, each padded to 4."""
    entries, at = [], 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert start == len(archive)
            return entries
        entries.append(Read(name[:-1].decode(), mode, archive[start : start + size], (fields[9], fields[10])))
        at = (start + size + 3) // 4 * 4


def test_files_folders_and_the_console_come_back() -> None:
    made = cpio.archive([cpio.folder("dev"), cpio.console(), cpio.file("init", b"#!", 0o755)])
    folder, console, init = read(made)
    assert stat.S_ISDIR(folder.mode)
    assert (console.name, stat.S_ISCHR(console.mode), console.device) == ("dev/console", True, (5, 1))
    assert (init.data, stat.S_ISREG(init.mode), stat.S_IMODE(init.mode)) == (b"#!", True, 0o755)


@given(st.lists(st.tuples(st.text("abc/", min_size=1, max_size=9), st.binary(max_size=9)), max_size=4))
def test_any_length_is_padded_right(files: list[tuple[str, bytes]]) -> None:
    made = cpio.archive(cpio.file(name, data) for name, data in files)
    assert [(entry.name, entry.data) for entry in read(made)] == files
