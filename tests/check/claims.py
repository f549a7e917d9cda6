"""One-line changes of the engine, each of which breaks a claim of the table of features.

Whoever says that a recording shows a feature says that it would differ without it. A
paragraph of ``claims.txt`` takes one line away, or turns it round, and names recordings of the feature's
row that differ then (:mod:`tests.check.test_claims`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mmulab.kvm.kernels import LINUX_6_1


class Claim(NamedTuple):
    """A line of the engine that a feature rests on.

    Attributes
    ----------
    row : str
        The feature's id.
    kernel : str
        Whose recordings.
    recordings : tuple of str
        Each differs once the line is changed.
    function : str
        ``module:name`` below :mod:`mmulab`; of a method, ``module:Class.name``.
    old, new : str
        The line, without indentation and comment, and what stands there instead.
    """

    row: str
    kernel: str
    recordings: tuple[str, ...]
    function: str
    old: str
    new: str


def parse_claim(paragraph: str) -> Claim:
    """Read a paragraph of ``claims.txt``: row and recordings, a function, its line as in a diff."""
    told, function, old, new = paragraph.splitlines()
    of, _, recordings = told.partition(": ")
    row, _, kernel = of.partition(" of ")
    return Claim(
        row,
        kernel or LINUX_6_1.name,
        tuple(recordings.split()),
        function,
        old.removeprefix("- "),
        new.removeprefix("+ "),
    )


NOT_BROKEN = {
    "G3": "no direct page is ever out of sync, so that a sync of one would change nothing",
}
"""Conformant rows without a line that breaks them in a recording, and why."""

TABLE = Path(__file__).with_suffix(".txt").read_text("utf-8")

CLAIMS = tuple(parse_claim(paragraph) for paragraph in TABLE.strip().split("\n\n"))
