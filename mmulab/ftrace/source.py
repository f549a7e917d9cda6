"""The bytes of a trace, block by block: a file or a pipe, packed or not, whole or cut.

What a mailer, a terminal or a page added is taken off here: carriage returns, colour, the ``>`` of a
quotation, blanks that are none.
"""

from __future__ import annotations

import bz2
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from mmulab import limits
from mmulab.errors import InputError, named
from mmulab.files import check_file, reason

STDIN = "-"
BLOCK = 8 << 20
"""Bytes of text that are read at once."""
LONGEST = 2048
"""Characters of a line that is still read; the longest event of a kernel has some 400."""
_MAGIC = {
    b"\x17\x08\x44tracing": ("trace-cmd's own file", "give what 'trace-cmd report -i FILE' prints"),
    b"PERFILE2": ("perf's own file", "give what 'perf script -i FILE' prints"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "unpack it with 'zstd -d'"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
}
_UNPACKERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
}
_PLAIN = {"\u00a0": " ", "\t": " ", "&gt;": ">", "&lt;": "<", "&amp;": "&"}
"""What a page or an editor puts for plain characters."""
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\n]*\x07")
_QUOTED = re.compile(r"^(?:[ \t]?>)+ ?", re.MULTILINE)
_HEADER = re.compile(r"\[\d+\][^\n]*?\d: +[\w:]+:")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_KEPT_BACK = 8
"""Lines at a block's end among which the next event's begin is looked for: a wrapped one has no more."""


class Ended(NamedTuple):
    """How the bytes ended before their time; "" if they did not."""

    why: str


def read_blocks(path: str, stdin: IO[bytes] | None = None) -> Iterator[str | Ended]:
    """Yield the text in blocks of whole lines, and last how it ended.

    Parameters
    ----------
    path : str
        A file, packed with gzip, xz or bzip2 or not; ``-`` for `stdin`.
    stdin : file, optional
        The process's own if left out.

    Raises
    ------
    InputError
        There is no such file, it is no text, or is longer than the limit.
    """
    if path == STDIN:
        yield from _lines(_unpacked(stdin or sys.stdin.buffer, "standard input"), "standard input")
        return
    check_file(Path(path), limits.TRACE_BYTES)
    try:
        with open(path, "rb") as file:
            yield from _lines(_unpacked(file, named(path)), named(path))
    except OSError as error:
        raise InputError(f"{named(path)}: {reason(error)}") from error


def _unpacked(file: IO[bytes], name: str) -> Iterator[bytes | Ended]:
    begin = file.read(64)
    for magic, (what, mend) in _MAGIC.items():
        if begin.startswith(magic):
            raise InputError(f"{name}: {what}, no text; {mend}")
    new = next((make for magic, make in _UNPACKERS.items() if begin.startswith(magic)), None)
    if new is None:
        yield begin
        while data := file.read(BLOCK):
            yield data
        yield Ended("")
        return
    try:
        yield from _members(file, begin, new)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        yield Ended(f"damaged when packed ({error})")


def _members(file: IO[bytes], data: bytes, new: Callable[[], Any]) -> Iterator[bytes | Ended]:
    """Yield the members of a packed file, one after another."""
    unpacker = new()
    while data or (data := file.read(1 << 17)):
        if unpacker.eof:
            unpacker = new()
        yield unpacker.decompress(data)
        data = unpacker.unused_data
    yield Ended("" if unpacker.eof else "cut when packed")


def _lines(parts: Iterator[bytes | Ended], name: str) -> Iterator[str | Ended]:
    rest: list[bytes] = []
    held = total = 0
    for part in parts:
        if isinstance(part, Ended):
            yield _text(b"".join(rest))
            yield part
            return
        total += len(part)
        if total > limits.TRACE_BYTES:
            raise InputError(f"{name}: more than {limits.TRACE_BYTES} bytes of text, the limit; give a part")
        rest.append(part)
        held += len(part)
        if held >= BLOCK:
            whole = b"".join(rest)
            end = _end_of_lines(whole)
            if end:
                yield _text(whole[:end])
            rest, held = [whole[end:]], len(whole) - end
            if held > 2 * BLOCK:  # one line without end: of no use, and not to be kept
                rest, held = [whole[end : end + 2 * LONGEST]], 2 * LONGEST


def _end_of_lines(data: bytes) -> int:
    """Return where the last event begins, so that no wrapped line is parted from its first."""
    end = data.rfind(b"\n") + 1
    cut = end
    for _ in range(_KEPT_BACK):
        cut = data.rfind(b"\n", 0, max(cut - 1, 0)) + 1
        if not cut:
            break
        line = data[cut : data.find(b"\n", cut)]
        if len(line) < LONGEST and _HEADER.search(line.decode("utf-8", "replace")):
            return cut
    return end


def _text(data: bytes) -> str:
    return clean(data.decode("utf-8", "replace"))


def clean(text: str) -> str:
    """Take off what mailers, terminals and pages add."""
    text = text.removeprefix("\ufeff")
    for odd, plain in _PLAIN.items():
        if odd in text:
            text = text.replace(odd, plain)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "")
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    if text.startswith((">", " >")) or "\n>" in text or "\n >" in text:
        text = _QUOTED.sub("", text)
    return text


def is_binary(line: str) -> bool:
    """Whether a line has characters that no text has."""
    return _CONTROL.search(line) is not None or "\ufffd" in line
