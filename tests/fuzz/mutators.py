"""How inputs are changed: by bytes, by lines and words, by JSON values, by members of archives.

Every mutator is ``(rng, data) -> bytes`` and gives the same bytes for the same seed.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import warnings
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from tokenize import TokenError
from typing import Any

import numpy as np

Mutator = Callable[[Random, bytes], bytes]

NUMBERS = (
    "0", "1", "2", "8", "fff", "1000", "1001", "ffffffff", "100000000", "10000", "20000", "40000000",
    "fffffff8", "ffc", "fffffffffffff000", "7fffffffffff", "800000000000", "ffff800000000000",
    "8000000000000000", "ffffffffffffffff", "10000000000000000", "-1", "0x10", "00", "1_0", "e", "1e9",
    "\u0663", "80000011", "80000031", "20", "6b0", "500", "d01",
)  # fmt: skip
"""Words that stand where a scenario has a number; addresses that are not canonical or cross a page too."""
NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**32, 2**63, 2**64, 2**65, 10**400, 1.5, -0.0, 1e308, "", "-1",
    "0", "ffffffffffffffff", "1" * 5000, "\x00", "\x1b[31m", "\u0663", "zz", [], {}, [[]], [None], [0] * 9,
    {"": None}, "rd u 4 40000000", "init", "teardown", "~sregs",
)  # fmt: skip
"""JSON values that stand where others are expected."""
_SPLICES = (b"1e999", b"NaN", b"-Infinity", b"[" * 3000, b'{"a":' * 3000, b"\xff", b"\\ud800", b"9" * 5000)
_DTYPES = ("u1", "i1", "<u2", "<u4", "<u8", ">u8", "<i8", "<f8", "?", "S3", "U2", "<c16", "M8[s]")


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Flip, cut, double, insert or overwrite some bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                end = at + rng.randrange(1, 64)
                changed[at:at] = changed[at:end]
            case 3:
                del changed[at : at + rng.randrange(1, 16)]
            case 4:
                changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"))
            case _:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(changed)


def lines_of_words(words: tuple[str, ...], more: tuple[str, ...] = ()) -> Mutator:
    """Swap, double, drop and insert lines, and put `words` in the place of others; `more` are whole lines."""

    def mutate(rng: Random, data: bytes) -> bytes:
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            at = rng.randrange(len(lines))
            match rng.randrange(7):
                case 0:
                    lines.insert(at, rng.choice(lines))
                case 1:
                    other = rng.randrange(len(lines))
                    lines[at], lines[other] = lines[other], lines[at]
                case 2 if len(lines) > 1:
                    del lines[at]
                case 3 if more:
                    lines.insert(at, rng.choice(more))
                case _:
                    lines[at] = _other_word(rng, lines[at], words)
        return "\n".join(lines).encode("utf-8", "surrogateescape")

    return mutate


def _other_word(rng: Random, line: str, words: tuple[str, ...]) -> str:
    split = line.split(" ")
    at = rng.randrange(len(split))
    if rng.randrange(8) == 0:
        split.insert(at, rng.choice(words))
    else:
        key, equals, _ = split[at].partition("=")
        split[at] = (f"{key}=" if equals and rng.randrange(4) else "") + rng.choice(words)
    return " ".join(split)


def change_value(rng: Random, value: Any) -> Any:
    """Return a JSON value with one of its parts replaced, removed or doubled."""
    if not isinstance(value, (dict, list)) or not value or rng.randrange(12) == 0:
        return rng.choice(NASTY) if rng.randrange(3) else _near(rng, value)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    match rng.randrange(10):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, list):
            changed.insert(key, changed[rng.randrange(len(changed))])
        case 1:
            changed[str(rng.choice(NASTY))[:40]] = changed[key]
        case _:
            changed[key] = change_value(rng, value[key])
    return changed


def _near(rng: Random, value: Any) -> Any:
    """Return something of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 1 << 12, 1 << 40, -value * 2))
    if isinstance(value, str):
        return rng.choice((value + "0", value[:-1], value.upper(), "-" + value, " " + value, *NUMBERS))
    return [value]


def change_json(rng: Random, data: bytes) -> bytes:
    """Change a value of a JSON document, or its text."""
    if rng.randrange(8) == 0:
        return _splice(rng, data)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return change_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = change_value(rng, value)
    return json.dumps(value).encode()


def _splice(rng: Random, data: bytes) -> bytes:
    """Put something in the place of a digit."""
    digits = [at for at, byte in enumerate(data) if chr(byte).isdigit()]
    at = rng.choice(digits) if digits else 0
    return data[:at] + rng.choice(_SPLICES) + data[at + 1 :]


