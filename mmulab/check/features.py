"""The features of KVM's x86 MMU, and what shows that the model has them.

A table of plain records: ``features.csv`` beside this file, one feature a line.
Its columns:

``id``
    A letter for the section (:data:`SECTIONS`) and a number.
a column for each kernel (:data:`mmulab.kvm.kernel.KERNELS`)
    One of :data:`STATES`. *conformant*: recordings of that kernel exercise it, and
    the model agrees with them at level ``full``. *modelled*: a test shows it, but no
    recording. *not modelled*: neither, or the model refuses it.
``evidence``
    Recordings (``folder/name`` in each kernel's folder of ``data/conformance``, or in
    that of one kernel in ``data/conformance-more``) and tests (``path::function`` in
    ``tests``), separated by spaces.
``shows``
    What is in every recording of ``evidence``, claims separated by ``;``: a type of
    :mod:`mmulab.events` with fields (``pferr=9``, ``pferr&8``, ``pte&7=4``,
    ``role.quadrant=1``), ``op VERB``, ``stat NAME``, or ``out`` with fields of the
    outcome (``out vec=14 err&32``). Terms joined by ``+`` are
    met in one op; ``no`` before a term says that it is nowhere, and ``*8`` behind it
    that one op has eight. ``6.1.192:`` before a claim: it is that kernel's alone.
``feature``
    The feature in Linux 6.1, or the release that has it.
``remark``
    Why it is not modelled; otherwise what of it is weaker than the state says.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from typing import NamedTuple

from mmulab.kvm.kernels import KERNELS

SECTIONS = {
    "W": "Guest walkers",
    "R": "The role of a page",
    "X": "The extended role of a context",
    "C": "Which role each context has",
    "G": "Finding and creating pages",
    "Q": "Quadrants",
    "T": "Roots",
    "U": "Unsync and sync",
    "K": "Write tracking and flooding",
    "Z": "Zapping and limits",
    "M": "Reverse maps and huge pages",
    "H": "NX huge pages",
    "D": "Dirty logging and access tracking",
    "F": "Faults and MMIO",
}
"""The sections' letters, in the order of the table, and their titles."""
CONFORMANT, MODELLED, NOT_MODELLED = "conformant", "modelled", "not modelled"
STATES = (CONFORMANT, MODELLED, NOT_MODELLED)


class Feature(NamedTuple):
    """A row of the table; the fields are its columns, `states` those of the kernels."""

    id: str
    states: dict[str, str]
    evidence: tuple[str, ...]
    shows: tuple[str, ...]
    feature: str
    remark: str

    @property
    def section(self) -> str:
        """Title of its section."""
        return SECTIONS[self.id[0]]

    def claims(self, kernel: str) -> list[str]:
        """Return what the recordings of a kernel show."""
        known = [claim.rpartition(": ") for claim in self.shows]
        return [claim for only, _, claim in known if only in ("", kernel)]


@cache
def features() -> tuple[Feature, ...]:
    """Return the rows in the table's order."""
    text = resources.files(__package__).joinpath("features.csv").read_text("ascii")
    return tuple(
        Feature(
            row["id"],
            {kernel: row[kernel] for kernel in KERNELS},
            tuple(row["evidence"].split()),
            tuple(claim.strip() for claim in row["shows"].split(";") if claim.strip()),
            row["feature"],
            row["remark"],
        )
        for row in csv.DictReader(text.splitlines())
    )
