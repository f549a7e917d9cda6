"""Files: what is not a file is said as what it is; limits hold; writing leaves all or nothing."""

from __future__ import annotations

import fcntl
import gzip
import lzma
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from mmulab import files
from mmulab.errors import InputError, quoted


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "ä\n")
    assert files.read_text(tmp_path / "a") == "ä\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "a folder"),
        (os.mkfifo, "a FIFO"),
        (lambda path: path.symlink_to(path), "a loop of symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "a character device"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_is_no_file_is_said_as_what_it_is(tmp_path: Path, make, said: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "x")
    with pytest.raises(InputError, match=rf"/x: {said}"):
        files.read_bytes(tmp_path / "x")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000])
def test_a_name_that_no_file_has(name: str) -> None:
    for use in (files.read_bytes, lambda path: files.write_text(path, "")):
        with pytest.raises(InputError):
            use(name)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(InputError, match="5 bytes; the limit is 4"):
        files.read_bytes(tmp_path / "x", 4)


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_unpacking_stops_at_the_limit(tmp_path: Path, suffix: str, pack) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pack(b"0" * (3 << 20)))
    assert len(files.read_unpacked(path, 3 << 20)) == 3 << 20
    with pytest.raises(InputError, match="unpacks to more than 3145727 bytes"):
        files.read_unpacked(path, (3 << 20) - 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a whole"):
        files.read_unpacked(path)


def test_an_xz_that_asks_for_too_much_memory_is_one_line(tmp_path: Path) -> None:
    """The size of the dictionary stands in the block's header: 40 means 4 GiB."""
    whole = bytearray(lzma.compress(b"0" * 1000))
    assert whole[14:16] == b"\x21\x01"  # LZMA2, one byte of properties
    whole[16] = 40
    whole[20:24] = zlib.crc32(whole[12:20]).to_bytes(4, "little")
    path = tmp_path / "x.xz"
    path.write_bytes(whole)
    code = f"""
import resource
from mmulab import files
from mmulab.errors import InputError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    files.read_unpacked({str(path)!r})
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: asks for more memory than there is; copy it again\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested deeper than 64"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[NaN]", "NaN is no number"),
        ("{", "cut, or no JSON"),
        ("9" * 5000, "cut, or no JSON"),
        (b"\xff\xfe\xfd", "not text"),
    ],
)
def test_json_that_no_file_holds(text: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^here: .*{said}"):
        files.parse_json(text, "here")


def test_json_at_the_limit_of_nesting() -> None:
    assert files.parse_json("[" * 64 + "]" * 64, "here")


def test_an_error_while_writing_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("earlier")

    def interrupted() -> None:
        with files.writing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"x: cannot be written \(No space left"),
        files.writing(tmp_path / "x"),
    ):
        raise OSError(28, os.strerror(28))
    assert not list(tmp_path.iterdir())


def test_quoted_is_one_short_line() -> None:
    assert quoted("a\n\x1b[31m\u202e") == "a\\n\\x1b[31m\\u202e"
    assert quoted("x" * 61) == "x" * 57 + "..."
    assert quoted(b"\xff\n") == "\\xff\\n"


def test_what_a_killed_writer_left_is_swept_and_a_living_ones_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    left = tmp_path / ".x.4194305"
    living = tmp_path / ".x.4194306"
    others = [tmp_path / ".x.notes", tmp_path / ".xx.4194305"]
    for file in (left, living, *others):
        file.write_text("half")
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files.write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, living, *others])
    assert path.read_text() == "whole"


def test_two_writers_of_one_name_do_not_sweep_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    program = "import sys; from mmulab import files; files.write_text(sys.argv[1], 'other')"
    with files.writing(path) as file:
        subprocess.run([sys.executable, "-c", program, path], check=True)
        file.write(b"this")
    assert path.read_text() == "this"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_beyond_the_limit_of_the_disk_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("earlier")
    program = "import sys; from mmulab import files; files.write_text(sys.argv[1], 'x' * 100_000)"
    done = subprocess.run(
        [sys.executable, "-c", program, path],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    said = "x: cannot be written (File too large); raise the limit on a file's size (ulimit -f)"
    assert done.stderr.splitlines()[-1].endswith(said)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for name, kind in (("fifo", "a FIFO"), ("link", "a character device"), ("folder", "a folder")):
        with pytest.raises(InputError, match=f"{name}: {kind}, expected the name of a file"):
            files.write_text(tmp_path / name, "x")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "link").is_symlink()


def test_a_writer_may_go_back_in_the_file(tmp_path: Path) -> None:
    """As zipfile does, to say in front of a part how long it is."""
    path = tmp_path / "x"
    with files.writing(path) as file:
        file.write(b"....part")
        file.seek(0)
        file.write(b"size")
    assert path.read_bytes() == b"sizepart"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
