"""Targets with known faults, for the tests of the fuzzers themselves."""

from __future__ import annotations

import os
import time
from random import Random

from mmulab.errors import InputError
from tests.fuzz.targets import Reader, wrong_message

__all__ = ["TARGETS", "InputError", "seeds", "wrong_message"]


def _refuses(data: bytes) -> None:
    raise InputError("byte 0: wrong; write another")


def _raises(data: bytes) -> None:
    if b"bad" in data:
        raise RuntimeError("a slip")


def _babbles(data: bytes) -> None:
    raise InputError("two\nlines")


def _hangs(data: bytes) -> None:
    while True:
        time.sleep(0.01)


def _grows(data: bytes) -> None:
    held = b"x" * (300 << 20)
    assert held


def _dies(data: bytes) -> None:
    os.abort()


def _same(rng: Random, data: bytes) -> bytes:
    return data


TARGETS = {
    "refuses": Reader(_refuses, _same),
    "raises": Reader(_raises, _same),
    "babbles": Reader(_babbles, _same),
    "hangs": Reader(_hangs, _same),
    "grows": Reader(_grows, _same),
    "dies": Reader(_dies, _same),
}


def seeds(name: str) -> list[bytes]:
    """Return one input of three lines, of which the second is the one that matters."""
    return [b"first\nbad\nlast"]