def change_json_lines(rng: Random, data: bytes) -> bytes:
    """Change a document of one JSON value a line."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2))):
        at = 0 if rng.randrange(3) == 0 else rng.randrange(len(lines))
        match rng.randrange(8):
            case 0:
                lines.insert(at, rng.choice(lines))
            case 1 if len(lines) > 1:
                del lines[at]
            case _:
                lines[at] = change_json(rng, lines[at])
    return b"\n".join(lines)


def packed(inner: Mutator) -> Mutator:
    """Change with `inner` what an xz or gz file holds, and pack it again; or change the packed bytes."""

    def mutate(rng: Random, data: bytes) -> bytes:
        if rng.randrange(10) == 0:
            return change_bytes(rng, data)
        changed = inner(rng, unpacked(data))
        return rng.choice((lambda raw: raw, lambda raw: gzip.compress(raw, 1, mtime=0), _xz))(changed)

    return mutate


def _xz(raw: bytes) -> bytes:
    return lzma.compress(raw, preset=0)


def unpacked(data: bytes) -> bytes:
    """Return what an xz or gz file holds; the bytes themselves if they are no such file."""
    try:
        if data[:2] == b"\x1f\x8b":
            return gzip.decompress(data)
        return lzma.decompress(data) if data[:1] == b"\xfd" else data
    except (OSError, EOFError, MemoryError, lzma.LZMAError, zlib.error):  # changed before
        return data


def change_zip(rng: Random, data: bytes) -> bytes:
    """Change, remove, rename or double a member of a zip archive; arrays by their values, type and shape."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError):
        return change_bytes(rng, data)
    if not members or rng.randrange(10) == 0:
        return change_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(members)) if rng.randrange(3) else 0
        name, content = members[at]
        match rng.randrange(12):
            case 0 if len(members) > 1:
                del members[at]
            case 1:
                members.append((name, rng.choice(members)[1]))
            case 2:
                members[at] = (rng.choice(("", "../x.npy", "x" * 300, name + "2")), content)
            case _:
                members[at] = (name, _change_member(rng, name, content))
    return zip_of(members)


def zip_of(members: list[tuple[str, bytes]]) -> bytes:
    """Return a zip archive with these members; a name may be there twice."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _change_member(rng: Random, name: str, content: bytes) -> bytes:
    if name.endswith(".json"):
        return change_json(rng, content)
    if name.endswith(".npy"):
        return change_npy(rng, content)
    return lines_of_words(tuple(NUMBERS))(rng, content)


def change_npy(rng: Random, content: bytes) -> bytes:
    """Change an array's values, length, type or shape, or the header's claims."""
    if rng.randrange(8) == 0:
        claim = rng.choice((b"(99999999999,)", b"(-1,)", b"(0,)", b"(1, 1, 1)", b"()", b"(True,)"))
        start, end = content.find(b"("), content.find(b")")
        return content[:start] + claim + content[end + 1 :] if start > 0 else change_bytes(rng, content)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, TypeError, SyntaxError, TokenError, EOFError, OSError, MemoryError):
        # its header was changed before
        return change_bytes(rng, content)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, _change_array(rng, array), allow_pickle=False)
    return buffer.getvalue()


def _change_array(rng: Random, array: Any) -> Any:
    match rng.randrange(7):
        case 0:
            return array[: rng.randrange(len(array) + 1)] if array.ndim else array
        case 1:
            with np.errstate(all="ignore"):
                return array.astype(rng.choice(_DTYPES)) if array.dtype.kind in "uib" else array
        case 2:
            return array.reshape(rng.choice(((-1, 1), (1, -1)))) if array.size else array
        case 3 if array.ndim and len(array):
            return np.concatenate([array, array[:1]])
    changed = array.copy()
    if changed.size and changed.dtype.kind in "ui":
        limits = np.iinfo(changed.dtype)
        for _ in range(rng.choice((1, 1, 3))):
            value = rng.choice(
                (0, 1, 2, 0xFFF, 1 << 40, int(limits.min), int(limits.max), rng.getrandbits(64))
            )
            changed.flat[rng.randrange(changed.size)] = max(int(limits.min), min(value, int(limits.max)))
    return changed


def two_files(first: Mutator, second: Mutator) -> Mutator:
    """Change one or both of two parts, the first of which is the first line."""

    def mutate(rng: Random, data: bytes) -> bytes:
        head, _, tail = data.partition(b"\n")
        which = rng.randrange(5)
        head = first(rng, head).replace(b"\n", b" ") if which < 2 else head
        return head + b"\n" + (second(rng, tail) if which > 0 else tail)

    return mutate
