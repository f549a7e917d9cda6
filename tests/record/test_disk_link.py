"""The disk as link (``vmm/disk_link.c``), with a file in the disk's place."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmulab.record.build import SOURCES

RING, SIZE = 0x400000, 0x400000 + 0x60000
HARNESS = r"""
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "link.h"

void power_off(void) { exit(3); }

/* BLKGETSIZE64, of which a file knows nothing. */
int ioctl(int fd, unsigned long request, ...)
{
	va_list args;

	(void)fd, (void)request;
	va_start(args, request);
	*va_arg(args, u64 *) = BYTES;
	va_end(args);
	return 0;
}

int main(void)
{
	const struct link *link = open_disk_link();
	static u8 data[BYTES];
	u64 at = 0, bytes, ring = BYTES - RING;
	int now;

	while (scanf("%lu %d", &bytes, &now) == 2) {
		u64 start = at % ring, head = ring - start < bytes ? ring - start : bytes;

		for (u64 i = 0; i < bytes; i++)
			data[i] = (at + i) * 7 >> 3;
		if (head)
			link->write(RING + start, data, head);
		if (bytes > head)
			link->write(RING, data + head, bytes - head);
		at += bytes;
		link->publish(at, now);
	}
	link->read(MAILBOX + 3, data, 5000);
	fwrite(data, 1, 5000, stdout);
	return link->word(WORD_JOB) != 9;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    folder = tmp_path_factory.mktemp("harness")
    (folder / "harness.c").write_text(HARNESS)
    defines = [f'-DDISK="{folder / "disk"}"', f"-DBYTES={SIZE:#x}ull", "-DO_DIRECT=0", f"-I{SOURCES}"]
    sources = [str(folder / "harness.c"), str(SOURCES / "disk_link.c")]
    subprocess.run(["gcc", "-O1", "-w", *defines, "-o", str(folder / "program"), *sources], check=True)
    return folder / "program"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x58000), st.booleans()), max_size=12))
def test_what_was_written_and_published_is_in_the_file(program: Path, writes: list[tuple[int, bool]]) -> None:
    disk = program.with_name("disk")
    content = bytearray(SIZE)
    struct.pack_into("<Q", content, 8, 9)
    mailbox = bytes(i * 3 & 0xFF for i in range(5003))
    content[0x1000 : 0x1000 + len(mailbox)] = mailbox
    disk.write_bytes(content)
    said = "".join(f"{size} {int(now)}\n" for size, now in [*writes, (8, True)])
    done = subprocess.run([str(program)], input=said.encode(), capture_output=True, check=True)
    assert done.stdout == mailbox[3:]
    made, ring = disk.read_bytes(), SIZE - RING
    end = sum(size for size, _ in writes) + 8
    assert struct.unpack_from("<Q", made, 512)[0] == end
    assert made[:512] == content[:512]
    kept = range(max(0, end - ring + 512), end)  # the last sector may reach into the oldest bytes
    assert bytes(made[RING + at % ring] for at in kept) == bytes((at * 7 >> 3) & 0xFF for at in kept)
